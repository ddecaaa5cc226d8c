//! Whom a pod asks for names.
//!
//! Problem: a pod's resolver is put together from the node's own, the cluster's and the pod's wishes, and a C library takes only so much
//! of it. Approach: the kubelet's (pkg/kubelet/network/dns/dns.go, release 1.36): by `dnsPolicy` the cluster's servers or the
//! node's are the base, `dnsConfig` adds to it, and what is beyond the limits is left out and told.
//!
//! Terms: a *search list* has the domains that are tried after a name without a dot; an *option* is `name` or `name:value`.
//!
//! Properties: no more than [`MAX_SERVERS`] servers, [`MAX_SEARCHES`] domains and [`MAX_SEARCH_CHARS`] characters come out; what is said
//! twice counts once; of two options of one name the later one counts, in the place of the earlier.

use serde::{Deserialize, Serialize};

use crate::spec::PodSpec;

/// Servers that a C library asks (MaxDNSNameservers, pkg/apis/core/validation).
pub const MAX_SERVERS: usize = 3;
/// Domains in a search list (MaxDNSSearchPaths).
pub const MAX_SEARCHES: usize = 32;
/// Characters in a search list, with the spaces between (MaxDNSSearchListChars).
pub const MAX_SEARCH_CHARS: usize = 2_048;
/// Characters in a domain: with more, some C libraries abort.
const MAX_DOMAIN: usize = 253;

/// `spec.dnsPolicy`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Policy {
    /// The cluster's servers, but for a pod on the node's network the node's.
    ClusterFirst,
    /// The cluster's servers for that one too.
    ClusterFirstWithHostNet,
    /// The node's.
    Default,
    /// None but those of `dnsConfig`.
    None,
}

/// What a pod wishes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodDns {
    /// `dnsPolicy`, as it was given; unset is [`Policy::ClusterFirst`].
    pub policy: Option<Policy>,
    /// `dnsConfig`.
    pub config: Resolver,
}

/// The content of a resolv.conf.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolver {
    /// The servers' addresses.
    pub servers: Vec<String>,
    /// The search list.
    pub searches: Vec<String>,
    /// The options.
    pub options: Vec<String>,
}

/// What the node has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeDns {
    /// `clusterDNS`.
    pub cluster_servers: Vec<String>,
    /// `clusterDomain`, "" for none.
    pub cluster_domain: String,
    /// The text of the file that `resolvConf` names; `None` where that is "".
    pub resolv_conf: Option<String>,
}

/// A line of a resolv.conf is not one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResolvConfError {
    /// `nameserver` without an address.
    #[error("Encountered error while parsing resolv conf file. Error: nameserver list is empty")]
    NoServer,
}

/// Longest host name that the kernel takes.
const MAX_HOST_NAME: usize = 64;

/// The whole name does not fit the kernel.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "failed to construct FQDN from pod hostname and cluster domain, FQDN {fqdn} is too long \
     ({MAX_HOST_NAME} characters is the max, {} characters requested)", fqdn.len()
)]
pub struct NameTooLong {
    fqdn: String,
}

/// The domain of a pod that names a `subdomain`; "" for one that does not (pkg/kubelet/kubelet_pods.go, GeneratePodHostNameAndDomain).
#[must_use]
pub fn domain_of(pod: &PodSpec, cluster_domain: &str) -> String {
    match pod.subdomain.as_str() {
        "" => String::new(),
        subdomain => format!("{subdomain}.{}.svc.{cluster_domain}", pod.namespace),
    }
}

/// The host name that the kernel of the pod tells (pkg/kubelet/util/util.go, GetNodenameForKernel).
///
/// # Errors
/// With `setHostnameAsFQDN`, if the whole name is too long.
pub fn host_name_of(pod: &PodSpec, cluster_domain: &str) -> Result<String, NameTooLong> {
    let domain = domain_of(pod, cluster_domain);
    if domain.is_empty() || !pod.hostname_as_fqdn {
        return Ok(pod.hostname.clone());
    }
    let fqdn = format!("{}.{domain}", pod.hostname);
    if fqdn.len() > MAX_HOST_NAME { Err(NameTooLong { fqdn }) } else { Ok(fqdn) }
}

