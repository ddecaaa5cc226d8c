use std::io;

use beelet_core::snapshot::Snapshot;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::report::exposition::Format;
use crate::report::scrapes::Endpoint;
use crate::report::strict::Order;
use crate::report::{Latest, SelfReport, samples, samples_detail, strict};
use crate::top::client::{Server, get_text};

struct Running {
    address: SocketAddr,
    published: Published,
    agent: AgentReport,
    scrapes: Scrapes,
    turn: Arc<tokio::sync::Mutex<()>>,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

async fn start(limits: Limits, now: Now) -> Running {
    let published = Published::new(samples::busy_node());
    let agent = AgentReport::new(samples::agent());
    let state = ServerState::new(published.clone(), agent.clone(), Latest::default()).unwrap().with_clock(move || now);
    let (scrapes, turn) = (state.scrapes().clone(), Arc::clone(&state.dropin.turn));
    let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
    let task = tokio::spawn(serve_within(listener, state, stop.clone(), limits));
    Running { address, published, agent, scrapes, turn, stop, task }
}

fn soon() -> Now {
    Now { mono: Micros::secs(1_010), ..Now::default() }
}

impl Running {
    async fn get(&self, path: &str) -> (u16, String) {
        let server: Server = format!("http://{}", self.address).parse().unwrap();
        get_text(&server, path).await.unwrap()
    }
}

#[tokio::test]
async fn every_path_answers() {
    let server = start(Limits::default(), soon()).await;
    assert_eq!(server.get("/healthz").await, (200, "ok".into()));
    for path in ["/", "/metrics", "/pods", "/debug/snapshot", "/debug/agent", "/debug/explain/default/web"] {
        let (status, body) = server.get(path).await;
        assert!(status == 200 && !body.is_empty(), "{path}: {status}");
    }
    let (_, body) = server.get("/debug/snapshot").await;
    let back: Snapshot = serde_json::from_str(&body).unwrap();
    assert_eq!(back.totals, samples::busy_node().totals);
    let (status, body) = server.get("/debug/explain/default/webb").await;
    assert!(status == 404 && body.contains(r#""nearby":["default/web-node""#), "{body}");
    let (status, body) = server.get("/nothing").await;
    assert!(status == 404 && body.contains("/metrics"), "{body}");
}

/// Status, content type, content encoding and body.
async fn raw(server: &Running, method: &str, path: &str, headers: &str) -> (String, Vec<u8>) {
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    let request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let end = answer.windows(4).position(|w| w == b"\r\n\r\n").unwrap() + 4;
    let body = answer.split_off(end);
    (String::from_utf8(answer).unwrap().to_lowercase(), body)
}

#[tokio::test]
async fn what_stands_in_for_the_kubelet_answers_as_it_does() {
    let server = start(Limits::default(), soon()).await;
    let text = "content-type: text/plain; version=0.0.4; charset=utf-8; escaping=underscores\r\n";
    for path in ["/metrics/cadvisor", "/metrics/resource", "/metrics/probes"] {
        let (head, body) = raw(&server, "GET", path, "").await;
        assert!(head.starts_with("http/1.1 200") && head.contains(text), "{path}: {head}");
        let plain = String::from_utf8(body).unwrap();
        strict::parse(&plain, Format::Text).unwrap();
        assert_eq!(plain.is_empty(), path == "/metrics/probes", "{path}");

        let asked = "Accept: application/openmetrics-text;version=1.0.0\r\nAccept-Encoding: gzip\r\n";
        let (head, body) = raw(&server, "GET", path, asked).await;
        assert!(head.contains("content-type: application/openmetrics-text; version=1.0.0"), "{path}: {head}");
        assert!(head.contains("content-encoding: gzip"), "{path}: {head}");
        let mut open = String::new();
        io::Read::read_to_string(&mut flate2::read::GzDecoder::new(&body[..]), &mut open).unwrap();
        strict::parse(&open, Format::OpenMetrics).unwrap();
    }
    for method in ["GET", "POST"] {
        let (head, body) = raw(&server, method, "/stats/summary", "").await;
        assert!(head.contains("content-type: application/json\r\n"), "{head}");
        let whole: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(whole["node"]["nodeName"], "node");
        let (_, body) = raw(&server, method, "/stats/summary?only_cpu_and_memory=true", "").await;
        let less: serde_json::Value = serde_json::from_slice(&body).unwrap();
        let has_io = |v: &serde_json::Value| v["pods"][0].get("io").is_some();
        assert!(has_io(&whole) && !has_io(&less), "{less}");
    }
    // The wrong value is no wish.
    let (_, body) = raw(&server, "GET", "/stats/summary?only_cpu_and_memory=1", "").await;
    assert!(String::from_utf8(body).unwrap().contains("\"io\""));
    let noted = server.scrapes.of(Endpoint::Cadvisor);
    assert!(noted.answers == 2 && noted.series > 50 && noted.bytes > 5_000 && !noted.spent.is_zero(), "{noted:?}");
    assert_eq!(server.scrapes.of(Endpoint::Summary).answers, 5);
}

#[tokio::test]
async fn metrics_come_in_the_format_that_is_asked_for() {
    let server = start(Limits::default(), soon()).await;
    let (head, body) = raw(&server, "GET", "/metrics", "").await;
    let text = "content-type: text/plain; version=0.0.4; charset=utf-8; escaping=underscores\r\n";
    assert!(head.contains(text) && !head.contains("content-encoding"), "{head}");
    let plain = strict::parse_in(&String::from_utf8(body).unwrap(), Format::Text, Order::Any).unwrap();

    let asked = "Accept: application/openmetrics-text;version=1.0.0\r\nAccept-Encoding: gzip\r\n";
    let (head, body) = raw(&server, "GET", "/metrics", asked).await;
    assert!(head.contains("content-type: application/openmetrics-text; version=1.0.0"), "{head}");
    assert!(head.contains("content-encoding: gzip"), "{head}");
    let mut open = String::new();
    io::Read::read_to_string(&mut flate2::read::GzDecoder::new(&body[..]), &mut open).unwrap();
    assert!(open.contains("# UNIT beelet_cpu_ebpf_seconds seconds\n"), "{open}");
    let open = strict::parse_in(&open, Format::OpenMetrics, Order::Any).unwrap();
    // The second answer knows what the first one cost.
    let later = ["beelet_scrape_duration_seconds", "beelet_scrape_size_bytes"];
    assert!(open.keys().filter(|name| !later.contains(&name.as_str())).eq(plain.keys()));
    let noted = server.scrapes.of(Endpoint::Metrics);
    assert!(noted.answers == 2 && noted.series > 50 && noted.dropped == 0, "{noted:?}");
}

#[tokio::test]
async fn metrics_that_are_too_many_are_left_out_and_counted() {
    let server = start(Limits::default(), soon()).await;
    server.published.publish(samples_detail::dropping_node(600));
    for before in [0, 88, 176] {
        let (_, body) = server.get("/metrics").await;
        assert_eq!(body.lines().filter(|l| l.starts_with("beelet_network_drops_total{")).count(), 512);
        let line = format!("beelet_series_dropped_total{{path=\"/metrics\"}} {before}");
        assert!(body.lines().any(|l| l == line), "no {line}");
    }
}

#[tokio::test]
async fn metrics_wait_for_their_turn_and_hold_up_nobody_else() {
    let server = start(Limits::default(), soon()).await;
    let turn = server.turn.lock().await;
    let waits = tokio::time::timeout(Duration::from_millis(300), server.get("/metrics")).await;
    assert!(waits.is_err(), "it was answered while another answer was being made");
    assert_eq!(server.get("/healthz").await.0, 200);
    drop(turn);
    assert_eq!(server.get("/metrics").await.0, 200);
}

#[tokio::test]
async fn a4_14f_a_stuck_agent_is_not_healthy() {
    let late = Now { mono: Micros::secs(1_031), ..Now::default() };
    let server = start(Limits::default(), late).await;
    assert_eq!(server.get("/healthz").await, (500, "the agent has not taken a step for 31s\n".into()));
    server.published.publish(Snapshot::default());
    assert_eq!(server.get("/healthz").await.0, 500);
}

#[tokio::test]
async fn an_agent_that_sees_nothing_is_not_healthy() {
    let server = start(Limits::default(), soon()).await;
    let long_ago = Micros::secs(970);
    server.agent.publish(SelfReport { last_sample: long_ago, ..samples::agent() });
    assert_eq!(server.get("/healthz").await, (500, "the agent has not looked at the node for 40s\n".into()));
    server.agent.publish(SelfReport { last_listing: long_ago, ..samples::agent() });
    let (status, said) = server.get("/healthz").await;
    assert!(status == 500 && said.contains("container runtime"), "{said}");
    // It has just begun.
    let young = SelfReport { started: Micros::secs(1_000), last_listing: Micros::ZERO, ..samples::agent() };
    server.agent.publish(young);
    assert_eq!(server.get("/healthz").await.0, 200);
}

#[tokio::test]
async fn a_client_that_never_finishes_holds_up_nobody_and_is_cut() {
    let limits = Limits { header: Duration::from_millis(200), ..Limits::default() };
    let server = start(limits, soon()).await;
    let mut slow = TcpStream::connect(server.address).await.unwrap();
    slow.write_all(b"GET /metrics HTTP/1.1\r\nHost: ").await.unwrap();
    assert_eq!(server.get("/healthz").await.0, 200);
    let mut rest = Vec::new();
    let cut = tokio::time::timeout(Duration::from_secs(5), slow.read_to_end(&mut rest)).await;
    assert!(cut.is_ok(), "the slow connection is still open");
}

#[tokio::test]
async fn one_connection_too_many_is_closed_at_once() {
    let server = start(Limits { connections: 1, ..Limits::default() }, soon()).await;
    let _first = TcpStream::connect(server.address).await.unwrap();
    let mut second = TcpStream::connect(server.address).await.unwrap();
    let mut rest = [0; 1];
    let read = tokio::time::timeout(Duration::from_secs(5), second.read(&mut rest)).await.expect("still open");
    assert!(matches!(read, Ok(0) | Err(_)), "{read:?}");
}

#[tokio::test]
async fn it_ends_when_told_even_with_an_idle_client() {
    let server = start(Limits::default(), soon()).await;
    let _idle = TcpStream::connect(server.address).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    server.stop.cancel();
    tokio::time::timeout(Duration::from_secs(5), server.task).await.expect("it ends").unwrap();
}

#[tokio::test]
async fn a_port_in_use_is_named() {
    let server = start(Limits::default(), soon()).await;
    let error = bind(server.address).await.unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains(&format!("127.0.0.1, port {}", server.address.port())) && text.contains("choose another port")
    );
    let ServerError::Bind { source, .. } = error;
    assert_eq!(source.kind(), io::ErrorKind::AddrInUse);
}
