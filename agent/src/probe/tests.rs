//! Real sockets on the loopback device.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use beelet_core::event::{Done, LinuxResources, OpError, PodOp};
use beelet_proto::health::health_check_response::ServingStatus;
use beelet_proto::health::health_server::{Health, HealthServer};
use beelet_proto::health::{HealthCheckRequest, HealthCheckResponse};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tonic::{Request, Response, Status};

use super::*;
use crate::runtime::{ExecError, ExecOutput, RuntimeError};

const SOON: Duration = Duration::from_secs(5);
const SHORT: Duration = Duration::from_millis(150);

/// Commands: `fine`, `bad`, `slow`, `away`, `panic`.
#[derive(Debug, Default)]
struct Fake {
    asked: Mutex<usize>,
}

impl PodRuntime for Fake {
    async fn perform(&self, _: &beelet_core::spec::PodUid, _: &PodOp) -> Result<Done, OpError> {
        Ok(Done::Ok)
    }

    async fn update_container(&self, _: &str, _: &LinuxResources) -> Result<(), OpError> {
        Ok(())
    }

    async fn stop_container(&self, _: &str, _: beelet_core::units::Micros) -> Result<(), OpError> {
        Ok(())
    }

    async fn exec(&self, _: &str, command: &[String], after: Duration) -> Result<ExecOutput, ExecError> {
        *self.asked.lock().expect("a count") += 1;
        match command.concat().as_str() {
            "fine" => Ok(ExecOutput::default()),
            "bad" => Ok(ExecOutput { output: vec![b'x'; 20_000], code: 1 }),
            "slow" => Err(ExecError::TimedOut { command: command.join(" "), after }),
            "panic" => panic!("on purpose"),
            _ => Err(RuntimeError::Unavailable { rpc: "ExecSync", reason: "connection refused".to_owned() }.into()),
        }
    }
}

async fn ask_at(at: SocketAddr, handler: Handler, timeout: Duration) -> Answer {
    let question = Question { run: "r1".to_owned(), handler, timeout, address: at.ip().to_string() };
    ask(&Fake::default(), &question).await
}

fn http(at: SocketAddr, path: &str) -> Handler {
    Handler::Http { host: String::new(), port: at.port(), path: path.to_owned(), tls: false, headers: Vec::new() }
}

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let at = listener.local_addr().expect("its address");
    (listener, at)
}

/// A server of HTTP by hand: what it answers to the head of a request. The heads are kept.
struct Server {
    at: SocketAddr,
    heads: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn head(stream: &mut (impl AsyncRead + Unpin)) -> String {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).await.is_ok_and(|n| n > 0) {
        head.push(byte[0]);
    }
    String::from_utf8_lossy(&head).into_owned()
}

async fn serve(answer: impl Fn(&str, SocketAddr) -> String + Send + Sync + 'static) -> Server {
    let (listener, at) = listener().await;
    let heads = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&heads);
    let task = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let head = head(&mut stream).await;
            let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
            kept.lock().expect("the heads").push(head);
            let _ = stream.write_all(answer(&path, at).as_bytes()).await;
        }
    });
    Server { at, heads, task }
}

fn status(code: &str, more: &str) -> String {
    format!("HTTP/1.1 {code} X\r\nContent-Length: 2\r\nConnection: close\r\n{more}\r\nhi")
}

fn failure(text: impl Into<String>) -> Answer {
    Answer::Failure(text.into())
}

#[tokio::test]
async fn a5_4a_a_status_says_yes_or_no() {
    let server = serve(|path, _| status(&path[1..], "")).await;
    for (code, expected) in [
        ("200", Answer::Success),
        ("204", Answer::Success),
        ("299", Answer::Success),
        ("304", Answer::Warning("Probe terminated redirects, Response body: ".to_owned())),
        ("400", failure("HTTP probe failed with statuscode: 400")),
        ("503", failure("HTTP probe failed with statuscode: 503")),
    ] {
        assert_eq!(ask_at(server.at, http(server.at, &format!("/{code}")), SOON).await, expected, "{code}");
    }
}

