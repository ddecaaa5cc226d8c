//! That a field which is taken has an effect, and one without a meaning none: by name, for each row of the table.

use std::collections::BTreeMap;

use beelet_core::spec::PodSpec;

use super::manifest::parse;
use super::support;

/// What is made of a manifest, without what follows from any change of it.
fn made(text: &str) -> Result<PodSpec, String> {
    let parsed = parse(text.as_bytes(), "/pods/web.yaml", "node").remove(0).map_err(|error| error.to_string())?;
    let mut spec = PodSpec::clone(&parsed.spec);
    // A UID that is set stays; what is made up is a hash of all.
    if spec.uid.as_str().len() == 32 {
        spec.uid = "made".into();
        spec.annotations.remove("kubernetes.io/config.hash");
    }
    Ok(spec)
}

/// A manifest with these entries, each in flow style, of the metadata, the spec, and the one container.
fn manifest(meta: &str, spec: &str, container: &str) -> String {
    let entries = |fixed: &str, more: &str| if more.is_empty() { fixed.to_owned() } else { format!("{fixed}, {more}") };
    let meta = if meta.starts_with("name:") { meta.to_owned() } else { entries("name: web", meta) };
    let container = match container {
        name if name.starts_with("name:") => entries("image: 'img:1'", name),
        image if image.starts_with("image:") => entries("name: main", image),
        other => entries("name: main, image: 'img:1'", other),
    };
    let spec = entries(&format!("containers: [{{{container}}}]"), spec);
    format!("{{apiVersion: v1, kind: Pod, metadata: {{{meta}}}, spec: {{{spec}}}}}")
}

/// A node affinity that requires this term.
fn required(term: &str) -> String {
    format!(
        "affinity: {{nodeAffinity: {{requiredDuringSchedulingIgnoredDuringExecution: {{nodeSelectorTerms: [{term}]}}}}}}"
    )
}

