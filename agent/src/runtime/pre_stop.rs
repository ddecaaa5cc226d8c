//! The hook before a stop in a container's annotation, so that it is done also when nobody knows the pod any more.
//!
//! As the kubelet writes it (pkg/kubelet/kuberuntime/labels.go, newContainerAnnotations): the API's `LifecycleHandler` as JSON, here with
//! numbers for the names of ports.
//!
//! Property (tested): what was written is read again as it was.

use beelet_core::spec::{Handler, Hook};
use beelet_core::units::Micros;
use k8s_openapi::api::core::v1 as api;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// The annotation's text.
pub(super) fn write(hook: &Hook) -> String {
    let host = |host: &String| Some(host.clone()).filter(|host| !host.is_empty());
    let port = |port: &u16| IntOrString::Int(i32::from(*port));
    let mut made = api::LifecycleHandler::default();
    match hook {
        Hook::Sleep(time) => {
            let seconds = i64::try_from(time.get() / 1_000_000).unwrap_or(i64::MAX);
            made.sleep = Some(api::SleepAction { seconds });
        }
        Hook::Call(Handler::Exec { command }) => made.exec = Some(api::ExecAction { command: Some(command.clone()) }),
        Hook::Call(Handler::Http { host: at, port: number, path, tls, headers }) => {
            let header =
                |(name, value): &(String, String)| api::HTTPHeader { name: name.clone(), value: value.clone() };
            made.http_get = Some(api::HTTPGetAction {
                host: host(at),
                http_headers: Some(headers.iter().map(header).collect()).filter(|list: &Vec<_>| !list.is_empty()),
                path: Some(path.clone()),
                port: port(number),
                scheme: Some(if *tls { "HTTPS" } else { "HTTP" }.to_owned()),
                protocol: None,
            });
        }
        Hook::Call(Handler::Tcp { host: at, port: number }) => {
            made.tcp_socket = Some(api::TCPSocketAction { host: host(at), port: port(number) });
        }
        // The API has no such hook.
        Hook::Call(Handler::Grpc { .. }) => {}
    }
    serde_json::to_string(&made).unwrap_or_default()
}

/// The hook; `None` where the text is none that [`write`] makes: then it is not done.
pub(super) fn read(text: &str) -> Option<Hook> {
    let given: api::LifecycleHandler = serde_json::from_str(text).ok()?;
    let number = |port: &IntOrString| match port {
        IntOrString::Int(port) => u16::try_from(*port).ok(),
        IntOrString::String(_) => None,
    };
    if let Some(exec) = given.exec {
        return Some(Hook::Call(Handler::Exec { command: exec.command.unwrap_or_default() }));
    }
    if let Some(http) = given.http_get {
        let headers = http.http_headers.unwrap_or_default();
        return Some(Hook::Call(Handler::Http {
            host: http.host.unwrap_or_default(),
            port: number(&http.port)?,
            path: http.path.unwrap_or_default(),
            tls: http.scheme.as_deref() == Some("HTTPS"),
            headers: headers.into_iter().map(|header| (header.name, header.value)).collect(),
        }));
    }
    if let Some(tcp) = given.tcp_socket {
        return Some(Hook::Call(Handler::Tcp { host: tcp.host.unwrap_or_default(), port: number(&tcp.port)? }));
    }
    let secs = u64::try_from(given.sleep?.seconds).ok()?;
    Some(Hook::Sleep(Micros::secs(secs)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a4_6b_what_was_written_is_read_again() {
        let http = |headers: &[(&str, &str)]| Handler::Http {
            host: String::new(),
            port: 8080,
            path: "/drain".to_owned(),
            tls: true,
            headers: headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        };
        let exec = Handler::Exec { command: vec!["sh".to_owned(), "-c".to_owned(), "a \"b\"".to_owned()] };
        for hook in [
            Hook::Call(exec),
            Hook::Call(http(&[])),
            Hook::Call(http(&[("X-A", "1")])),
            Hook::Call(Handler::Tcp { host: "h".to_owned(), port: 1 }),
            Hook::Sleep(Micros::ZERO),
        ] {
            assert_eq!(read(&write(&hook)), Some(hook));
        }
        assert_eq!(write(&Hook::Sleep(Micros::secs(5))), "{\"sleep\":{\"seconds\":5}}", "as the kubelet writes it");
        let foreign = "{\"exec\":{\"command\":[\"/drain\"]}}";
        assert_eq!(read(foreign), Some(Hook::Call(Handler::Exec { command: vec!["/drain".to_owned()] })));
        for text in ["", "{}", "{\"httpGet\":{\"port\":\"web\"}}", "{\"sleep\":{\"seconds\":-1}}"] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