#[tokio::test]
async fn a5_4a_the_request_is_the_kubelets() {
    let server = serve(|_, _| status("200", "")).await;
    let get = |headers: &[(&str, &str)]| {
        let headers = headers.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Handler::Http {
            host: String::new(),
            port: server.at.port(),
            path: "he llo?a=ü#x".to_owned(),
            tls: false,
            headers,
        }
    };
    assert_eq!(ask_at(server.at, get(&[]), SOON).await, Answer::Success);
    let given =
        [("X-A", "1"), ("X-A", "2"), ("Host", "name"), ("Accept", ""), ("user-agent", "me"), ("Content-Length", "9")];
    assert_eq!(ask_at(server.at, get(&given), SOON).await, Answer::Success);
    let heads = server.heads.lock().expect("the heads").clone();
    let lines = |head: &str| {
        let mut lines: Vec<String> = head.lines().filter(|l| !l.is_empty()).map(str::to_owned).collect();
        lines[1..].sort();
        lines
    };
    let first = "GET /he%20llo?a=%C3%BC HTTP/1.1";
    let host = format!("Host: {}", server.at);
    assert_eq!(lines(&heads[0]), [first, "Accept: */*", "Connection: close", &host, "User-Agent: kube-probe/1.37"]);
    assert_eq!(lines(&heads[1]), [first, "Connection: close", "Host: name", "User-Agent: me", "X-A: 1", "X-A: 2"]);
}

#[tokio::test]
async fn a5_4a_redirects_are_followed_on_the_same_host_ten_times() {
    let server = serve(|path, at| match path {
        "/end" => status("200", ""),
        "/relative/a" => status("302", "Location: b\r\n"),
        "/relative/b" => status("301", "Location: ?q\r\n"),
        "/relative/b?q" => status("307", &format!("Location: http://{at}/end\r\n")),
        "/away" => status("302", "Location: http://example.org/\r\n"),
        "/nowhere" => status("302", ""),
        "/odd" => status("308", "Location: ftp://127.0.0.1/\r\n"),
        _ => status("303", "Location: /again\r\n"),
    })
    .await;
    let at = server.at;
    for (path, expected) in [
        ("/relative/a", Answer::Success),
        ("/away", Answer::Warning("Probe terminated redirects, Response body: hi".to_owned())),
        ("/nowhere", Answer::Warning("Probe terminated redirects, Response body: hi".to_owned())),
        ("/odd", failure(format!("Get \"http://{at}/odd\": failed to parse Location header \"ftp://127.0.0.1/\""))),
    ] {
        assert_eq!(ask_at(at, http(at, path), SOON).await, expected, "{path}");
    }
    let before = server.heads.lock().expect("the heads").len();
    let stopped = failure(format!("Get \"http://{at}/again\": stopped after 10 redirects"));
    assert_eq!(ask_at(at, http(at, "/round"), SOON).await, stopped);
    assert_eq!(server.heads.lock().expect("the heads").len() - before, 10);
}

#[tokio::test]
async fn a5_4a_what_is_not_http_fails_and_a_body_that_breaks_off_is_an_error() {
    let huge = "y".repeat(100_000);
    let server = serve(move |path, _| match path {
        "/huge" => format!("HTTP/1.1 302 X\r\nContent-Length: 99999999\r\n\r\n{huge}"),
        "/torn" => "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhi".to_owned(),
        "/nothing" => String::new(),
        _ => "hello\r\n\r\n".to_owned(),
    })
    .await;
    let at = server.at;
    let Answer::Warning(text) = ask_at(at, http(at, "/huge"), SOON).await else { panic!("a warning") };
    let body = text.strip_prefix("Probe terminated redirects, Response body: ").expect("the words of it");
    assert_eq!(body.len(), 10 << 10, "10 KiB of it are read");
    let before = server.heads.lock().expect("the heads").len();
    let Answer::Error { state, .. } = ask_at(at, http(at, "/torn"), SOON).await else { panic!("an error") };
    assert_eq!(state, "failure");
    assert_eq!(server.heads.lock().expect("the heads").len() - before, 3, "an error is tried three times");
    assert_eq!(ask_at(at, http(at, "/nothing"), SOON).await, failure(format!("Get \"http://{at}/nothing\": EOF")));
    assert!(
        matches!(ask_at(at, http(at, "/else"), SOON).await, Answer::Failure(why) if why.contains("malformed HTTP response"))
    );
    let (_silent, at) = listener().await;
    let began = Instant::now();
    let late = "context deadline exceeded (Client.Timeout exceeded while awaiting headers)";
    assert_eq!(ask_at(at, http(at, "/"), SHORT).await, failure(format!("Get \"http://{at}/\": {late}")));
    assert!(began.elapsed() < SOON, "a failure is not tried again");
}

