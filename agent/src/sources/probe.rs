//! A container's probes: the API server's checks and defaults (pkg/apis/core/validation, `validateProbe`, and
//! pkg/apis/core/v1/defaults.go, `SetDefaults_Probe`, release 1.37).
//!
//! Names of ports become numbers here. A name that the container does not have is refused: the kubelet runs such a pod, and every one
//! of its probes is an error.

use beelet_core::spec::{EnvValue, EnvVar, Handler, Port, Probe, Probes};
use beelet_core::units::Micros;
use k8s_openapi::api::core::v1 as api;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::convert::{invalid, one_of, required};
use super::names::port_name_fault;
use crate::config::tree::{Fault, did_you_mean};
use crate::runtime::env::expand;

pub(super) const NOT_FOR_INIT: &str = "Forbidden: may not be set for init containers without restartPolicy=Always";

/// The probes of a container whose variables and ports are known.
pub(super) fn probes(path: &str, given: &api::Container, env: &[EnvVar], ports: &[Port]) -> Result<Probes, Fault> {
    let all = [
        ("livenessProbe", &given.liveness_probe),
        ("readinessProbe", &given.readiness_probe),
        ("startupProbe", &given.startup_probe),
    ];
    let given_restart = given.restart_policy.as_deref();
    let mut made = Probes::default();
    for (field, given) in all {
        let Some(given) = given else { continue };
        let path = format!("{path}.{field}");
        if path.starts_with("spec.initContainers[") && given_restart != Some("Always") {
            return Err(Fault::new(path, NOT_FOR_INIT));
        }
        let of = Of { env, ports };
        let probe = Some(Box::new(of.probe(&path, given, field == "readinessProbe")?));
        match field {
            "livenessProbe" => made.liveness = probe,
            "readinessProbe" => made.readiness = probe,
            _ => made.startup = probe,
        }
    }
    Ok(made)
}

/// What a probe refers to.
#[derive(Clone, Copy)]
pub(super) struct Of<'a> {
    pub(super) env: &'a [EnvVar],
    pub(super) ports: &'a [Port],
}

