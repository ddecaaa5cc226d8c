//! A container's hooks: the API server's checks (pkg/apis/core/validation, `validateLifecycle` and `validateHandler`, release 1.37).
//!
//! Names of ports become numbers, as of probes. The words of a command stay as they are: the kubelet expands nothing in them.

use beelet_core::spec::{Handler, Hook, Lifecycle, Port};
use beelet_core::units::Micros;
use k8s_openapi::api::core::v1 as api;

use super::convert::invalid;
use super::probe::{NOT_FOR_INIT, Of, command, one_handler};
use crate::config::tree::Fault;

/// The hooks of a container whose ports are known, in a pod with this grace period in seconds.
pub(super) fn lifecycle(path: &str, given: &api::Container, ports: &[Port], grace: u64) -> Result<Lifecycle, Fault> {
    let Some(hooks) = &given.lifecycle else { return Ok(Lifecycle::default()) };
    let path = format!("{path}.lifecycle");
    let hook = |name: &str, hook: &Option<api::LifecycleHandler>| {
        let made = hook.as_ref().map(|given| one(&format!("{path}.{name}"), given, ports, grace));
        made.transpose().map(|made| made.map(Box::new))
    };
    let made =
        Lifecycle { post_start: hook("postStart", &hooks.post_start)?, pre_stop: hook("preStop", &hooks.pre_stop)? };
    if path.starts_with("spec.initContainers[") && given.restart_policy.as_deref() != Some("Always") {
        return Err(Fault::new(path, NOT_FOR_INIT));
    }
    Ok(made)
}

fn one(path: &str, given: &api::LifecycleHandler, ports: &[Port], grace: u64) -> Result<Hook, Fault> {
    one_handler(
        path,
        &[
            ("exec", given.exec.is_some()),
            ("httpGet", given.http_get.is_some()),
            ("tcpSocket", given.tcp_socket.is_some()),
            ("sleep", given.sleep.is_some()),
        ],
    )?;
    let of = Of { env: &[], ports };
    if let Some(exec) = &given.exec {
        return Ok(Hook::Call(Handler::Exec { command: command(&format!("{path}.exec"), exec)?.to_vec() }));
    }
    if let Some(http) = &given.http_get {
        return of.http(&format!("{path}.httpGet"), http).map(Hook::Call);
    }
    if let Some(tcp) = &given.tcp_socket {
        return of.tcp(&format!("{path}.tcpSocket"), tcp).map(Hook::Call);
    }
    let secs = given.sleep.as_ref().map(|sleep| sleep.seconds).unwrap_or_default();
    let fits = u64::try_from(secs).ok().filter(|secs| *secs <= grace);
    fits.map(|secs| Hook::Sleep(Micros::secs(secs))).ok_or_else(|| {
        let why = format!("must be non-negative and less than terminationGracePeriodSeconds ({grace})");
        invalid(format!("{path}.sleep"), &secs.to_string(), &why)
    })
}

#[cfg(test)]
mod tests {
    use super::super::manifest::parse;
    use super::*;

    fn made(list: &str, lifecycle: &str) -> Result<Lifecycle, String> {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: web}}\nspec:\n  terminationGracePeriodSeconds: 20\n  {list}:\n  \
             - name: c\n    image: img:1\n    ports: [{{name: web, containerPort: 8080}}]\n    \
             env: [{{name: A, value: x}}]\n    lifecycle: {lifecycle}\n{}",
            if list == "containers" { "" } else { "  containers: [{name: main, image: img:1}]\n" }
        );
        match parse(text.as_bytes(), "f", "n").remove(0) {
            Ok(parsed) => {
                assert_eq!(parsed.spec.left_out, Vec::<String>::new());
                Ok(parsed.spec.all_containers().next().expect("one").lifecycle.clone())
            }
            Err(error) => Err(Fault { line: 0, ..error.fault }.to_string()),
        }
    }

    /// Rows: A4.6a, A4.6d.
    #[test]
    fn a4_6a_hooks_are_read_whole() {
        let hook = |text: &str| made("containers", &format!("{{postStart: {text}}}")).expect(text).post_start;
        let some = |hook| Some(Box::new(hook));
        let command = ["sh", "-c", "echo $(A) $$(A)"].map(str::to_owned).into();
        assert_eq!(
            hook("{exec: {command: [sh, -c, 'echo $(A) $$(A)']}}"),
            some(Hook::Call(Handler::Exec { command })),
            "nothing is expanded"
        );
        let http =
            Handler::Http { host: String::new(), port: 8080, path: "/".to_owned(), tls: true, headers: Vec::new() };
        assert_eq!(hook("{httpGet: {port: web, scheme: HTTPS}}"), some(Hook::Call(http)));
        // It fails when it is run, as upstream.
        assert_eq!(hook("{tcpSocket: {port: 5}}"), some(Hook::Call(Handler::Tcp { host: String::new(), port: 5 })));
        for secs in [0, 20] {
            let text = format!("{{sleep: {{seconds: {secs}}}}}");
            assert_eq!(hook(&text), some(Hook::Sleep(Micros::secs(secs))), "a4_6d");
        }
        let both = made("containers", "{preStop: {sleep: {seconds: 1}}}").expect("fine");
        assert_eq!((both.post_start, both.pre_stop), (None, some(Hook::Sleep(Micros::secs(1)))));
        assert_eq!(made("containers", "{}"), Ok(Lifecycle::default()));
    }

    #[test]
    fn a4_6a_what_the_api_server_refuses_is_refused_by_the_fields_name() {
        let bounds = "must be non-negative and less than terminationGracePeriodSeconds (20)";
        for (hook, field, told) in [
            ("{sleep: {seconds: 21}}", "postStart.sleep", bounds),
            ("{sleep: {seconds: -1}}", "postStart.sleep", bounds),
            ("{exec: {command: []}}", "postStart.exec.command", "Required value"),
            ("{httpGet: {port: 0}}", "postStart.httpGet.port", "must be between 1 and 65535"),
            (
                "{sleep: {seconds: 1}, exec: {command: [a]}}",
                "postStart.sleep",
                "Forbidden: may not specify more than 1 handler type",
            ),
            ("{sleep: {secs: 1}}", "postStart.sleep.secs", "unknown field"),
            ("{exec: {}, grpc: {port: 1}}", "postStart.grpc", "unknown field"),
        ] {
            let error = made("containers", &format!("{{postStart: {hook}}}")).expect_err(hook);
            let at = format!("spec.containers[0].lifecycle.{field}");
            assert!(error.contains(&at) && error.contains(told), "{hook}: {error}");
        }
        let error = made("initContainers", "{preStop: {sleep: {seconds: 1}}}").expect_err("an init container");
        assert!(error.contains("spec.initContainers[0].lifecycle") && error.contains(NOT_FOR_INIT), "{error}");
    }
}