/// Of each row that is taken: the entries without the field, and with it.
fn samples() -> BTreeMap<&'static str, (String, String)> {
    let pod = |without: &str, with: &str| (manifest("", without, ""), manifest("", with, ""));
    let own = |without: &str, with: &str| (manifest("", "", without), manifest("", "", with));
    let meta = |with: &str| (manifest("", "", ""), manifest(with, "", ""));
    let mounted = |without: &str, with: &str| {
        let of =
            |entries: &str| manifest("", "volumes: [{name: v}, {name: w}]", &format!("volumeMounts: [{{{entries}}}]"));
        (of(without), of(with))
    };
    let plain = || manifest("", "", "");
    let context = |with: &str| pod("", &format!("securityContext: {{{with}}}"));
    let own_context = |with: &str| own("", &format!("securityContext: {{{with}}}"));
    BTreeMap::from([
        ("apiVersion", (plain(), plain().replace("v1", "v2"))),
        ("kind", (plain(), plain().replace("Pod", "Job"))),
        ("metadata.annotations", meta("annotations: {a: b}")),
        ("metadata.generation", meta("generation: 3")),
        ("metadata.labels", meta("labels: {a: b}")),
        ("metadata.name", meta("name: other")),
        ("metadata.namespace", meta("namespace: other")),
        ("metadata.uid", meta("uid: other")),
        ("spec.containers.args", own("", "args: [a]")),
        ("spec.containers.command", own("", "command: [a]")),
        ("spec.containers.env.name", own("env: [{name: A}]", "env: [{name: B}]")),
        ("spec.containers.env.value", own("env: [{name: A}]", "env: [{name: A, value: b}]")),
        (
            "spec.containers.env.valueFrom.fieldRef.apiVersion",
            own(
                "env: [{name: A, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]",
                "env: [{name: A, valueFrom: {fieldRef: {fieldPath: metadata.name, apiVersion: v2}}}]",
            ),
        ),
        (
            "spec.containers.env.valueFrom.fieldRef.fieldPath",
            own(
                "env: [{name: A, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]",
                "env: [{name: A, valueFrom: {fieldRef: {fieldPath: metadata.uid}}}]",
            ),
        ),
        (
            "spec.containers.env.valueFrom.fileKeyRef",
            (
                manifest("", "volumes: [{name: v}]", "env: [{name: A}]"),
                manifest(
                    "",
                    "volumes: [{name: v}]",
                    "env: [{name: A, valueFrom: {fileKeyRef: {volumeName: v, path: a, key: A}}}]",
                ),
            ),
        ),
        (
            "spec.containers.env.valueFrom.resourceFieldRef",
            own("env: [{name: A}]", "env: [{name: A, valueFrom: {resourceFieldRef: {resource: limits.cpu}}}]"),
        ),
        ("spec.containers.envFrom.prefix", own("", "envFrom: [{prefix: A}]")),
        ("spec.containers.image", own("", "image: 'img:2'")),
        ("spec.containers.imagePullPolicy", own("", "imagePullPolicy: Never")),
        ("spec.containers.name", own("", "name: other")),
        ("spec.containers.ports.containerPort", own("ports: [{containerPort: 1}]", "ports: [{containerPort: 2}]")),
        (
            "spec.containers.ports.hostIP",
            own("ports: [{containerPort: 1}]", "ports: [{containerPort: 1, hostIP: 127.0.0.1}]"),
        ),
        (
            "spec.containers.ports.hostPort",
            own("ports: [{containerPort: 1}]", "ports: [{containerPort: 1, hostPort: 2}]"),
        ),
        ("spec.containers.ports.name", own("ports: [{containerPort: 1}]", "ports: [{containerPort: 1, name: http}]")),
        (
            "spec.containers.ports.protocol",
            own("ports: [{containerPort: 1}]", "ports: [{containerPort: 1, protocol: UDP}]"),
        ),
        // Which resource it is of follows from its place; its value is judged by the row beside it.
        (
            "spec.containers.resizePolicy.resourceName",
            own("", "resizePolicy: [{resourceName: cpu, restartPolicy: RestartContainer}]"),
        ),
        ("spec.containers.resources.limits", own("", "resources: {limits: {cpu: 1}}")),
        ("spec.containers.resources.requests", own("", "resources: {requests: {cpu: 1}}")),
        ("spec.containers.securityContext.allowPrivilegeEscalation", own_context("allowPrivilegeEscalation: false")),
        (
            "spec.containers.securityContext.appArmorProfile.localhostProfile",
            own_context("appArmorProfile: {type: Localhost, localhostProfile: a}"),
        ),
        ("spec.containers.securityContext.appArmorProfile.type", own_context("appArmorProfile: {type: Unconfined}")),
        ("spec.containers.securityContext.capabilities", own_context("capabilities: {add: [A]}")),
        ("spec.containers.securityContext.privileged", own_context("privileged: true")),
        ("spec.containers.securityContext.procMount", own_context("procMount: Unmasked")),
        ("spec.containers.securityContext.readOnlyRootFilesystem", own_context("readOnlyRootFilesystem: true")),
        ("spec.containers.securityContext.runAsGroup", own_context("runAsGroup: 1")),
        ("spec.containers.securityContext.runAsNonRoot", own_context("runAsNonRoot: true")),
        ("spec.containers.securityContext.runAsUser", own_context("runAsUser: 1")),
        ("spec.containers.securityContext.seLinuxOptions", own_context("seLinuxOptions: {level: s0}")),
        (
            "spec.containers.securityContext.seccompProfile.localhostProfile",
            own_context("seccompProfile: {type: Localhost, localhostProfile: a}"),
        ),
        ("spec.containers.securityContext.seccompProfile.type", own_context("seccompProfile: {type: Unconfined}")),
        ("spec.containers.stdin", own("", "stdin: true")),
        ("spec.containers.tty", own("", "tty: true")),
        ("spec.containers.volumeMounts.mountPath", mounted("name: v, mountPath: /a", "name: v, mountPath: /b")),
        (
            "spec.containers.volumeMounts.mountPropagation",
            mounted("name: v, mountPath: /a", "name: v, mountPath: /a, mountPropagation: HostToContainer"),
        ),
        (
            "spec.containers.volumeMounts.recursiveReadOnly",
            mounted(
                "name: v, mountPath: /a, readOnly: true",
                "name: v, mountPath: /a, readOnly: true, recursiveReadOnly: IfPossible",
            ),
        ),
        (
            "spec.containers.volumeMounts.subPath",
            mounted("name: v, mountPath: /a", "name: v, mountPath: /a, subPath: b"),
        ),
        (
            "spec.containers.volumeMounts.subPathExpr",
            mounted("name: v, mountPath: /a", "name: v, mountPath: /a, subPathExpr: b"),
        ),
        ("spec.securityContext.fsGroupChangePolicy", context("fsGroupChangePolicy: Sometimes")),
        ("spec.containers.volumeMounts.name", mounted("name: v, mountPath: /a", "name: w, mountPath: /a")),
        (
            "spec.containers.volumeMounts.readOnly",
            mounted("name: v, mountPath: /a", "name: v, mountPath: /a, readOnly: true"),
        ),
        ("spec.containers.workingDir", own("", "workingDir: /a")),
        ("spec.dnsConfig.nameservers", pod("", "dnsConfig: {nameservers: [192.0.2.1]}")),
        ("spec.dnsConfig.options", pod("", "dnsConfig: {options: [{name: rotate}]}")),
        ("spec.dnsConfig.searches", pod("", "dnsConfig: {searches: [a.example]}")),
        ("spec.dnsPolicy", pod("", "dnsPolicy: Default")),
        ("spec.hostAliases", pod("", "hostAliases: [{ip: 192.0.2.1, hostnames: [a]}]")),
        ("spec.hostIPC", pod("", "hostIPC: true")),
        ("spec.hostNetwork", pod("", "hostNetwork: true")),
        ("spec.hostPID", pod("", "hostPID: true")),
        ("spec.hostname", pod("", "hostname: other")),
        (
            "spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution",
            pod("", &required("{matchFields: [{key: metadata.name, operator: In, values: [n]}]}")),
        ),
        ("spec.nodeSelector", pod("", "nodeSelector: {a: b}")),
        ("spec.os.name", pod("", "os: {name: windows}")),
        ("spec.tolerations", pod("", "tolerations: [{operator: Exists}]")),
        ("spec.priority", pod("", "priority: 1")),
        ("spec.priorityClassName", pod("", "priorityClassName: system-node-critical")),
        ("spec.readinessGates.conditionType", pod("", "readinessGates: [{conditionType: a/b}]")),
        ("spec.restartPolicy", pod("", "restartPolicy: Never")),
        (
            "spec.securityContext.appArmorProfile.localhostProfile",
            context("appArmorProfile: {type: Localhost, localhostProfile: a}"),
        ),
        ("spec.securityContext.appArmorProfile.type", context("appArmorProfile: {type: Unconfined}")),
        ("spec.securityContext.fsGroup", context("fsGroup: 1")),
        ("spec.securityContext.runAsGroup", context("runAsGroup: 1")),
        ("spec.securityContext.runAsNonRoot", context("runAsNonRoot: true")),
        ("spec.securityContext.runAsUser", context("runAsUser: 1")),
        ("spec.securityContext.seLinuxOptions", context("seLinuxOptions: {level: s0}")),
        (
            "spec.securityContext.seccompProfile.localhostProfile",
            context("seccompProfile: {type: Localhost, localhostProfile: a}"),
        ),
        ("spec.securityContext.seccompProfile.type", context("seccompProfile: {type: Unconfined}")),
        ("spec.securityContext.supplementalGroups", context("supplementalGroups: [1]")),
        ("spec.securityContext.supplementalGroupsPolicy", context("supplementalGroupsPolicy: Strict")),
        ("spec.securityContext.sysctls", context("sysctls: [{name: kernel.sem, value: '1'}]")),
        ("spec.activeDeadlineSeconds", pod("", "activeDeadlineSeconds: 60")),
        ("spec.containers.lifecycle.postStart", own("", "lifecycle: {postStart: {sleep: {seconds: 1}}}")),
        ("spec.containers.lifecycle.preStop", own("", "lifecycle: {preStop: {sleep: {seconds: 1}}}")),
        ("spec.containers.livenessProbe", own("", "livenessProbe: {tcpSocket: {port: 1}}")),
        ("spec.containers.readinessProbe", own("", "readinessProbe: {tcpSocket: {port: 1}}")),
        ("spec.containers.startupProbe", own("", "startupProbe: {tcpSocket: {port: 1}}")),
        ("spec.containers.restartPolicy", own("", "restartPolicy: Never")),
        (
            "spec.containers.restartPolicyRules",
            own(
                "restartPolicy: Never",
                "restartPolicy: Never, restartPolicyRules: [{action: Restart, exitCodes: {operator: In, values: [1]}}]",
            ),
        ),
        ("spec.containers.terminationMessagePath", own("", "terminationMessagePath: /a")),
        ("spec.containers.terminationMessagePolicy", own("", "terminationMessagePolicy: FallbackToLogsOnError")),
        ("spec.setHostnameAsFQDN", pod("", "setHostnameAsFQDN: true")),
        ("spec.shareProcessNamespace", pod("", "shareProcessNamespace: true")),
        ("spec.subdomain", pod("", "subdomain: sub")),
        ("spec.terminationGracePeriodSeconds", pod("", "terminationGracePeriodSeconds: 1")),
        (
            "spec.volumes.emptyDir.sizeLimit",
            pod("volumes: [{name: v}]", "volumes: [{name: v, emptyDir: {sizeLimit: 1Mi}}]"),
        ),
        ("spec.volumes.downwardAPI", pod("volumes: [{name: v}]", "volumes: [{name: v, downwardAPI: {}}]")),
        (
            "spec.volumes.projected.defaultMode",
            pod("volumes: [{name: v, projected: {}}]", "volumes: [{name: v, projected: {defaultMode: 256}}]"),
        ),
        (
            "spec.volumes.projected.sources.downwardAPI",
            pod(
                "volumes: [{name: v, projected: {}}]",
                "volumes: [{name: v, projected: {sources: [{downwardAPI: {items: [{path: a, fieldRef: {fieldPath: metadata.name}}]}}]}}]",
            ),
        ),
        ("spec.volumes.hostPath", pod("volumes: [{name: v}]", "volumes: [{name: v, hostPath: {path: /a}}]")),
        ("spec.volumes.name", pod("volumes: [{name: v}]", "volumes: [{name: w}]")),
    ])
}

