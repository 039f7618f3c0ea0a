//! Requests through the kubelet gateway: what passes untouched, what ends how, and what no two
//! readers could agree on.

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use towline_proto::limits;
use towline_tests::cluster::Plan;
use towline_tests::scenario::{eventually, expect};
use towline_tests::scenarios;
use towline_tests::websocket::{self, Message};

/// An upgrade to SPDY/3.1.
fn spdy(method: &str, path: &str) -> String {
    format!(
        "{method} {path} HTTP/1.1\r\nHost: n\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\r\n"
    )
}

/// Requests that may not pass, and the word that the metric has for each.
fn smuggled() -> Vec<(String, &'static str, u16)> {
    let with = |headers: &str| format!("POST /run/a/b/c HTTP/1.1\r\nHost: n\r\n{headers}\r\n\r\n");
    let inner = "POST /exec/a/b/c HTTP/1.1\r\nHost: n\r\n\r\n";
    vec![
        (
            with("Content-Length: 4\r\nContent-Length: 40"),
            "two-lengths",
            400,
        ),
        (with("Content-Length: 4, 40"), "two-lengths", 400),
        (
            format!(
                "{}0\r\n\r\n{inner}",
                with("Content-Length: 6\r\nTransfer-Encoding: chunked")
            ),
            "length-and-encoding",
            400,
        ),
        (
            format!(
                "{}0\r\n\r\n{inner}",
                with("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity")
            ),
            "encoding",
            400,
        ),
        (with("Transfer-Encoding: xchunked"), "encoding", 400),
        (with("Transfer-Encoding : chunked"), "syntax", 400),
        (with("X: a\r\n Content-Length: 4"), "fold", 400),
        (with("X: a\nContent-Length: 4"), "bare-lf", 400),
        (with("X: a\rContent-Length: 4"), "bare-cr", 400),
        (
            with("Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings"),
            "upgrade",
            400,
        ),
        (with("Host: other"), "host", 400),
        (
            "GET /pods HTTP/1.0\r\nHost: n\r\n\r\n".into(),
            "version",
            505,
        ),
        (
            "GET http://other/pods HTTP/1.1\r\nHost: n\r\n\r\n".into(),
            "target",
            400,
        ),
        (
            "CONNECT n:22 HTTP/1.1\r\nHost: n:22\r\n\r\n".into(),
            "method",
            405,
        ),
        (
            "\r\nGET /pods HTTP/1.1\r\nHost: n\r\n\r\n".into(),
            "not-http",
            400,
        ),
        (
            format!(
                "GET /pods HTTP/1.1\r\nHost: n\r\nX: {}",
                "y".repeat(limits::GATEWAY_HEAD_BYTES)
            ),
            "too-large",
            431,
        ),
        (
            with(&"X: y\r\n".repeat(limits::GATEWAY_HEADERS)),
            "many-headers",
            431,
        ),
    ]
}

