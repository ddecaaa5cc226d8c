//! Which settings of the kernel a pod may have for itself.
//!
//! Problem: most sysctls are the node's, and a pod that writes one changes all others; of those that belong to a namespace some
//! can still take the node down. Approach: the kubelet's (pkg/kubelet/sysctl, release 1.36): a short list that is safe, and beside it
//! what `allowedUnsafeSysctls` names; all else is turned away with `SysctlForbidden`.
//!
//! Terms: a *pattern* is a name, or the beginning of names followed by `*`. A name may be written with dots or with slashes;
//! its *normal* form has dots between its parts.
//!
//! Properties: nothing is allowed that is not in a namespace of the pod's own; a pattern allows no name that does not begin with it.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest name, in bytes (pkg/apis/core/validation, SysctlMaxLength).
const MAX_LENGTH: usize = 253;
/// The rule of a name, as messages show it (pkg/apis/core/validation, SysctlContainSlashFmt).
pub const NAME_RULE: &str = "must have at most 253 characters and match regex ^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[\\./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$";

/// Safe sysctls, each with the release of Linux from which on it belongs to a namespace (pkg/kubelet/sysctl/safe_sysctls.go and
/// pkg/util/kernel/constants.go, release 1.36).
const SAFE: [(&str, (u32, u32)); 12] = [
    ("kernel.shm_rmid_forced", (0, 0)),
    ("net.ipv4.ip_local_port_range", (0, 0)),
    ("net.ipv4.ip_local_reserved_ports", (3, 16)),
    ("net.ipv4.ip_unprivileged_port_start", (0, 0)),
    ("net.ipv4.ping_group_range", (0, 0)),
    ("net.ipv4.tcp_fin_timeout", (4, 6)),
    ("net.ipv4.tcp_keepalive_intvl", (4, 5)),
    ("net.ipv4.tcp_keepalive_probes", (4, 5)),
    ("net.ipv4.tcp_keepalive_time", (4, 5)),
    ("net.ipv4.tcp_rmem", (4, 15)),
    ("net.ipv4.tcp_syncookies", (0, 0)),
    ("net.ipv4.tcp_wmem", (4, 15)),
];

/// Names of the IPC namespace beside `fs.mqueue.*`; `kernel.shm` and `kernel.msg` are the beginnings that old patterns have.
const IPC: [&str; 10] = [
    "kernel.msg",
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shm",
    "kernel.shm_rmid_forced",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
];

/// The namespace that a sysctl belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Namespace {
    /// Semaphores, shared memory, message queues.
    Ipc,
    /// The network.
    Net,
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ipc => "IPC",
            Self::Net => "Net",
        })
    }
}

/// The name with dots between its parts: `net/ipv4/conf/eno2.100/rp_filter` is `net.ipv4.conf.eno2/100.rp_filter`. What is between
/// the first two parts is what separates all.
#[must_use]
pub fn normal(name: &str) -> String {
    let swapped = |c: char| match c {
        '.' => '/',
        '/' => '.',
        other => other,
    };
    match name.find(['.', '/']) {
        Some(at) if name.as_bytes().get(at) == Some(&b'/') => name.chars().map(swapped).collect(),
        _ => name.to_owned(),
    }
}

/// The namespace of a sysctl; `None` for one that is the node's.
#[must_use]
pub fn namespace(name: &str) -> Option<Namespace> {
    let name = normal(name);
    if IPC.contains(&name.as_str()) || name.starts_with("fs.mqueue.") {
        Some(Namespace::Ipc)
    } else {
        name.starts_with("net.").then_some(Namespace::Net)
    }
}

/// Whether it may be a sysctl's name ([`NAME_RULE`]).
#[must_use]
pub fn is_name(name: &str) -> bool {
    name.len() <= MAX_LENGTH && name.split(['.', '/']).all(is_segment)
}

fn is_segment(segment: &str) -> bool {
    is_word(segment, |b| b.is_ascii_lowercase() || b.is_ascii_digit())
}

/// Begins with a letter or digit, has `-` and `_` inside, and ends as told.
fn is_word(text: &str, may_end: impl Fn(u8) -> bool) -> bool {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    match text.as_bytes() {
        [] => false,
        [only] => may_end(*only),
        [first, inner @ .., last] => {
            plain(*first) && inner.iter().all(|b| plain(*b) || b"-_".contains(b)) && may_end(*last)
        }
    }
}