/// What is told of a pod's resolver: a reason and a message.
pub type Told = (&'static str, String);

/// Reads a resolv.conf.
///
/// # Errors
/// See [`ResolvConfError`].
pub fn parse(text: &str) -> Result<Resolver, ResolvConfError> {
    let mut read = Resolver::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => read.servers.push(words.next().ok_or(ResolvConfError::NoServer)?.to_owned()),
            // The last line of these wins.
            Some("search") => {
                let plain = |domain: &str| domain.strip_suffix('.').unwrap_or(domain).to_owned();
                read.searches = words.filter(|domain| *domain != ".").map(plain).collect();
            }
            Some("options") => words.for_each(|option| set_option(&mut read.options, option.to_owned())),
            _ => {}
        }
    }
    Ok(read)
}

/// The resolver of a pod of this namespace, and what is told of it. `host_ips` are the node's addresses; `pod` is the pod as messages
/// name it.
///
/// # Errors
/// If the node's resolv.conf cannot be understood.
pub fn form(
    node: &NodeDns,
    host_ips: &[String],
    (wish, host_network): (&PodDns, bool),
    (namespace, pod): (&str, &str),
) -> Result<(Resolver, Vec<Told>), ResolvConfError> {
    let mut told = Vec::new();
    let host = parse(node.resolv_conf.as_deref().unwrap_or_default())?;
    let mut formed = match wish.policy.unwrap_or(Policy::ClusterFirst) {
        Policy::None => Resolver::default(),
        Policy::Default => of_node(node, host_ips, host),
        Policy::ClusterFirst if host_network => of_node(node, host_ips, host),
        Policy::ClusterFirst | Policy::ClusterFirstWithHostNet if node.cluster_servers.is_empty() => {
            // A pod that says nothing asks for nothing that is missing.
            if wish.policy.is_some() {
                let message = format!(
                    "pod: {pod:?}. kubelet does not have ClusterDNS IP configured and cannot create Pod using \
                     \"ClusterFirst\" policy. Falling back to \"Default\" policy."
                );
                told.push(("MissingClusterDNS", message));
            }
            of_node(node, host_ips, host)
        }
        Policy::ClusterFirst | Policy::ClusterFirstWithHostNet => of_cluster(node, namespace, host),
    };
    formed.servers.extend(wish.config.servers.iter().cloned());
    formed.searches.extend(wish.config.searches.iter().cloned());
    once(&mut formed.servers);
    once(&mut formed.searches);
    for option in &wish.config.options {
        set_option(&mut formed.options, option.clone());
    }
    fit(&mut formed, &mut told);
    Ok((formed, told))
}

fn of_node(node: &NodeDns, host_ips: &[String], host: Resolver) -> Resolver {
    if node.resolv_conf.is_some() {
        return host;
    }
    // Names are looked up nowhere but at the pod itself.
    let loopback = |ip: &String| if ip.contains(':') { "::1" } else { "127.0.0.1" }.to_owned();
    let mut servers: Vec<String> = host_ips.iter().filter(|ip| !ip.is_empty()).map(loopback).collect();
    if servers.is_empty() {
        servers.push("127.0.0.1".to_owned());
    }
    Resolver { servers, searches: vec![".".to_owned()], options: Vec::new() }
}

fn of_cluster(node: &NodeDns, namespace: &str, host: Resolver) -> Resolver {
    let domain = &node.cluster_domain;
    let mut searches = Vec::new();
    if !domain.is_empty() {
        searches = vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()];
    }
    searches.extend(host.searches);
    Resolver { servers: node.cluster_servers.clone(), searches, options: vec!["ndots:5".to_owned()] }
}

/// The first of those that are the same.
fn once(list: &mut Vec<String>) {
    let mut seen = std::collections::BTreeSet::new();
    list.retain(|one| seen.insert(one.clone()));
}

fn set_option(options: &mut Vec<String>, option: String) {
    let name = |option: &str| option.split(':').next().unwrap_or_default().to_owned();
    match options.iter_mut().find(|known| name(known) == name(&option)) {
        Some(known) => *known = option,
        None => options.push(option),
    }
}