impl Of<'_> {
    fn probe(self, path: &str, given: &api::Probe, readiness: bool) -> Result<Probe, Fault> {
        let handler = self.handler(path, given)?;
        // Zero is the default, as in the API server.
        let number = |field: &str, value: Option<i32>, default: u32| {
            let value = value.unwrap_or_default();
            let at_least =
                || invalid(format!("{path}.{field}"), &value.to_string(), "must be greater than or equal to 0");
            u32::try_from(value).map_err(|_| at_least()).map(|value| if value == 0 { default } else { value })
        };
        let secs = |field: &str, value, default| number(field, value, default).map(|s| Micros::secs(u64::from(s)));
        let initial_delay = secs("initialDelaySeconds", given.initial_delay_seconds, 0)?;
        let timeout = secs("timeoutSeconds", given.timeout_seconds, 1)?;
        let period = secs("periodSeconds", given.period_seconds, 10)?;
        let success_threshold = number("successThreshold", given.success_threshold, 1)?;
        let failure_threshold = number("failureThreshold", given.failure_threshold, 3)?;
        let at = format!("{path}.terminationGracePeriodSeconds");
        let grace = match given.termination_grace_period_seconds {
            None => None,
            Some(given) if readiness => {
                return Err(invalid(at, &given.to_string(), "must not be set for readinessProbes"));
            }
            Some(given) => match u64::try_from(given) {
                Ok(secs) if secs > 0 => Some(Micros::secs(secs)),
                _ => return Err(invalid(at, &given.to_string(), "must be greater than 0")),
            },
        };
        if !readiness && success_threshold != 1 {
            return Err(invalid(format!("{path}.successThreshold"), &success_threshold.to_string(), "must be 1"));
        }
        Ok(Probe { handler, initial_delay, timeout, period, success_threshold, failure_threshold, grace })
    }

    fn handler(self, path: &str, given: &api::Probe) -> Result<Handler, Fault> {
        let there = [
            ("exec", given.exec.is_some()),
            ("httpGet", given.http_get.is_some()),
            ("tcpSocket", given.tcp_socket.is_some()),
            ("grpc", given.grpc.is_some()),
        ];
        one_handler(path, &there)?;
        if let Some(exec) = &given.exec {
            return self.exec(&format!("{path}.exec"), exec);
        }
        if let Some(http) = &given.http_get {
            return self.http(&format!("{path}.httpGet"), http);
        }
        if let Some(tcp) = &given.tcp_socket {
            return self.tcp(&format!("{path}.tcpSocket"), tcp);
        }
        let grpc = given.grpc.clone().unwrap_or_default();
        let port = self.port(format!("{path}.grpc.port"), &IntOrString::Int(grpc.port))?;
        Ok(Handler::Grpc { port, service: grpc.service.unwrap_or_default() })
    }

    fn exec(self, path: &str, given: &api::ExecAction) -> Result<Handler, Fault> {
        let command = command(path, given)?;
        // As they are written: what comes from elsewhere is empty here, as upstream (ExpandContainerCommandOnlyStatic).
        let value = |v: &EnvVar| match &v.value {
            EnvValue::Literal(text) => text.clone(),
            _ => String::new(),
        };
        let variables: Vec<(String, String)> = self.env.iter().map(|v| (v.name.clone(), value(v))).collect();
        Ok(Handler::Exec { command: command.iter().map(|word| expand(word, &variables)).collect() })
    }

    pub(super) fn tcp(self, path: &str, given: &api::TCPSocketAction) -> Result<Handler, Fault> {
        let port = self.port(format!("{path}.port"), &given.port)?;
        Ok(Handler::Tcp { host: given.host.clone().unwrap_or_default(), port })
    }

    pub(super) fn http(self, path: &str, given: &api::HTTPGetAction) -> Result<Handler, Fault> {
        let port = self.port(format!("{path}.port"), &given.port)?;
        if given.protocol.is_some() {
            return Err(Fault::new(format!("{path}.protocol"), "not supported yet: HTTP/1.1 is spoken"));
        }
        let schemes = [("HTTP", false), ("HTTPS", true)];
        let tls = one_of(&format!("{path}.scheme"), given.scheme.as_deref(), false, &schemes)?;
        let mut headers = Vec::new();
        for header in given.http_headers.iter().flatten() {
            let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-';
            if header.name.is_empty() || !header.name.bytes().all(plain) {
                let why = "a valid HTTP header must consist of alphanumeric characters or '-' (e.g. 'X-Header-Name', \
                           regex used for validation is '[-A-Za-z0-9]+')";
                return Err(invalid(format!("{path}.httpHeaders"), &header.name, why));
            }
            headers.push((header.name.clone(), header.value.clone()));
        }
        let target = given.path.clone().filter(|path| !path.is_empty()).unwrap_or_else(|| "/".to_owned());
        Ok(Handler::Http { host: given.host.clone().unwrap_or_default(), port, path: target, tls, headers })
    }

    fn port(self, path: String, given: &IntOrString) -> Result<u16, Fault> {
        match given {
            IntOrString::Int(number) => port_number(path, *number),
            IntOrString::String(name) => {
                if let Some(why) = port_name_fault(name) {
                    return Err(invalid(path, name, why));
                }
                let port = self.ports.iter().find(|port| port.name == *name);
                port.map(|port| port.container_port).ok_or_else(|| {
                    let hint = did_you_mean(name, self.ports.iter().map(|port| port.name.as_str()));
                    Fault::new(path, format!("Not found: {name:?}: the container has no port of that name{hint}"))
                })
            }
        }
    }
}

/// Of the handlers that there may be one is given.
pub(super) fn one_handler(path: &str, there: &[(&str, bool)]) -> Result<(), Fault> {
    let mut given = there.iter().filter(|(_, is)| *is);
    match (given.next(), given.next()) {
        (None, _) => Err(Fault::new(path, "Required value: must specify a handler type")),
        (_, None) => Ok(()),
        (_, Some((second, _))) => {
            Err(Fault::new(format!("{path}.{second}"), "Forbidden: may not specify more than 1 handler type"))
        }
    }
}