#[tokio::test]
async fn a5_5a_somebody_listens_or_nobody() {
    let (open, at) = listener().await;
    let tcp = |port| Handler::Tcp { host: String::new(), port };
    assert_eq!(ask_at(at, tcp(at.port()), SOON).await, Answer::Success);
    let named = Handler::Tcp { host: "localhost".to_owned(), port: at.port() };
    assert_eq!(ask_at(at, named, SOON).await, Answer::Success);
    drop(open);
    let refused = format!("dial tcp {at}: connect: connection refused");
    assert_eq!(ask_at(at, tcp(at.port()), SOON).await, failure(refused.clone()));
    let get = failure(format!("Get \"http://{at}/\": {refused}"));
    assert_eq!(ask_at(at, http(at, "/"), SOON).await, get);
}

#[tokio::test]
async fn a5_4a_https_is_spoken_with_whoever_answers() {
    let (listener, at) = listener().await;
    let certificate = CertificateDer::from(&include_bytes!("fixtures/nobody.crt.der")[..]);
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(&include_bytes!("fixtures/nobody.key.der")[..]));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.expect("versions").with_no_client_auth().with_single_cert(vec![certificate], key);
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config.expect("a certificate")));
    let server = tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = acceptor.accept(stream).await else { continue };
            let head = head(&mut stream).await;
            let code = head.split(' ').nth(1).unwrap_or_default()[1..].to_owned();
            let _ = stream.write_all(status(&code, "").as_bytes()).await;
            let _ = stream.shutdown().await;
        }
    });
    let https = |path: &str| Handler::Http {
        host: String::new(),
        port: at.port(),
        path: path.to_owned(),
        tls: true,
        headers: Vec::new(),
    };
    assert_eq!(ask_at(at, https("/200"), SOON).await, Answer::Success);
    assert_eq!(ask_at(at, https("/500"), SOON).await, failure("HTTP probe failed with statuscode: 500"));
    server.abort();
    let plain = serve(|_, _| status("200", "")).await;
    let Handler::Http { host, path, headers, .. } = https("/") else { panic!("it is") };
    let answer = ask_at(plain.at, Handler::Http { host, port: plain.at.port(), path, tls: true, headers }, SHORT).await;
    assert!(
        matches!(&answer, Answer::Failure(why) if why.starts_with(&format!("Get \"https://{}/\": ", plain.at))),
        "{answer:?}"
    );
}

/// Knows the services `up` and `down`; hangs for `late`.
#[derive(Clone, Default)]
struct Doctor(Arc<Mutex<Vec<String>>>);

#[tonic::async_trait]
impl Health for Doctor {
    async fn check(&self, request: Request<HealthCheckRequest>) -> Result<Response<HealthCheckResponse>, Status> {
        let agent = request.metadata().get("user-agent").and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
        self.0.lock().expect("the agents").push(agent);
        let status = match request.into_inner().service.as_str() {
            "" | "up" => ServingStatus::Serving,
            "down" => ServingStatus::NotServing,
            "late" => std::future::pending().await,
            _ => return Err(Status::not_found("unknown service")),
        };
        Ok(Response::new(HealthCheckResponse { status: status.into() }))
    }
}

fn grpc_server(listener: TcpListener, router: tonic::transport::server::Router) -> JoinHandle<()> {
    let incoming = futures::stream::unfold(listener, |listener| async move {
        let accepted = listener.accept().await.map(|(stream, _)| stream);
        Some((accepted, listener))
    });
    tokio::spawn(async move {
        let _ = router.serve_with_incoming(incoming).await;
    })
}

#[tokio::test]
async fn a5_5b_grpc_servers_are_asked_by_the_health_protocol() {
    let (listener, at) = listener().await;
    let doctor = Doctor::default();
    let router = tonic::transport::Server::builder().add_service(HealthServer::new(doctor.clone()));
    let server = grpc_server(listener, router);
    let grpc = |service: &str| Handler::Grpc { port: at.port(), service: service.to_owned() };
    let not_found = "error: health rpc probe failed: rpc error: code = NotFound desc = unknown service";
    for (service, expected) in [
        ("", Answer::Success),
        ("up", Answer::Success),
        ("down", failure("service unhealthy (responded with \"NOT_SERVING\")")),
        ("none", failure(not_found)),
    ] {
        assert_eq!(ask_at(at, grpc(service), SOON).await, expected, "{service:?}");
    }
    let late = failure("timeout: health rpc did not complete within 1s");
    assert_eq!(ask_at(at, grpc("late"), Duration::from_secs(1)).await, late);
    assert!(doctor.0.lock().expect("the agents").iter().all(|agent| agent == "kube-probe/1.37"));
    server.abort();
    let _ = server.await;
    let refused = format!("error: failed to connect service at \"{at}\": dial tcp {at}: connect: connection refused");
    assert_eq!(ask_at(at, grpc(""), SOON).await, failure(refused));
}

