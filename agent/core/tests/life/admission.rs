//! What is said of a pod before it runs: why it is turned away, and what of its manifest has no effect.

use super::*;

/// Why the pod was turned away; `None` if it was not.
fn turned_away(node: &Node, name: &str) -> Option<(String, String)> {
    let view = node.view(name);
    (view.state == "Rejected").then(|| (view.reason.clone(), view.message.clone()))
}

#[test]
fn a4_16i_a4_16k_a4_16l_what_the_node_cannot_do_turns_a_pod_away_before_anything_is_made() {
    let security = NodeSecurity { app_armor: false, se_linux: false, ..NodeSecurity::default() };
    let mut node = Node::new(NodeConfig { security, ..NodeConfig::default() });
    node.want(&[]);
    node.relist();
    let (mut sysctl, mut armed, mut strict, mut unlabelled) = (pod("sysctl"), pod("armed"), pod("strict"), pod("free"));
    sysctl.security.sysctls.insert("net.ipv4.ip_forward".to_owned(), "1".to_owned());
    armed.containers[0].security.app_armor = Some(Profile::RuntimeDefault);
    strict.security.groups_policy = GroupsPolicy::Strict;
    unlabelled.containers[0].security.app_armor = Some(Profile::Unconfined);
    node.want(&[&sysctl, &armed, &strict, &unlabelled]);
    for (name, reason) in
        [("sysctl", "SysctlForbidden"), ("armed", "AppArmor"), ("strict", "SupplementalGroupsPolicyNotSupported")]
    {
        assert_eq!(turned_away(&node, name).map(|(reason, _)| reason).as_deref(), Some(reason));
        assert_eq!(node.view(name).phase, Phase::Failed);
    }
    assert_eq!(node.view("free").phase, Phase::Running);
    assert_eq!(node.facts.sandboxes.len(), 1, "nothing was made for the others");
}

#[test]
fn a4_16l_strict_groups_are_admitted_where_the_runtime_says_that_it_can() {
    let mut node = ready_node();
    node.facts.features = RuntimeFeatures { groups_policy: true, ..RuntimeFeatures::default() };
    node.relist();
    let mut strict = pod("strict");
    strict.security.groups_policy = GroupsPolicy::Strict;
    node.want(&[&strict]);
    assert_eq!((turned_away(&node, "strict"), node.view("strict").phase), (None, Phase::Running));
}

/// The records of fields without an effect, by pod and message.
fn left_out(node: &Node) -> Vec<(String, String)> {
    let told = node.actions.iter().filter_map(|action| match action {
        Action::Record(record) if record.reason == "FieldsLeftOut" => {
            Some((record.name.clone(), record.message.clone()))
        }
        _ => None,
    });
    told.collect()
}

#[test]
fn what_is_left_out_of_a_manifest_is_told_once_and_again_when_it_changes() {
    let mut node = ready_node();
    let without =
        |fields: &[&str]| PodSpec { left_out: fields.iter().map(|f| (*f).to_owned()).collect(), ..pod("web") };
    let name = || "default/web".to_owned();
    node.want(&[&without(&["spec.affinity: not checked yet", "spec.subdomain: has no effect yet"])]);
    node.want(&[&without(&["spec.affinity: not checked yet", "spec.subdomain: has no effect yet"])]);
    let both = "spec.affinity: not checked yet; spec.subdomain: has no effect yet".to_owned();
    assert_eq!(left_out(&node), [(name(), both.clone())]);
    // The same UID, set by hand: the pod goes on, and the new text is told.
    let before = node.facts.containers.clone();
    node.want(&[&without(&["spec.affinity: not checked yet"])]);
    assert_eq!(left_out(&node), [(name(), both), (name(), "spec.affinity: not checked yet".to_owned())]);
    assert_eq!(node.facts.containers, before, "the pod was left alone");
    assert_eq!(node.view("web").spec.left_out, ["spec.affinity: not checked yet"]);
    node.want(&[&without(&[])]);
    assert_eq!((left_out(&node).len(), node.view("web").spec.left_out.len()), (2, 0));
}

#[test]
fn a10_13_labels_that_this_node_ignores_are_told() {
    let security = NodeSecurity { se_linux: false, ..NodeSecurity::default() };
    let mut node = Node::new(NodeConfig { security, ..NodeConfig::default() });
    node.want(&[]);
    node.relist();
    let mut labelled = pod("labelled");
    labelled.containers[0].security.se_linux = Some(SeLinux { level: "s0".to_owned(), ..SeLinux::default() });
    node.want(&[&labelled]);
    assert_eq!(node.view("labelled").phase, Phase::Running);
    let said = "securityContext.seLinuxOptions: no effect, SELinux is not enabled on this node".to_owned();
    assert_eq!(left_out(&node), [("default/labelled".to_owned(), said)]);
}
