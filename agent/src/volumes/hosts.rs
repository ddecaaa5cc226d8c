//! The pod's hosts file.

use std::fmt::Write as _;

use beelet_core::dns::domain_of;
use beelet_core::spec::PodSpec;

/// Names that every hosts file of a pod has, as the kubelet writes them (pkg/kubelet/kubelet_pods.go, managedHostsFileContent).
const FIXED: [(&str, &str); 6] = [
    ("127.0.0.1", "localhost"),
    ("::1", "localhost ip6-localhost ip6-loopback"),
    ("fe00::0", "ip6-localnet"),
    ("fe00::0", "ip6-mcastprefix"),
    ("fe00::1", "ip6-allnodes"),
    ("fe00::2", "ip6-allrouters"),
];

/// The content: the node's own file under a header for a pod on the node's network, else localhost and the pod's name at its
/// address (left out while that is not known, i.e. ""), with its domain if it has one; then the pod's aliases.
#[must_use]
pub fn hosts_content(spec: &PodSpec, pod_ip: &str, cluster_domain: &str, node_hosts: Option<&str>) -> String {
    if let Some(node) = node_hosts.filter(|_| spec.host_network) {
        return format!("# Kubernetes-managed hosts file (host network).\n{node}{}", aliases(spec));
    }
    let mut text = "# Kubernetes-managed hosts file.\n".to_owned();
    let names = match (&spec.hostname, domain_of(spec, cluster_domain)) {
        (name, domain) if domain.is_empty() => name.clone(),
        (name, domain) => format!("{name}.{domain}\t{name}"),
    };
    let own = [(pod_ip, names.as_str())];
    for (address, names) in FIXED.iter().chain(own.iter().filter(|(ip, _)| !ip.is_empty())) {
        // Writing to a String cannot fail.
        let _ok = writeln!(text, "{address}\t{names}");
    }
    text + &aliases(spec)
}

fn aliases(spec: &PodSpec) -> String {
    if spec.host_aliases.is_empty() {
        return String::new();
    }
    let lines = spec.host_aliases.iter().map(|alias| format!("{}\t{}\n", alias.ip, alias.names.join("\t")));
    format!("\n# Entries added by HostAliases.\n{}", lines.collect::<String>())
}
