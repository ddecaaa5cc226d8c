//! What hooks ask over HTTP, with real sockets.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;

/// A server that answers each connection with that, and gives what it was asked.
async fn server(answer: &'static str) -> (u16, tokio::sync::mpsc::UnboundedReceiver<Vec<u8>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let (seen, asked) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut bytes = vec![0; 4_096];
            let read = stream.read(&mut bytes).await.unwrap_or_default();
            bytes.truncate(read);
            // Who is asked in TLS and does not speak it answers so, as Go's and most servers do.
            let _ = stream.write_all(answer.as_bytes()).await;
            let _ = seen.send(bytes);
        }
    });
    (port, asked)
}

#[tokio::test]
async fn a4_6a_of_an_http_hook_only_that_it_was_answered_counts() {
    for answer in ["HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n", "HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n"] {
        let (port, mut asked) = server(answer).await;
        let headers = [("X-A".to_owned(), "1".to_owned())];
        assert_eq!(call(false, "127.0.0.1", port, "/up?x=1", &headers).await, Ok(None));
        let request = String::from_utf8(asked.recv().await.expect("a request")).expect("text");
        assert!(request.starts_with("GET /up?x=1 HTTP/1.1\r\n"), "{request}");
        assert!(request.contains("kube-lifecycle/1.37") && request.to_lowercase().contains("x-a: 1"), "{request}");
    }
    let free = TcpListener::bind("127.0.0.1:0").await.expect("a port").local_addr().expect("an address").port();
    let error = call(false, "127.0.0.1", free, "/", &[]).await.expect_err("nobody is there");
    assert!(error.contains("connection refused"), "{error}");
}

#[tokio::test]
async fn a4_6c_an_https_hook_falls_back_to_http() {
    let (port, mut asked) = server("HTTP/1.1 400 Bad Request\r\nconnection: close\r\n\r\n").await;
    let headers = [("Authorization".to_owned(), "secret".to_owned()), ("X-A".to_owned(), "1".to_owned())];
    let told = call(true, "127.0.0.1", port, "/down", &headers).await;
    let message =
        format!("request to HTTPS lifecycle hook 127.0.0.1:{port} got HTTP response, retry with HTTP succeeded");
    assert_eq!(told, Ok(Some(message)));
    assert_eq!(asked.recv().await.expect("a greeting").first(), Some(&22), "TLS came first");
    let request = String::from_utf8(asked.recv().await.expect("a request")).expect("text");
    assert!(request.starts_with("GET /down ") && request.to_lowercase().contains("x-a: 1"), "{request}");
    assert!(!request.contains("secret"), "{request}");

    // One that speaks neither: the first error counts.
    let (port, _asked) = server("SSH-2.0-x\r\n").await;
    let error = call(true, "127.0.0.1", port, "/", &[]).await.expect_err("it is no web server");
    assert!(error.starts_with("Get \"https://"), "{error}");
}