/// A name, or the beginning of names.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Pattern {
    /// In the normal form, without the `*`.
    name: String,
    /// All names that begin so.
    prefix: bool,
    namespace: Namespace,
}

/// Why a text is no pattern.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// It is not of that form.
    #[error(
        "{0:?} is not a sysctl nor the beginning of some: at most 253 of a-z, 0-9, '-', '_' and dots, as net.core.somaxconn or net.*"
    )]
    Form(String),
    /// What it allows would be the node's.
    #[error("the sysctls {0:?} are not known to be namespaced")]
    Unknown(String),
}

impl FromStr for Pattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let (head, last) = text.rsplit_once(['.', '/']).map_or(("", text), |(head, last)| (head, last));
        let fits = text.len() <= MAX_LENGTH
            && (head.is_empty() && head.len() + last.len() == text.len() || is_name(head))
            && is_word(last, |b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'*');
        if !fits {
            return Err(PatternError::Form(text.to_owned()));
        }
        let whole = normal(text);
        let (name, prefix) = whole.strip_suffix('*').map_or((whole.as_str(), false), |name| (name, true));
        let namespace = namespace(name).ok_or_else(|| PatternError::Unknown(name.to_owned()))?;
        Ok(Self { name: name.to_owned(), prefix, namespace })
    }
}

/// The sysctls that pods may set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Allowlist(BTreeSet<Pattern>);

/// Why a pod may not set a sysctl.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Forbidden {
    /// It is not in the list.
    #[error("{0:?} not allowlisted")]
    NotListed(String),
    /// The pod shares the namespace with the node.
    #[error("{name:?} not allowed with host {namespace} enabled")]
    Host {
        /// The sysctl.
        name: String,
        /// The namespace that it belongs to.
        namespace: Namespace,
    },
}

impl Allowlist {
    /// What is safe on this release of Linux (`None` where it is not known), and what `allowedUnsafeSysctls` names.
    #[must_use]
    pub fn new(linux: Option<(u32, u32)>, allowed: &[Pattern]) -> Self {
        let linux = linux.unwrap_or_default();
        let safe = SAFE.iter().filter(|(_, since)| *since <= linux).filter_map(|(name, _)| name.parse().ok());
        Self(safe.chain(allowed.iter().cloned()).collect())
    }

    /// Whether a pod may set it, given the namespaces that it shares with the node.
    ///
    /// # Errors
    /// If it may not.
    pub fn check(&self, name: &str, host_network: bool, host_ipc: bool) -> Result<(), Forbidden> {
        let name = normal(name);
        let exact = self.0.iter().find(|p| !p.prefix && p.name == name);
        let Some(found) = exact.or_else(|| self.0.iter().find(|p| p.prefix && name.starts_with(&p.name))) else {
            return Err(Forbidden::NotListed(name));
        };
        match found.namespace {
            Namespace::Ipc if host_ipc => Err(Forbidden::Host { name, namespace: Namespace::Ipc }),
            Namespace::Net if host_network => Err(Forbidden::Host { name, namespace: Namespace::Net }),
            _ => Ok(()),
        }
    }
}