#[test]
fn f11_each_field_that_is_taken_has_an_effect() {
    let samples = samples();
    for field in support::rows(true) {
        let (without, with) = samples.get(field).unwrap_or_else(|| panic!("{field} is taken; what is its effect?"));
        let base = made(without).unwrap_or_else(|error| panic!("{field}: {error}\n{without}"));
        assert_ne!(Ok(base), made(with), "{field} is taken and has no effect\n{with}");
    }
    for field in samples.keys() {
        assert!(support::rows(true).any(|row| row == *field), "{field} is not taken (any more)");
    }
}

#[test]
fn f11_a_field_without_a_meaning_changes_nothing_and_is_not_warned_of() {
    let in_spec = |text: &str| manifest("", text, "");
    let in_meta = |text: &str| manifest(text, "", "");
    let zone = "{matchExpressions: [{key: a, operator: Exists}]}";
    let near = "{requiredDuringSchedulingIgnoredDuringExecution: [{topologyKey: a}]}";
    let samples = BTreeMap::from([
        ("metadata.creationTimestamp", in_meta("creationTimestamp: '2026-01-01T00:00:00Z'")),
        ("metadata.finalizers", in_meta("finalizers: [a/b]")),
        ("metadata.generateName", in_meta("generateName: web-")),
        ("metadata.managedFields", in_meta("managedFields: [{manager: kubectl}]")),
        ("metadata.ownerReferences", in_meta("ownerReferences: [{apiVersion: v1, kind: Node, name: n, uid: u}]")),
        ("metadata.resourceVersion", in_meta("resourceVersion: '1'")),
        ("metadata.selfLink", in_meta("selfLink: /api")),
        ("spec.automountServiceAccountToken", in_spec("automountServiceAccountToken: true")),
        ("spec.enableServiceLinks", in_spec("enableServiceLinks: true")),
        ("spec.nodeName", in_spec("nodeName: other")),
        ("spec.preemptionPolicy", in_spec("preemptionPolicy: Never")),
        ("spec.schedulerName", in_spec("schedulerName: mine")),
        ("spec.securityContext.seLinuxChangePolicy", in_spec("securityContext: {seLinuxChangePolicy: Recursive}")),
        (
            "spec.affinity.nodeAffinity.preferredDuringSchedulingIgnoredDuringExecution",
            in_spec(&format!(
                "affinity: {{nodeAffinity: {{preferredDuringSchedulingIgnoredDuringExecution: [{{weight: 1, preference: {zone}}}]}}}}"
            )),
        ),
        ("spec.affinity.podAffinity", in_spec(&format!("affinity: {{podAffinity: {near}}}"))),
        ("spec.affinity.podAntiAffinity", in_spec(&format!("affinity: {{podAntiAffinity: {near}}}"))),
        (
            "spec.topologySpreadConstraints",
            in_spec("topologySpreadConstraints: [{maxSkew: 1, topologyKey: a, whenUnsatisfiable: DoNotSchedule}]"),
        ),
        ("status", in_spec("").replacen("{apiVersion", "{status: {phase: Running}, apiVersion", 1)),
    ]);
    let base = made(&in_spec("")).unwrap();
    for field in support::rows(false) {
        let with = samples.get(field).unwrap_or_else(|| panic!("{field} has no meaning; show it"));
        assert_eq!(made(with).as_ref(), Ok(&base), "{field}");
    }
    assert_eq!(support::rows(false).count(), samples.len());
}