/// The words of a command.
pub(super) fn command<'a>(path: &str, given: &'a api::ExecAction) -> Result<&'a [String], Fault> {
    let command = given.command.as_deref().filter(|words| !words.is_empty());
    command.ok_or_else(|| required(format!("{path}.command")))
}

/// The number of a port.
pub(super) fn port_number(path: String, number: i32) -> Result<u16, Fault> {
    let port = u16::try_from(number).ok().filter(|port| *port > 0);
    port.ok_or_else(|| invalid(path, &number.to_string(), "must be between 1 and 65535, inclusive"))
}

#[cfg(test)]
mod tests {
    use beelet_core::spec::ProbeKind;

    use super::super::manifest::parse;
    use super::*;

    fn made(list: &str, container: &str) -> Result<Probes, String> {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: web}}\nspec:\n  {list}:\n  - name: c\n    image: img:1\n    \
             ports: [{{name: web, containerPort: 8080}}, {{containerPort: 9090}}]\n    \
             env: [{{name: A, value: x}}, {{name: B, value: $(A)}}, {{name: N, valueFrom: {{fieldRef: {{fieldPath: metadata.name}}}}}}]\n    \
             {container}\n{}",
            if list == "containers" { "" } else { "  containers: [{name: main, image: img:1}]\n" }
        );
        match parse(text.as_bytes(), "f", "n").remove(0) {
            Ok(parsed) => {
                assert_eq!(parsed.spec.left_out, Vec::<String>::new());
                Ok(parsed.spec.all_containers().next().expect("one").probes.clone())
            }
            Err(error) => Err(Fault { line: 0, ..error.fault }.to_string()),
        }
    }

    #[test]
    fn a5_1a_the_defaults_are_the_api_servers() {
        let probes = made("containers", "livenessProbe: {tcpSocket: {port: 9090}, periodSeconds: 0}").expect("fine");
        let expected = Probe {
            handler: Handler::Tcp { host: String::new(), port: 9090 },
            initial_delay: Micros::ZERO,
            timeout: Micros::secs(1),
            period: Micros::secs(10),
            success_threshold: 1,
            failure_threshold: 3,
            grace: None,
        };
        assert_eq!(probes.get(ProbeKind::Liveness), Some(&expected));
        assert_eq!((probes.get(ProbeKind::Readiness), probes.get(ProbeKind::Startup)), (None, None));
        let probes = made(
            "containers",
            "startupProbe: {httpGet: {port: web}, initialDelaySeconds: 3, terminationGracePeriodSeconds: 7}",
        );
        let probes = probes.expect("fine");
        let probe = probes.get(ProbeKind::Startup).expect("one");
        assert_eq!((probe.initial_delay, probe.grace), (Micros::secs(3), Some(Micros::secs(7))));
        let plain =
            Handler::Http { host: String::new(), port: 8080, path: "/".to_owned(), tls: false, headers: Vec::new() };
        assert_eq!(probe.handler, plain, "the name of a port is its number");
    }

    #[test]
    fn a5_4_handlers_are_read_whole() {
        let handler = |text: &str| {
            made("containers", &format!("readinessProbe: {text}")).map(|p| p.readiness.expect("one").handler)
        };
        assert_eq!(
            handler(
                "{httpGet: {port: 443, scheme: HTTPS, host: h, path: /x?y=1, httpHeaders: [{name: X-A, value: '1'}]}}"
            ),
            Ok(Handler::Http {
                host: "h".to_owned(),
                port: 443,
                path: "/x?y=1".to_owned(),
                tls: true,
                headers: vec![("X-A".to_owned(), "1".to_owned())],
            })
        );
        assert_eq!(
            handler("{exec: {command: [sh, -c, 'echo $(A) $(B) [$(N)] $$(A) $(NONE)']}}"),
            Ok(Handler::Exec { command: ["sh", "-c", "echo x $(A) [] $(A) $(NONE)"].map(str::to_owned).into() })
        );
        assert_eq!(handler("{grpc: {port: 5, service: s}}"), Ok(Handler::Grpc { port: 5, service: "s".to_owned() }));
    }

    #[test]
    fn a5_1a_what_the_api_server_refuses_is_refused_in_its_words() {
        let long = "tcpSocket: {port: 1}";
        for (field, text, told) in [
            ("livenessProbe", "{periodSeconds: 1}", "Required value: must specify a handler type"),
            (
                "livenessProbe",
                "{tcpSocket: {port: 1}, exec: {command: [a]}}",
                "tcpSocket: Forbidden: may not specify more than 1 handler type",
            ),
            ("livenessProbe", "{exec: {command: []}}", "exec.command: Required value"),
            (
                "livenessProbe",
                "{httpGet: {port: 0}}",
                "httpGet.port: Invalid value: \"0\": must be between 1 and 65535, inclusive",
            ),
            (
                "livenessProbe",
                "{httpGet: {port: 70000}}",
                "httpGet.port: Invalid value: \"70000\": must be between 1 and 65535, inclusive",
            ),
            (
                "livenessProbe",
                "{httpGet: {port: '80'}}",
                "httpGet.port: Invalid value: \"80\": must contain at least one letter (a-z)",
            ),
            (
                "livenessProbe",
                "{httpGet: {port: wbe}}",
                "httpGet.port: Not found: \"wbe\": the container has no port of that name",
            ),
            ("livenessProbe", "{httpGet: {port: 1, protocol: HTTP2}}", "httpGet.protocol: not supported yet"),
            (
                "livenessProbe",
                "{httpGet: {port: 1, scheme: FTP}}",
                "httpGet.scheme: Unsupported value: \"FTP\": supported values: HTTP, HTTPS",
            ),
            (
                "livenessProbe",
                "{httpGet: {port: 1, httpHeaders: [{name: 'a b', value: c}]}}",
                "httpGet.httpHeaders: Invalid value: \"a b\": a valid HTTP header",
            ),
            (
                "livenessProbe",
                &format!("{{{long}, periodSeconds: -1}}"),
                "periodSeconds: Invalid value: \"-1\": must be greater than or equal to 0",
            ),
            (
                "livenessProbe",
                &format!("{{{long}, successThreshold: 2}}"),
                "successThreshold: Invalid value: \"2\": must be 1",
            ),
            (
                "startupProbe",
                &format!("{{{long}, successThreshold: 2}}"),
                "successThreshold: Invalid value: \"2\": must be 1",
            ),
            (
                "startupProbe",
                &format!("{{{long}, terminationGracePeriodSeconds: 0}}"),
                "terminationGracePeriodSeconds: Invalid value: \"0\": must be greater than 0",
            ),
            (
                "readinessProbe",
                &format!("{{{long}, terminationGracePeriodSeconds: 5}}"),
                "terminationGracePeriodSeconds: Invalid value: \"5\": must not be set for readinessProbes",
            ),
        ] {
            let error = made("containers", &format!("{field}: {text}")).expect_err(text);
            assert!(error.contains(&format!("spec.containers[0].{field}")) && error.contains(told), "{text}: {error}");
        }
        assert!(made("containers", "readinessProbe: {tcpSocket: {port: 1}, successThreshold: 2}").is_ok());
        let error = made("initContainers", "livenessProbe: {tcpSocket: {port: 1}}").expect_err("on an init container");
        assert!(error.contains(NOT_FOR_INIT), "{error}");
        assert!(made("containers", "livenessProbe: {tcpSocket: {prot: 1}}").is_err(), "a misspelt field");
    }

    #[test]
    fn a3_3g_names_of_ports_are_checked() {
        for (name, why) in [
            ("a-name-of-16-chs", "no more than 15"),
            ("Web", "only alpha-numeric"),
            ("a--b", "consecutive"),
            ("-a", "begin or end"),
            ("12", "at least one letter"),
        ] {
            assert!(port_name_fault(name).is_some_and(|fault| fault.contains(why)), "{name}");
        }
        assert_eq!(port_name_fault("web-1"), None);
    }
}
