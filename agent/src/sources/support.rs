//! Which fields of a pod beelet acts on.
//!
//! Problem: a pod has hundreds of fields. One that is ignored makes either no difference, or another pod than was asked for.
//! Approach: a table says of each field whether it is taken, has no meaning for a static pod, is left out with a warning, or is
//! refused. The manifest itself is walked, not the typed pod, so no field can be forgotten.
//!
//! Property: a field that is not in the table is refused. An empty one never is: it asks for nothing.

use crate::config::tree::{Fault, Node, Value, join};

/// What is done with a field.
#[derive(Clone, Copy, Debug)]
enum Verdict {
    /// It is acted on, or checked: another value makes another pod, or none (`effects` shows that of each).
    Take,
    /// It means nothing for a static pod, to a kubelet neither.
    NoMeaning,
    /// Its parts are looked at, each by itself.
    Group,
    /// It is left out, and the pod runs without it.
    Warn(&'static str),
    /// The pod would be another one without it.
    Refuse(&'static str),
    /// It refers to an object of the API: taken where somebody has those, else refused.
    Reference(&'static str),
    /// Fine with this value, which is also the default.
    Unless(&'static str, &'static Verdict),
}
use Verdict::{Group, NoMeaning, Reference, Refuse, Take, Unless, Warn};

const NOT_YET: Verdict = Refuse("not supported yet");
const NO_EFFECT: Verdict = Warn("has no effect yet");
const SECRETS: Verdict = Refuse("static pods may not reference secrets");
const SECRET_DATA: Verdict = Reference("static pods may not reference secrets");
const CONFIG_MAP_DATA: Verdict = Reference("static pods may not reference configmaps");
const CLAIMS: Verdict = Refuse("static pods may not reference persistentvolumeclaims");
const SERVICE_ACCOUNTS: Verdict = Refuse("static pods may not reference serviceaccounts");

/// Paths without indices; `initContainers` are as `containers`. What may not refer to the API is upstream's list
/// (pkg/api/v1/pod HasAPIObjectReference, pkg/kubelet/config/common.go, release 1.37).
const FIELDS: &[(&str, Verdict)] = &[
    ("apiVersion", Take),
    ("kind", Take),
    ("metadata", Group),
    ("metadata.annotations", Take),
    ("metadata.creationTimestamp", NoMeaning),
    ("metadata.deletionGracePeriodSeconds", NO_EFFECT),
    ("metadata.deletionTimestamp", NO_EFFECT),
    ("metadata.finalizers", NoMeaning),
    ("metadata.generateName", NoMeaning),
    ("metadata.generation", Take),
    ("metadata.labels", Take),
    ("metadata.managedFields", NoMeaning),
    ("metadata.name", Take),
    ("metadata.namespace", Take),
    ("metadata.ownerReferences", NoMeaning),
    ("metadata.resourceVersion", NoMeaning),
    ("metadata.selfLink", NoMeaning),
    ("metadata.uid", Take),
    ("spec", Group),
    ("spec.activeDeadlineSeconds", Take),
    ("spec.affinity", Group),
    ("spec.affinity.nodeAffinity", Group),
    ("spec.affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution", NoMeaning),
    ("spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution", Take),
    ("spec.affinity.podAffinity", NoMeaning),
    ("spec.affinity.podAntiAffinity", NoMeaning),
    ("spec.automountServiceAccountToken", NoMeaning),
    ("spec.containers", Group),
    ("spec.containers.args", Take),
    ("spec.containers.command", Take),
    ("spec.containers.env", Group),
    ("spec.containers.env.name", Take),
    ("spec.containers.env.value", Take),
    ("spec.containers.env.valueFrom", Group),
    ("spec.containers.env.valueFrom.configMapKeyRef", CONFIG_MAP_DATA),
    ("spec.containers.env.valueFrom.fieldRef", Group),
    ("spec.containers.env.valueFrom.fieldRef.apiVersion", Take),
    ("spec.containers.env.valueFrom.fieldRef.fieldPath", Take),
    ("spec.containers.env.valueFrom.fileKeyRef", Take),
    ("spec.containers.env.valueFrom.resourceFieldRef", Take),
    ("spec.containers.env.valueFrom.secretKeyRef", SECRET_DATA),
    ("spec.containers.envFrom", Group),
    ("spec.containers.envFrom.configMapRef", CONFIG_MAP_DATA),
    ("spec.containers.envFrom.prefix", Take),
    ("spec.containers.envFrom.secretRef", SECRET_DATA),
    ("spec.containers.image", Take),
    ("spec.containers.imagePullPolicy", Take),
    ("spec.containers.lifecycle", Group),
    ("spec.containers.lifecycle.postStart", Take),
    ("spec.containers.lifecycle.preStop", Take),
    // The kubelet's feature gate ContainerStopSignals is alpha, and off.
    ("spec.containers.lifecycle.stopSignal", NO_EFFECT),
    ("spec.containers.livenessProbe", Take),
    ("spec.containers.name", Take),
    ("spec.containers.ports", Group),
    ("spec.containers.ports.containerPort", Take),
    ("spec.containers.ports.hostIP", Take),
    ("spec.containers.ports.hostPort", Take),
    ("spec.containers.ports.name", Take),
    ("spec.containers.ports.protocol", Take),
    ("spec.containers.readinessProbe", Take),
    ("spec.containers.resizePolicy", Group),
    ("spec.containers.resizePolicy.resourceName", Take),
    ("spec.containers.resizePolicy.restartPolicy", Unless("NotRequired", &NO_EFFECT)),
    ("spec.containers.resources", Group),
    ("spec.containers.resources.claims", Refuse("static pods may not reference resourceclaims")),
    ("spec.containers.resources.limits", Take),
    ("spec.containers.resources.requests", Take),
    ("spec.containers.restartPolicy", Take),
    ("spec.containers.restartPolicyRules", Take),
    ("spec.containers.securityContext", Group),
    ("spec.containers.securityContext.allowPrivilegeEscalation", Take),
    ("spec.containers.securityContext.appArmorProfile", Group),
    ("spec.containers.securityContext.appArmorProfile.localhostProfile", Take),
    ("spec.containers.securityContext.appArmorProfile.type", Take),
    ("spec.containers.securityContext.capabilities", Take),
    ("spec.containers.securityContext.privileged", Take),
    ("spec.containers.securityContext.procMount", Take),
    ("spec.containers.securityContext.readOnlyRootFilesystem", Take),
    ("spec.containers.securityContext.runAsGroup", Take),
    ("spec.containers.securityContext.runAsNonRoot", Take),
    ("spec.containers.securityContext.runAsUser", Take),
    ("spec.containers.securityContext.seLinuxOptions", Take),
    ("spec.containers.securityContext.seccompProfile", Group),
    ("spec.containers.securityContext.seccompProfile.localhostProfile", Take),
    ("spec.containers.securityContext.seccompProfile.type", Take),
    ("spec.containers.startupProbe", Take),
    ("spec.containers.stdin", Take),
    ("spec.containers.stdinOnce", Unless("false", &NO_EFFECT)),
    ("spec.containers.terminationMessagePath", Take),
    ("spec.containers.terminationMessagePolicy", Take),
    ("spec.containers.tty", Take),
    ("spec.containers.volumeMounts", Group),
    ("spec.containers.volumeMounts.mountPath", Take),
    ("spec.containers.volumeMounts.mountPropagation", Take),
    ("spec.containers.volumeMounts.name", Take),
    ("spec.containers.volumeMounts.readOnly", Take),
    ("spec.containers.volumeMounts.recursiveReadOnly", Take),
    ("spec.containers.volumeMounts.subPath", Take),
    ("spec.containers.volumeMounts.subPathExpr", Take),
    ("spec.containers.workingDir", Take),
    ("spec.dnsConfig", Group),
    ("spec.dnsConfig.nameservers", Take),
    ("spec.dnsConfig.options", Take),
    ("spec.dnsConfig.searches", Take),
    ("spec.dnsPolicy", Take),
    ("spec.enableServiceLinks", NoMeaning),
    ("spec.ephemeralContainers", Refuse("static pods may not have ephemeral containers")),
    ("spec.hostAliases", Take),
    ("spec.hostIPC", Take),
    ("spec.hostNetwork", Take),
    ("spec.hostPID", Take),
    ("spec.hostUsers", Unless("true", &NOT_YET)),
    ("spec.hostname", Take),
    ("spec.imagePullSecrets", SECRETS),
    ("spec.nodeName", NoMeaning),
    ("spec.nodeSelector", Take),
    ("spec.os", Group),
    ("spec.os.name", Take),
    ("spec.preemptionPolicy", NoMeaning),
    ("spec.priority", Take),
    ("spec.priorityClassName", Take),
    ("spec.readinessGates", Group),
    ("spec.readinessGates.conditionType", Take),
    ("spec.resourceClaims", Refuse("static pods may not reference resourceclaims")),
    ("spec.restartPolicy", Take),
    ("spec.schedulerName", NoMeaning),
    ("spec.securityContext", Group),
    ("spec.securityContext.appArmorProfile", Group),
    ("spec.securityContext.appArmorProfile.localhostProfile", Take),
    ("spec.securityContext.appArmorProfile.type", Take),
    ("spec.securityContext.fsGroup", Take),
    // Of the volumes that there are, a kubelet looks at it for none: they are the pod's own, or not given to the group.
    ("spec.securityContext.fsGroupChangePolicy", Take),
    ("spec.securityContext.runAsGroup", Take),
    ("spec.securityContext.runAsNonRoot", Take),
    ("spec.securityContext.runAsUser", Take),
    // Of the volumes that there are, none can be mounted with a label: the runtime labels the files in any case.
    ("spec.securityContext.seLinuxChangePolicy", NoMeaning),
    ("spec.securityContext.seLinuxOptions", Take),
    ("spec.securityContext.seccompProfile", Group),
    ("spec.securityContext.seccompProfile.localhostProfile", Take),
    ("spec.securityContext.seccompProfile.type", Take),
    ("spec.securityContext.supplementalGroups", Take),
    ("spec.securityContext.supplementalGroupsPolicy", Take),
    ("spec.securityContext.sysctls", Take),
    ("spec.serviceAccount", SERVICE_ACCOUNTS),
    ("spec.serviceAccountName", SERVICE_ACCOUNTS),
    ("spec.setHostnameAsFQDN", Take),
    ("spec.shareProcessNamespace", Take),
    ("spec.subdomain", Take),
    ("spec.terminationGracePeriodSeconds", Take),
    ("spec.tolerations", Take),
    ("spec.topologySpreadConstraints", NoMeaning),
    ("spec.volumes", Group),
    ("spec.volumes.configMap", CONFIG_MAP_DATA),
    ("spec.volumes.downwardAPI", Take),
    ("spec.volumes.emptyDir", Group),
    ("spec.volumes.emptyDir.medium", Unless("Memory", &NOT_YET)),
    ("spec.volumes.emptyDir.sizeLimit", Take),
    ("spec.volumes.ephemeral", CLAIMS),
    ("spec.volumes.hostPath", Take),
    ("spec.volumes.name", Take),
    ("spec.volumes.persistentVolumeClaim", CLAIMS),
    ("spec.volumes.projected", Group),
    ("spec.volumes.projected.defaultMode", Take),
    ("spec.volumes.projected.sources", Group),
    ("spec.volumes.projected.sources.clusterTrustBundle", Refuse("static pods may not reference clustertrustbundles")),
    ("spec.volumes.projected.sources.configMap", CONFIG_MAP_DATA),
    ("spec.volumes.projected.sources.downwardAPI", Take),
    ("spec.volumes.projected.sources.podCertificate", Refuse("static pods may not reference podcertificates")),
    ("spec.volumes.projected.sources.secret", SECRET_DATA),
    ("spec.volumes.projected.sources.serviceAccountToken", SERVICE_ACCOUNTS),
    ("spec.volumes.secret", SECRET_DATA),
    ("status", NoMeaning),
];

/// Looks at every field of a manifest. Returns what is left out, by path. `references`: somebody has the objects that it may refer to.
pub(super) fn survey(pod: &Node, references: bool) -> Result<Vec<String>, Fault> {
    let mut survey = Survey { references, warnings: Vec::new() };
    survey.look(pod, "", "")?;
    Ok(survey.warnings)
}

struct Survey {
    references: bool,
    warnings: Vec<String>,
}

impl Survey {
    fn look(&mut self, node: &Node, rule: &str, path: &str) -> Result<(), Fault> {
        match &node.value {
            Value::Map(fields) => {
                for (name, line, field) in fields {
                    let at = join(path, name);
                    let name = if name == "initContainers" { "containers" } else { name };
                    let rule = join(rule, name);
                    self.judge(field, *line, verdict(&rule), &rule, &at)?;
                }
                Ok(())
            }
            Value::List(items) => {
                items.iter().enumerate().try_for_each(|(i, item)| self.look(item, rule, &format!("{path}[{i}]")))
            }
            _ => Ok(()),
        }
    }

    fn judge(&mut self, node: &Node, line: u64, verdict: Verdict, rule: &str, path: &str) -> Result<(), Fault> {
        // An empty source of a volume or of variables asks for one of that kind all the same.
        let source = ["spec.volumes.", "spec.containers.envFrom."].iter().any(|of| rule.starts_with(of));
        if asks_nothing(node) && !(source && matches!(node.value, Value::Map(_))) {
            return Ok(());
        }
        match verdict {
            Take | NoMeaning => Ok(()),
            Group => self.look(node, rule, path),
            Reference(_) if self.references => Ok(()),
            Warn(why) => {
                self.warnings.push(format!("{path}: {why}"));
                Ok(())
            }
            Refuse(why) | Reference(why) => Err(Fault { line, ..Fault::new(path, why) }),
            Unless(fine, otherwise) => {
                let given = match &node.value {
                    Value::Bool(v) => v.to_string(),
                    _ => node.text().unwrap_or_default().to_owned(),
                };
                if given == fine { Ok(()) } else { self.judge(node, line, *otherwise, rule, path) }
            }
        }
    }
}

fn verdict(rule: &str) -> Verdict {
    FIELDS.binary_search_by(|(name, _)| name.cmp(&rule)).map_or(NOT_YET, |index| FIELDS[index].1)
}

/// The rows of one kind, for tests: those that are taken, or those without a meaning.
#[cfg(test)]
pub(super) fn rows(taken: bool) -> impl Iterator<Item = &'static str> {
    let is = move |verdict: &Verdict| if taken { matches!(verdict, Take) } else { matches!(verdict, NoMeaning) };
    FIELDS.iter().filter(move |(_, verdict)| is(verdict)).map(|(name, _)| *name)
}

fn asks_nothing(node: &Node) -> bool {
    match &node.value {
        Value::Null => true,
        Value::Text(text) => text.is_empty(),
        Value::List(items) => items.is_empty(),
        Value::Map(fields) => fields.is_empty(),
        Value::Bool(_) | Value::Int(_) | Value::Float(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_order() {
        assert!(FIELDS.is_sorted_by(|a, b| a.0 < b.0));
        for (name, _) in FIELDS {
            let above = name.rsplit_once('.').map_or("spec", |(above, _)| above);
            assert!(matches!(verdict(above), Group), "{name} is never reached");
        }
    }
}
