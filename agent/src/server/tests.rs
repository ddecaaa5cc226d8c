use std::io;

use beelet_core::snapshot::Snapshot;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::report::{Latest, SelfReport, samples};
use crate::top::client::{Server, get_text};

struct Running {
    address: SocketAddr,
    published: Published,
    agent: AgentReport,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

async fn start(limits: Limits, now: Now) -> Running {
    let published = Published::new(samples::busy_node());
    let agent = AgentReport::new(samples::agent());
    let state = ServerState::new(published.clone(), agent.clone(), Latest::default()).unwrap().with_clock(move || now);
    let listener = bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    let (address, stop) = (listener.local_addr().unwrap(), CancellationToken::new());
    let task = tokio::spawn(serve_within(listener, state, stop.clone(), limits));
    Running { address, published, agent, stop, task }
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

#[tokio::test]
async fn a_stuck_agent_is_not_healthy() {
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