scenarios! {
    async fn smuggling_ends_at_the_gateway(carrier) {
        let cluster = Plan::on(carrier).gateway().start().await;
        let kubelet = cluster.asking_kubelet().await;
        for (text, word, status) in smuggled() {
            let mut front_end = cluster.front_end().await;
            front_end.send(&text).await.unwrap();
            let reply = front_end.reply().await;
            assert_eq!(reply.status(), status, "{word}: {reply:?}");
            assert!(reply.sentence().starts_with("towline-server refused the request: "), "{reply:?}");
            front_end.end().await.unwrap_or_else(|error| panic!("{word}: {error}"));
            cluster.measured(&format!("towline_server_gateway_requests_total{{verb=\"none\",outcome=\"malformed\",detail=\"{word}\"}} ")).await;
        }
        assert_eq!(kubelet.lines(), Vec::<String>::new());
    }

    async fn a_smuggled_request_behind_a_good_one_is_found(carrier) {
        let cluster = Plan::on(carrier).gateway().start().await;
        let kubelet = cluster.asking_kubelet().await;
        for (text, word, status) in smuggled() {
            let mut front_end = cluster.front_end().await;
            front_end.send(format!("GET /healthz HTTP/1.1\r\nHost: n\r\n\r\n{text}")).await.unwrap();
            assert_eq!(front_end.reply().await.body, "ok", "{word}");
            assert_eq!(front_end.reply().await.status(), status, "{word}");
            front_end.end().await.unwrap_or_else(|error| panic!("{word}: {error}"));
        }
        assert!(kubelet.lines().iter().all(|line| line == "GET /healthz"));
    }

    async fn chunks_that_are_none_end_the_request(carrier) {
        let cluster = Plan::on(carrier).gateway().start().await;
        let kubelet = cluster.asking_kubelet().await;
        let head = "POST /run/a/b/c HTTP/1.1\r\nHost: n\r\nTransfer-Encoding: chunked\r\n\r\n";
        for chunks in ["2;x=y\r\nhi\r\n0\r\n\r\n", "2\nhi\r\n0\r\n\r\n", "0x2\r\nhi\r\n", "2\r\nhi0\r\n\r\n", "fffffffffffffffff\r\n"] {
            let mut front_end = cluster.front_end().await;
            front_end.send(format!("{head}{chunks}")).await.unwrap();
            let reply = front_end.reply().await;
            assert_eq!(reply.status(), 400, "{chunks:?} {reply:?}");
            front_end.end().await.unwrap();
        }
        // The kubelet may have seen heads, and never a whole request.
        let mut front_end = cluster.front_end().await;
        front_end.send(format!("{head}2\r\nhi\r\n0\r\n\r\n")).await.unwrap();
        assert_eq!(front_end.reply().await.body, "2 bytes for /run/a/b/c");
        assert!(kubelet.lines().iter().all(|line| line == "POST /run/a/b/c"));
    }

    async fn requests_that_are_sent_ahead_are_answered_in_order(carrier) {
        let cluster = Plan::on(carrier).gateway().start().await;
        let kubelet = cluster.asking_kubelet().await;
        let mut front_end = cluster.front_end().await;
        let body = "x".repeat(5000);
        let mut ahead = String::new();
        for number in 0..20 {
            ahead += &format!("POST /run/a/b/c{number} HTTP/1.1\r\nHost: n\r\nContent-Length: 5000\r\n\r\n{body}");
        }
        let sending = front_end.send(&ahead);
        expect("all of it is taken", sending).await.unwrap();
        for number in 0..20 {
            assert_eq!(front_end.reply().await.body, format!("5000 bytes for /run/a/b/c{number}"));
        }
        assert_eq!(kubelet.requests(), 20);
    }

    async fn a_body_waits_for_the_leave_to_be_sent(carrier) {
        let cluster = Plan::on(carrier).gateway().start().await;
        let _kubelet = cluster.asking_kubelet().await;
        let mut front_end = cluster.front_end().await;
        for _ in 0..2 {
            let head = "POST /run/a/b/c HTTP/1.1\r\nHost: n\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n";
            front_end.send(head).await.unwrap();
            assert_eq!(front_end.head().await, "HTTP/1.1 100 Continue\r\n\r\n");
            front_end.send("hello").await.unwrap();
            assert_eq!(front_end.reply().await.body, "5 bytes for /run/a/b/c");
        }
    }

    async fn logs_follow_without_delay(carrier) {
        let cluster = Plan::on(carrier).gateway().start().await;
        let kubelet = cluster.asking_kubelet().await;
        kubelet.log("one");
        let mut logs = cluster.through_gateway().await.follow().await.unwrap();
        assert_eq!(expect("a line", logs.line()).await.unwrap().as_deref(), Some("one"));
        for number in 0..50 {
            kubelet.log(format!("line {number}"));
            assert_eq!(expect("a line", logs.line()).await.unwrap(), Some(format!("line {number}")));
        }
    }

    async fn a_command_talks_over_websocket(carrier) {
        let cluster = Plan::on(carrier).gateway().start().await;
        let _kubelet = cluster.asking_kubelet().await;
        let mut shell = cluster.through_gateway().await.exec("cat").await.unwrap();
        for text in ["hello", "and again"] {
            shell.send(websocket::STDIN, text.as_bytes()).await.unwrap();
            let echo = expect("the echo", shell.receive()).await.unwrap();
            assert_eq!(echo, Message::Data(websocket::STDOUT, text.into()));
        }
        shell.send(websocket::CLOSE, &[websocket::STDIN]).await.unwrap();
        assert!(matches!(expect("the status", shell.receive()).await.unwrap(), Message::Data(websocket::STATUS, _)));
        assert_eq!(expect("the close", shell.receive()).await.unwrap(), Message::Close);
    }

    async fn spdy_passes_unread_both_ways_and_ends_in_halves(carrier) {
        let cluster = Plan::on(carrier).gateway().start().await;
        let kubelet = cluster.asking_kubelet().await;
        for path in ["/exec/default/web/app?command=sh", "/attach/default/web/uid/app", "/portForward/default/web"] {
            for method in ["GET", "POST"] {
                let mut front_end = cluster.front_end().await;
                // What follows at once belongs to the new protocol, whatever it looks like.
                front_end.send(format!("{}GET /not-http", spdy(method, path))).await.unwrap();
                assert!(front_end.head().await.starts_with("HTTP/1.1 101 "), "{method} {path}");
                assert_eq!(expect("the echo", front_end.take(13)).await.unwrap(), b"GET /not-http");
                let large: Vec<u8> = (0..200_000_u32).map(|at| (at % 251) as u8).collect();
                let mut echoed = Vec::new();
                for piece in large.chunks(50_000) {
                    front_end.send(piece).await.unwrap();
                    echoed.extend(expect("the echo", front_end.take(piece.len())).await.unwrap());
                }
                assert!(echoed == large, "{method} {path}");
                front_end.finish().await.unwrap();
                front_end.end().await.expect("the other half ends in order");
            }
        }
        assert_eq!(kubelet.requests(), 6);
    }

    async fn much_passes_in_order(carrier) {
        let cluster = Plan::on(carrier).gateway().start().await;
        let _kubelet = cluster.asking_kubelet().await;
        let mut front_end = cluster.front_end().await;
        front_end.send(spdy("POST", "/portForward/default/web")).await.unwrap();
        front_end.head().await;
        let (mut read, mut write) = tokio::io::split(front_end.into_stream());
        let all = 16 * 1024 * 1024_usize;
        let sending = async {
            let mut sent = 0;
            while sent < all {
                let piece: Vec<u8> = (sent..sent + 65_536).map(|at| (at % 241) as u8).collect();
                write.write_all(&piece).await.unwrap();
                sent += piece.len();
            }
            write.shutdown().await.unwrap();
        };
        let reading = async {
            let mut at = 0;
            let mut buffer = vec![0; 65_536];
            loop {
                let count = read.read(&mut buffer).await.unwrap();
                if count == 0 {
                    return at;
                }
                for byte in &buffer[..count] {
                    assert_eq!(*byte, (at % 241) as u8, "at {at}");
                    at += 1;
                }
            }
        };
        let ((), received) = tokio::join!(sending, reading);
        assert_eq!(received, all);
    }

    async fn a_body_that_was_cut_is_not_whole(carrier) {
        let cluster = Plan::on(carrier).gateway().start().await;
        let kubelet = cluster.asking_kubelet().await;
        let mut front_end = cluster.front_end().await;
        front_end.send("POST /run/a/b/c HTTP/1.1\r\nHost: n\r\nContent-Length: 10\r\n\r\nhalf").await.unwrap();
        front_end.finish().await.unwrap();
        let _ = front_end.end().await;
        // It never answered, so it never took the body for whole; the connection can be made anew.
        assert_eq!(cluster.front_end().await.ask("GET", "/healthz").await.status(), 200);
        assert!(kubelet.lines().contains(&"GET /healthz".to_owned()));
        cluster.measured("towline_server_gateway_requests_total{verb=\"run\",outcome=\"failed\",detail=\"front-end-gone\"} 1").await;
    }

    async fn a_kubelet_that_does_not_answer_is_told(carrier) {
        let cluster = Plan::on(carrier).gateway().start().await;
        let _kubelet = cluster.asking_kubelet().await;
        let mut front_end = cluster.front_end().await;
        let reply = front_end.ask("GET", "/close").await;
        assert_eq!(reply.status(), 502);
        assert!(reply.sentence().contains("closed the connection without an answer"), "{reply:?}");
        front_end.end().await.expect("an end in order");
        // Behind an earlier answer it is what any server may do; front ends try again.
        let mut front_end = cluster.front_end().await;
        assert_eq!(front_end.ask("GET", "/healthz").await.status(), 200);
        front_end.send("GET /close HTTP/1.1\r\nHost: n\r\n\r\n").await.unwrap();
        front_end.end().await.expect("an end in order");
    }

    async fn an_agent_that_goes_is_told(carrier) {
        let mut cluster = Plan::on(carrier).gateway().start().await;
        let kubelet = cluster.asking_kubelet().await;
        let mut front_end = cluster.front_end().await;
        assert_eq!(front_end.ask("GET", "/healthz").await.status(), 200);
        front_end.send("GET /silent HTTP/1.1\r\nHost: n\r\n\r\n").await.unwrap();
        towline_tests::scenario::eventually("the request", || async { (kubelet.requests() == 2).then_some(()) }).await;
        cluster.kill_agent("n1");
        let reply = front_end.reply().await;
        assert_eq!(reply.status(), 502, "{reply:?}");
        assert!(reply.sentence().contains("the connection to the kubelet of node n1 was lost"), "{reply:?}");
        front_end.end().await.expect("an end in order");
    }

    async fn a_request_that_is_cut_with_the_process_is_recorded(carrier) {
        let mut cluster = Plan::on(carrier).gateway().start().await;
        let kubelet = cluster.asking_kubelet().await;
        let mut front_end = cluster.front_end().await;
        front_end.send("GET /silent HTTP/1.1\r\nHost: n\r\n\r\n").await.unwrap();
        eventually("the request", || async { (kubelet.requests() == 1).then_some(()) }).await;
        let server = cluster.take_server(0);
        server.stop_now();
        let _ = expect("the end", server.wait()).await;
        let trail = cluster.audit(0);
        let requests = trail.of("request");
        assert_eq!(requests.len(), 1, "{requests:?}");
        assert_eq!(requests[0]["outcome"], "failed");
        trail.proven();
    }

    async fn a_head_that_does_not_end_has_its_time(carrier) {
        let cluster = Plan::on(carrier).gateway().start().await;
        let kubelet = cluster.asking_kubelet().await;
        let mut front_end = cluster.front_end().await;
        front_end.send("GET /healthz HTTP/1.1\r\nHost: ").await.unwrap();
        let reply = front_end.reply().await;
        assert_eq!(reply.status(), 408, "{reply:?}");
        assert_eq!(kubelet.requests(), 0);
    }
}
