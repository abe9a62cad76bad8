//! What comes over the socket may be anything: each request is answered, with its own fault where it is at fault.

use proptest::{prelude::*, sample, strategy::ValueTree as _, test_runner::TestRunner};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    sync::mpsc,
};

use super::*;

/// An owner that has no answer to anything; the requests that reached it.
fn listless(mut requests: mpsc::Receiver<Request>) -> JoinHandle<u64> {
    tokio::spawn(async move {
        let mut seen = 0;
        // Each carries the place for its answer, which is dropped with it.
        while requests.recv().await.is_some() {
            seen += 1;
        }
        seen
    })
}

/// The status line's code of the answer to these bytes; `None`: the server hung up without one.
async fn status(socket: &Path, bytes: &[u8]) -> Option<u16> {
    let mut stream = UnixStream::connect(socket).await.unwrap();
    // It may hang up before all is written.
    let _ = stream.write_all(bytes).await;
    let _ = stream.shutdown().await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let line = String::from_utf8_lossy(answer.get(..12)?).into_owned();
    line.strip_prefix("HTTP/1.1 ")?.parse().ok()
}

fn request() -> impl Strategy<Value = Vec<u8>> {
    let method = sample::select(vec!["GET", "POST", "PUT", "DELETE", "OPTIONS", "BREW", "get", ""]);
    let path = sample::select(vec![
        "/v1/status",
        "/v1/vips",
        "/v1/reals",
        "/v1/reals/why",
        "/v1/reals/show",
        "/v1/reals/history",
        "/v1/reals/trace",
        "/v1/reals/flows",
        "/v1/reals/admin",
        "/v1/stats",
        "/v1/reload",
        "/",
        "/v1",
        "/v1/../v1/reload",
        "//v1/reload",
        "*",
    ]);
    let query = prop_oneof![
        Just(String::new()),
        "\\?(real|vip|port|wait_ms|recent_s|since_s)=[ -~]{0,30}",
        Just("?real=198.18.0.1&real=198.18.0.2".to_owned()),
        Just("?real=198.18.0.1&wait_ms=18446744073709551616".to_owned()),
        Just("?real=198.18.0.1&recent_s=18446744073709551615&since_s=18446744073709551615".to_owned()),
        any::<String>().prop_map(|text| format!("?{text}")),
    ];
    let body = prop_oneof![
        Just(Vec::new()),
        proptest::collection::vec(any::<u8>(), 0..200),
        Just(br#"{"of":{"real":"198.18.0.1"},"state":"draining","for_s":18446744073709551615}"#.to_vec()),
        Just(br#"{"of":{"real":"198.18.0.1"},"state":"draining","for_s":-1,"more":1}"#.to_vec()),
        Just(b"[".repeat(60_000)),
    ];
    (method, path, query, body).prop_map(|(method, path, query, body)| {
        let length = body.len();
        let head = format!(
            "{method} {path}{query} HTTP/1.1\r\nhost: lbd\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\
             connection: close\r\n\r\n"
        );
        [head.as_bytes(), &body].concat()
    })
}

#[tokio::test]
async fn requests_of_any_kind_are_answered_and_the_next_one_too() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("lbd.sock");
    let (sender, requests) = mpsc::channel(1);
    let owner = listless(requests);
    let serving = Server::bind(&socket).unwrap().start(sender);
    let cases = if std::env::var_os("LBD_TEST_LONG").is_some() { 50_000 } else { 1_000 };
    let mut runner = TestRunner::deterministic();
    for _ in 0..cases {
        let bytes = request().new_tree(&mut runner).unwrap().current();
        let code = status(&socket, &bytes).await;
        // 503: it has reached the owner, which does not answer.
        let text = String::from_utf8_lossy(&bytes);
        assert!(code.is_none_or(|code| (400..500).contains(&code) || code == 503), "{code:?} to {text}");
    }
    for bytes in [&b"\0"[..], &[0xff; 10_000], b"GET /v1/status HTTP/1.1\r\n", b"GET / HTTP/9.9\r\n\r\n"] {
        let code = status(&socket, bytes).await;
        assert!(code.is_none_or(|code| (400..500).contains(&code)), "{code:?}");
    }
    let many = format!("GET /v1/status HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(100_000));
    assert_eq!(status(&socket, many.as_bytes()).await.map(|code| code / 100), Some(4));
    let head = "POST /v1/reals/admin HTTP/1.1\r\nhost: lbd\r\ncontent-type: application/json\r\n";
    let large = format!("{head}content-length: {}\r\n\r\n{}", MAX_BODY + 1, " ".repeat(MAX_BODY + 1));
    assert_eq!(status(&socket, large.as_bytes()).await, Some(413));
    assert_eq!(status(&socket, b"GET /v1/status HTTP/1.1\r\nhost: lbd\r\nconnection: close\r\n\r\n").await, Some(503));
    serving.end().await;
    assert!(owner.await.unwrap() > 0, "nothing has reached the owner");
}