/// Leaves out what is beyond the limits, and says so.
fn fit(formed: &mut Resolver, told: &mut Vec<Told>) {
    if formed.servers.len() > MAX_SERVERS {
        formed.servers.truncate(MAX_SERVERS);
        let line = formed.servers.join(" ");
        let message = format!(
            "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: {line}"
        );
        told.push(("DNSConfigForming", message));
    }
    let before = formed.searches.len();
    formed.searches.truncate(MAX_SEARCHES);
    formed.searches.retain(|domain| domain.len() <= MAX_DOMAIN);
    while formed.searches.iter().map(|domain| domain.len() + 1).sum::<usize>() > MAX_SEARCH_CHARS + 1 {
        formed.searches.pop();
    }
    if formed.searches.len() < before {
        let line = formed.searches.join(" ");
        let message = format!(
            "Search Line limits were exceeded, some search paths have been omitted, the applied search line is: {line}"
        );
        told.push(("DNSConfigForming", message));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(resolv_conf: Option<&str>) -> NodeDns {
        NodeDns {
            cluster_servers: vec!["10.96.0.10".to_owned()],
            cluster_domain: "cluster.local".to_owned(),
            resolv_conf: resolv_conf.map(str::to_owned),
        }
    }

    const HOST: &str = "nameserver 192.0.2.53\nsearch corp.example\noptions rotate\n";

    fn texts(list: &[&str]) -> Vec<String> {
        list.iter().map(|text| (*text).to_owned()).collect()
    }

    fn resolver(servers: &[&str], searches: &[&str], options: &[&str]) -> Resolver {
        Resolver { servers: texts(servers), searches: texts(searches), options: texts(options) }
    }

    fn formed(node: &NodeDns, policy: Option<Policy>, config: Resolver, host_network: bool) -> (Resolver, Vec<Told>) {
        let ips = ["192.0.2.1".to_owned()];
        form(node, &ips, (&PodDns { policy, config }, host_network), ("ns", "web_ns(u1)")).unwrap()
    }

    #[test]
    fn a9_2a_a9_2b_a9_2c_the_policy_says_whose_servers_are_asked() {
        let cluster = resolver(
            &["10.96.0.10"],
            &["ns.svc.cluster.local", "svc.cluster.local", "cluster.local", "corp.example"],
            &["ndots:5"],
        );
        let host = resolver(&["192.0.2.53"], &["corp.example"], &["rotate"]);
        for (policy, host_network, expected) in [
            (None, false, &cluster),
            (None, true, &host),
            (Some(Policy::ClusterFirst), false, &cluster),
            (Some(Policy::ClusterFirst), true, &host),
            (Some(Policy::ClusterFirstWithHostNet), true, &cluster),
            (Some(Policy::Default), false, &host),
            (Some(Policy::None), false, &Resolver::default()),
        ] {
            let found = formed(&node(Some(HOST)), policy, Resolver::default(), host_network);
            assert_eq!(found, (expected.clone(), vec![]), "{policy:?} {host_network}");
        }
        let bare = NodeDns { cluster_domain: String::new(), ..node(Some(HOST)) };
        assert_eq!(formed(&bare, None, Resolver::default(), false).0.searches, ["corp.example"]);
    }

    #[test]
    fn a9_2b_who_asks_for_the_cluster_where_there_is_none_gets_the_nodes_and_is_told() {
        let none = NodeDns { cluster_servers: Vec::new(), ..node(Some(HOST)) };
        let host = resolver(&["192.0.2.53"], &["corp.example"], &["rotate"]);
        let (found, told) = formed(&none, Some(Policy::ClusterFirst), Resolver::default(), false);
        let said = "pod: \"web_ns(u1)\". kubelet does not have ClusterDNS IP configured and cannot create Pod using \
                    \"ClusterFirst\" policy. Falling back to \"Default\" policy.";
        assert_eq!((found, told), (host.clone(), vec![("MissingClusterDNS", said.to_owned())]));
        assert_eq!(formed(&none, None, Resolver::default(), false), (host, vec![]), "who says nothing is not told");
    }

    #[test]
    fn a9_2d_what_the_pod_wishes_is_added_and_its_options_win() {
        let wish = resolver(&["192.0.2.9", "10.96.0.10"], &["mine.example", "corp.example"], &["ndots:2", "edns0"]);
        let (found, told) = formed(&node(Some(HOST)), None, wish.clone(), false);
        let searches = ["ns.svc.cluster.local", "svc.cluster.local", "cluster.local", "corp.example", "mine.example"];
        assert_eq!(found, resolver(&["10.96.0.10", "192.0.2.9"], &searches, &["ndots:2", "edns0"]));
        assert_eq!(told, []);
        assert_eq!(formed(&node(Some(HOST)), Some(Policy::None), wish.clone(), false).0, wish);
    }

    #[test]
    fn a9_2e_what_is_beyond_the_limits_is_left_out_and_told() {
        let wish = |servers: usize, searches: Vec<String>| Resolver {
            servers: (0..servers).map(|n| format!("192.0.2.{n}")).collect(),
            searches,
            options: Vec::new(),
        };
        let none = |wish: Resolver| formed(&node(None), Some(Policy::None), wish, false);
        let (found, told) = none(wish(4, Vec::new()));
        assert_eq!(found.servers.len(), 3);
        let said = "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: \
                    192.0.2.0 192.0.2.1 192.0.2.2";
        assert_eq!(told, [("DNSConfigForming", said.to_owned())]);
        let (found, told) = none(wish(1, (0..33).map(|n| format!("d{n}")).collect()));
        assert_eq!((found.searches.len(), told.len()), (32, 1));
        let (found, told) = none(wish(1, vec!["a".to_owned(), "b".repeat(254), "c".to_owned()]));
        assert_eq!(found.searches, ["a", "c"]);
        let said =
            "Search Line limits were exceeded, some search paths have been omitted, the applied search line is: a c";
        assert_eq!(told, [("DNSConfigForming", said.to_owned())]);
        let (found, _) = none(wish(1, (0..31).map(|n| format!("{n:0>99}")).collect()));
        let line = found.searches.join(" ");
        assert!(line.len() <= MAX_SEARCH_CHARS && line.len() + 100 > MAX_SEARCH_CHARS, "{}", line.len());
        assert_eq!(none(wish(3, vec!["a".repeat(253); 40])).1, [], "what is said twice counts once");
    }

    #[test]
    fn a9_2f_a_resolv_conf_is_read_as_the_kubelet_does() {
        let text = "# a comment\nnameserver 192.0.2.1\nsearch old.example\nnameserver 192.0.2.2\n\
                    \tsearch a.example. b.example .\noptions ndots:2 edns0\n; nameserver 192.0.2.9\noptions ndots:3 rotate\n";
        let expected =
            resolver(&["192.0.2.1", "192.0.2.2"], &["a.example", "b.example"], &["ndots:3", "edns0", "rotate"]);
        assert_eq!(parse(text), Ok(expected));
        assert_eq!(parse("nameserver\n"), Err(ResolvConfError::NoServer));
        assert_eq!(parse(""), Ok(Resolver::default()));
    }

    #[test]
    fn a9_3e_the_host_name_is_the_whole_one_where_the_pod_says_so_and_it_fits() {
        let mut pod = PodSpec::unknown("u".into());
        (pod.hostname, pod.namespace) = ("web".to_owned(), "ns".to_owned());
        let name = |pod: &PodSpec| host_name_of(pod, "cluster.local").map_err(|error| error.to_string());
        pod.hostname_as_fqdn = true;
        assert_eq!((name(&pod), domain_of(&pod, "cluster.local")), (Ok("web".to_owned()), String::new()));
        pod.subdomain = "sub".to_owned();
        assert_eq!(name(&pod), Ok("web.sub.ns.svc.cluster.local".to_owned()));
        assert_eq!(name(&PodSpec { hostname_as_fqdn: false, ..pod.clone() }), Ok("web".to_owned()));
        pod.hostname = "w".repeat(41);
        let said = "is too long (64 characters is the max, 66 characters requested)";
        assert!(name(&pod).is_err_and(|error| error.ends_with(said)), "{:?}", name(&pod));
    }

    #[test]
    fn a9_2g_without_a_resolv_conf_names_are_looked_up_at_the_pod_itself() {
        let of = |ips: &[&str]| {
            let wish = PodDns { policy: Some(Policy::Default), ..PodDns::default() };
            form(&node(None), &texts(ips), (&wish, false), ("ns", "p")).unwrap().0
        };
        assert_eq!(of(&["192.0.2.1", "2001:db8::1"]), resolver(&["127.0.0.1", "::1"], &["."], &[]));
        assert_eq!(of(&[""]), resolver(&["127.0.0.1"], &["."], &[]));
    }
}
