//! Names: whom a pod asks for them, and which it has written down.
//!
//! The texts are those of pkg/apis/core/validation (release 1.36).

use beelet_core::dns::{MAX_SEARCH_CHARS, MAX_SEARCHES, MAX_SERVERS, PodDns, Policy, Resolver};
use beelet_core::spec::HostAlias;
use k8s_openapi::api::core::v1 as api;

use super::{invalid, one_of};
use crate::config::tree::Fault;
use crate::sources::names::{LABEL, SUBDOMAIN, is_dns1123_label, is_dns1123_subdomain};

/// `dnsPolicy` and `dnsConfig`.
pub(super) fn dns(spec: &api::PodSpec) -> Result<PodDns, Fault> {
    let policy = one_of(
        "spec.dnsPolicy",
        spec.dns_policy.as_deref(),
        None,
        &[
            ("ClusterFirst", Some(Policy::ClusterFirst)),
            ("ClusterFirstWithHostNet", Some(Policy::ClusterFirstWithHostNet)),
            ("Default", Some(Policy::Default)),
            ("None", Some(Policy::None)),
        ],
    )?;
    let path = "spec.dnsConfig";
    let given = spec.dns_config.clone().unwrap_or_default();
    let (servers, searches) = (given.nameservers.unwrap_or_default(), given.searches.unwrap_or_default());
    if policy == Some(Policy::None) && servers.is_empty() {
        let why = match spec.dns_config {
            None => "Required value: must provide `dnsConfig` when `dnsPolicy` is None",
            Some(_) => "Required value: must provide at least one DNS nameserver when `dnsPolicy` is None",
        };
        return Err(Fault::new(
            if spec.dns_config.is_none() { path.to_owned() } else { format!("{path}.nameservers") },
            why,
        ));
    }
    if servers.len() > MAX_SERVERS {
        let why = format!("must not have more than {MAX_SERVERS} nameservers");
        return Err(invalid(format!("{path}.nameservers"), &servers.join(" "), why));
    }
    for (i, server) in servers.iter().enumerate() {
        address(&format!("{path}.nameservers[{i}]"), server)?;
    }
    let line = searches.join(" ");
    if searches.len() > MAX_SEARCHES || line.len() > MAX_SEARCH_CHARS {
        let why = format!(
            "must not have more than {MAX_SEARCHES} search paths and {MAX_SEARCH_CHARS} characters (including spaces)"
        );
        return Err(invalid(format!("{path}.searches"), &line, why));
    }
    for (i, search) in searches.iter().enumerate() {
        // Names of services may have underscores, and "." is the root.
        let plain = search.strip_suffix('.').unwrap_or(search).replace('_', "a");
        if search != "." && !is_dns1123_subdomain(&plain) {
            return Err(invalid(format!("{path}.searches[{i}]"), search, SUBDOMAIN));
        }
    }
    let mut options = Vec::new();
    for (i, option) in given.options.into_iter().flatten().enumerate() {
        let name = option.name.unwrap_or_default();
        if name.is_empty() {
            return Err(Fault::new(format!("{path}.options[{i}]"), "Required value: must not be empty"));
        }
        let value = option.value.filter(|value| !value.is_empty());
        if [Some(&name), value.as_ref()].into_iter().flatten().any(|text| text.contains(char::is_whitespace)) {
            return Err(invalid(format!("{path}.options[{i}]"), &name, "must not have white space"));
        }
        options.push(value.map_or(name.clone(), |value| format!("{name}:{value}")));
    }
    Ok(PodDns { policy, config: Resolver { servers, searches, options } })
}

/// `subdomain`.
pub(super) fn subdomain(spec: &api::PodSpec) -> Result<String, Fault> {
    let given = spec.subdomain.clone().unwrap_or_default();
    if given.is_empty() || is_dns1123_label(&given) { Ok(given) } else { Err(invalid("spec.subdomain", &given, LABEL)) }
}

/// `hostAliases`.
pub(super) fn host_aliases(spec: &api::PodSpec) -> Result<Vec<HostAlias>, Fault> {
    let mut made = Vec::new();
    for (i, given) in spec.host_aliases.iter().flatten().enumerate() {
        let path = format!("spec.hostAliases[{i}]");
        address(&format!("{path}.ip"), &given.ip)?;
        let names = given.hostnames.clone().unwrap_or_default();
        if let Some((j, name)) = names.iter().enumerate().find(|(_, name)| !is_dns1123_subdomain(name)) {
            return Err(invalid(format!("{path}.hostnames[{j}]"), name, SUBDOMAIN));
        }
        made.push(HostAlias { ip: given.ip.clone(), names });
    }
    Ok(made)
}

fn address(path: &str, text: &str) -> Result<(), Fault> {
    match text.parse::<std::net::IpAddr>() {
        Ok(_) => Ok(()),
        Err(_) => Err(invalid(path, text, "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)")),
    }
}