impl Default for Allowlist {
    /// What is safe on any release that beelet runs on.
    fn default() -> Self {
        Self::new(Some((u32::MAX, 0)), &[])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(linux: (u32, u32), allowed: &[&str]) -> Allowlist {
        let allowed: Vec<Pattern> = allowed.iter().map(|text| text.parse().unwrap()).collect();
        Allowlist::new(Some(linux), &allowed)
    }

    #[test]
    fn a10_16_only_what_is_safe_or_allowed_may_be_set() {
        let of =
            |allowed: &[&str], name: &str| list((6, 1), allowed).check(name, false, false).map_err(|e| e.to_string());
        for (name, _) in SAFE {
            assert_eq!(of(&[], name), Ok(()), "{name}");
        }
        let not = |name: &str| Err(format!("{name:?} not allowlisted"));
        for name in ["net.ipv4.ip_forward", "kernel.msgmax", "vm.swappiness", "net.ipv4.tcp_syncookies2", ""] {
            assert_eq!(of(&[], name), not(name), "{name}");
        }
        assert_eq!(of(&[], "net/ipv4/tcp_syncookies"), Ok(()), "the same name with slashes");
        assert_eq!(of(&["net.ipv4.conf.*"], "net.ipv4.conf.all.rp_filter"), Ok(()));
        assert_eq!(of(&["net.ipv4.conf.*"], "net.ipv4.ip_forward"), not("net.ipv4.ip_forward"));
        assert_eq!(of(&["kernel.msg*"], "kernel.msgmax"), Ok(()));
        assert_eq!(of(&["net.ipv4.ip_forward"], "net.ipv4.ip_forward"), Ok(()));
        assert_eq!(of(&["net.ipv4.ip_forward"], "net.ipv4.ip_forward_x"), not("net.ipv4.ip_forward_x"), "no prefix");
    }

    #[test]
    fn a10_16_an_older_linux_has_fewer_safe_ones() {
        let safe = |linux| list(linux, &[]).check("net.ipv4.tcp_rmem", false, false).is_ok();
        assert!(safe((4, 15)) && safe((5, 0)) && !safe((4, 14)));
        assert!(Allowlist::new(None, &[]).check("net.ipv4.tcp_rmem", false, false).is_err());
        assert!(Allowlist::new(None, &[]).check("net.ipv4.tcp_syncookies", false, false).is_ok());
    }

    #[test]
    fn a10_16_a_namespace_of_the_node_is_not_the_pods_to_set() {
        let check =
            |name: &str, net, ipc| list((6, 1), &["kernel.sem"]).check(name, net, ipc).map_err(|e| e.to_string());
        let (net, ipc) = ("net.ipv4.tcp_syncookies", "kernel.sem");
        assert_eq!(check(net, true, false), Err(format!("{net:?} not allowed with host Net enabled")));
        assert_eq!(check(ipc, false, true), Err(format!("{ipc:?} not allowed with host IPC enabled")));
        assert_eq!((check(net, false, true), check(ipc, true, false)), (Ok(()), Ok(())));
    }

    #[test]
    fn patterns_name_what_is_namespaced() {
        let parse = |text: &str| text.parse::<Pattern>().map(|p| (p.name, p.prefix, p.namespace));
        assert_eq!(parse("net.*"), Ok(("net.".to_owned(), true, Namespace::Net)));
        assert_eq!(parse("kernel.shm*"), Ok(("kernel.shm".to_owned(), true, Namespace::Ipc)));
        assert_eq!(parse("fs/mqueue/msg_max"), Ok(("fs.mqueue.msg_max".to_owned(), false, Namespace::Ipc)));
        for text in ["vm.*", "kernel.*", "*", "network.x", "fs.mqueuex"] {
            assert!(matches!(parse(text), Err(PatternError::Unknown(_))), "{text}: {:?}", parse(text));
        }
        for text in
            ["", ".", "net.", ".net", "net..x", "net.*.x", "net.**", "Net.x", "net.-x", "net.x-", "../net.x", "net.x y"]
        {
            assert!(matches!(parse(text), Err(PatternError::Form(_))), "{text}: {:?}", parse(text));
        }
        assert!("net.".parse::<Pattern>().is_err() && format!("net.{}", "a".repeat(250)).parse::<Pattern>().is_err());
    }

    #[test]
    fn names_have_one_normal_form() {
        for (given, expected) in [
            ("net.ipv4.conf.eno2/100.rp_filter", "net.ipv4.conf.eno2/100.rp_filter"),
            ("net/ipv4/conf/eno2.100/rp_filter", "net.ipv4.conf.eno2/100.rp_filter"),
            ("kernel", "kernel"),
            ("", ""),
        ] {
            assert_eq!(normal(given), expected);
            assert_eq!(normal(&normal(given)), expected);
        }
        for good in ["kernel.sem", "net/ipv4/conf/eno2.100/rp_filter", "a_b-c.d"] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", "a.", "/a", "a..b", "../a", "A.b", "a b", "a.*", "_a", "a=b"] {
            assert!(!is_name(bad), "{bad}");
        }
    }
}