#[tokio::test]
async fn a5_5b_a_grpc_server_without_the_protocol_and_one_that_is_none() {
    let (listener, at) = listener().await;
    let mut lone = tonic::transport::Server::builder();
    let server = grpc_server(listener, lone.add_routes(tonic::service::Routes::default()));
    let grpc = |at: SocketAddr| Handler::Grpc { port: at.port(), service: String::new() };
    let lacks = "error: this server does not implement the grpc health protocol (grpc.health.v1.Health): ";
    let answer = ask_at(at, grpc(at), SOON).await;
    assert!(matches!(&answer, Answer::Failure(why) if why.starts_with(lacks)), "{answer:?}");
    server.abort();
    let web = serve(|_, _| status("200", "")).await;
    assert!(matches!(ask_at(web.at, grpc(web.at), Duration::from_secs(1)).await, Answer::Failure(_)));
}

#[tokio::test]
async fn a5_5c_a5_6a_commands_say_by_their_exit_and_errors_are_tried_three_times() {
    for (command, expected, tries) in [
        ("fine", Answer::Success, 1),
        ("bad", failure("x".repeat(10 << 10)), 1),
        ("slow", failure("command timed out: \"slow\" timed out after 5s"), 1),
        ("away", unknown("the container runtime does not answer (ExecSync): connection refused"), 3),
        ("panic", unknown("a fault in beelet: the probe panicked"), 3),
    ] {
        let runtime = Fake::default();
        let handler = Handler::Exec { command: vec![command.to_owned()] };
        let question = Question { run: "r1".to_owned(), handler, timeout: SOON, address: String::new() };
        assert_eq!(ask(&runtime, &question).await, expected, "{command}");
        assert_eq!(*runtime.asked.lock().expect("a count"), tries, "{command}");
    }
}

/// Files that this process has open, and tasks that live.
fn held() -> (usize, usize) {
    let files = std::fs::read_dir("/proc/self/fd").expect("the files of this process").count();
    (files, tokio::runtime::Handle::current().metrics().num_alive_tasks())
}

#[test]
fn a5_a_thousand_questions_that_nobody_answers_leave_nothing() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(async {
        let (silent, at) = listener().await;
        let before = held();
        let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
        // Takes every connection, reads what comes, and says nothing.
        let server = tokio::spawn(async move {
            let mut readers = tokio::task::JoinSet::new();
            loop {
                tokio::select! {
                    Ok((mut stream, _)) = silent.accept() => {
                        readers.spawn(async move { while stream.read(&mut [0; 512]).await.is_ok_and(|n| n > 0) {} });
                    }
                    _ = &mut stopped => break silent,
                }
            }
        });
        let handlers = [
            http(at, "/"),
            Handler::Http { host: String::new(), port: at.port(), path: "/".into(), tls: true, headers: Vec::new() },
            Handler::Grpc { port: at.port(), service: String::new() },
            Handler::Tcp { host: String::new(), port: at.port() },
        ];
        for _ in 0..10 {
            let asked = (0..100).map(|n| ask_at(at, handlers[n % handlers.len()].clone(), SHORT));
            let answers = futures::future::join_all(asked).await;
            assert!(answers.iter().all(|a| matches!(a, Answer::Failure(_) | Answer::Success)), "{answers:?}");
        }
        stop.send(()).expect("the server takes it");
        let _silent = server.await.expect("the server ends");
        let mut after = held();
        for _ in 0..100 {
            if after.0 <= before.0 && after.1 <= before.1 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
            after = held();
        }
        assert!(after.0 <= before.0 && after.1 <= before.1, "files and tasks: {before:?}, then {after:?}");
    });
}

#[tokio::test]
async fn a5_a_question_that_is_given_up_leaves_nothing() {
    let (silent, at) = listener().await;
    let before = held();
    for handler in [http(at, "/"), Handler::Grpc { port: at.port(), service: String::new() }] {
        let given_up = tokio::time::timeout(SHORT, ask_at(at, handler, Duration::from_secs(60))).await;
        assert!(given_up.is_err());
    }
    for _ in 0..100 {
        if held().1 <= before.1 && held().0 <= before.0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(held(), before);
    drop(silent);
}

#[test]
fn times_are_written_as_go_does() {
    for (secs, text) in [(1, "1s"), (59, "59s"), (60, "1m0s"), (90, "1m30s")] {
        assert_eq!(go_duration(Duration::from_secs(secs)), text);
    }
}
