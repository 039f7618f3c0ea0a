//! The middle of an HTTP/1.1 connection: what passes, what waits, what is refused.

use proptest::prelude::*;
use towline_proto::http1::head::{self, Method};
use towline_proto::http1::{
    BodyError, DownStep, Exchange, Framing, HeadError, UpStep, Violation, fuzz,
};
use towline_proto::limits;

/// Feeds a client's bytes and admits every request; gives the paths that were asked for.
fn feed(exchange: &mut Exchange, bytes: &[u8]) -> Result<(Vec<String>, usize), Violation> {
    let (mut paths, mut at) = (Vec::new(), 0);
    loop {
        match exchange.up(&bytes[at..])? {
            UpStep::Pass(count) => at += count,
            UpStep::Request(request, count) => {
                exchange.admit(&request);
                paths.push(request.target);
                at += count;
            }
            UpStep::Wait => return Ok((paths, at)),
        }
    }
}

fn answer(exchange: &mut Exchange, bytes: &[u8]) -> Result<usize, Violation> {
    let mut at = 0;
    loop {
        match exchange.down(&bytes[at..])? {
            DownStep::Pass(count) | DownStep::Answer(_, count) => at += count,
            DownStep::Wait => return Ok(at),
        }
    }
}

fn refused(head: &str) -> Violation {
    feed(&mut Exchange::default(), head.as_bytes()).expect_err(head)
}

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

#[test]
fn requests_of_one_connection_are_seen_one_by_one() {
    let mut exchange = Exchange::default();
    let two = b"GET /pods HTTP/1.1\r\nHost: n\r\n\r\nGET /metrics HTTP/1.1\r\nHost: n\r\n\r\n";
    let (paths, at) = feed(&mut exchange, two).unwrap();
    assert_eq!(paths, ["/pods"]);
    assert!(exchange.awaits_answer());
    // The second waits until the answer to the first is over.
    assert_eq!(answer(&mut exchange, &OK[..OK.len() - 1]), Ok(OK.len() - 1));
    assert_eq!(feed(&mut exchange, &two[at..]), Ok((vec![], 0)));
    assert_eq!(answer(&mut exchange, &OK[OK.len() - 1..]), Ok(1));
    assert_eq!(feed(&mut exchange, &two[at..]).unwrap().0, ["/metrics"]);
}

#[test]
fn a_request_inside_a_body_is_a_body() {
    let inner = "POST /exec/a/b/c HTTP/1.1\r\nHost: n\r\n\r\n";
    let length = inner.len();
    for (headers, body) in [
        (format!("Content-Length: {length}"), inner.to_owned()),
        (
            "Transfer-Encoding: chunked".to_owned(),
            format!("{length:x}\r\n{inner}\r\n0\r\n\r\n"),
        ),
    ] {
        let mut exchange = Exchange::default();
        let text = format!("POST /run/a/b/c HTTP/1.1\r\nHost: n\r\n{headers}\r\n\r\n{body}");
        let (paths, at) = feed(&mut exchange, text.as_bytes()).unwrap();
        assert_eq!(
            (paths.as_slice(), at),
            (&["/run/a/b/c".to_owned()][..], text.len())
        );
        assert!(exchange.client_may_end(0));
    }
}

#[test]
fn interim_answers_pass_and_the_last_one_counts() {
    let mut exchange = Exchange::default();
    let request =
        b"POST /run/a/b/c HTTP/1.1\r\nHost: n\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n";
    feed(&mut exchange, request).unwrap();
    answer(&mut exchange, b"HTTP/1.1 100 Continue\r\n\r\n").unwrap();
    assert!(exchange.awaits_answer());
    assert_eq!(feed(&mut exchange, b"hi").unwrap(), (vec![], 2));
    answer(&mut exchange, OK).unwrap();
    assert!(!exchange.is_busy());
}

#[test]
fn an_answer_before_the_end_of_the_request_leaves_the_request_to_end() {
    let mut exchange = Exchange::default();
    feed(
        &mut exchange,
        b"PUT /debug/flags/v HTTP/1.1\r\nHost: n\r\nContent-Length: 3\r\n\r\na",
    )
    .unwrap();
    answer(&mut exchange, OK).unwrap();
    assert!(exchange.is_busy() && !exchange.client_may_end(0));
    let rest = b"bcGET /pods HTTP/1.1\r\nHost: n\r\n\r\n";
    assert_eq!(feed(&mut exchange, rest).unwrap().0, ["/pods"]);
}

#[test]
fn after_a_switch_bytes_pass_unread() {
    for protocol in ["SPDY/3.1", "websocket", "WebSocket"] {
        let mut exchange = Exchange::default();
        let head = format!(
            "POST /exec/a/b/c HTTP/1.1\r\nHost: n\r\nConnection: keep-alive, Upgrade\r\nUpgrade: {protocol}\r\n\r\n"
        );
        let early = format!("{head}\x00\x01early");
        let (_, at) = feed(&mut exchange, early.as_bytes()).unwrap();
        assert_eq!(at, head.len(), "what follows waits for the answer");
        answer(
            &mut exchange,
            b"HTTP/1.1 101 Switching Protocols\r\n\r\n\x80\x03",
        )
        .unwrap();
        assert!(exchange.is_raw());
        assert_eq!(feed(&mut exchange, b"\x00\x01early").unwrap().1, 7);
        assert!(exchange.client_may_end(0) && exchange.server_may_end(0));
    }
}

#[test]
fn a_switch_that_was_refused_is_an_ordinary_answer() {
    let mut exchange = Exchange::default();
    let head =
        "GET /exec/a/b/c HTTP/1.1\r\nHost: n\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
    feed(&mut exchange, head.as_bytes()).unwrap();
    answer(
        &mut exchange,
        b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n",
    )
    .unwrap();
    assert!(!exchange.is_raw());
    assert_eq!(
        feed(&mut exchange, b"\x00\x01"),
        Err(Violation::Head(HeadError::NotHttp))
    );
}

#[test]
fn a_switch_that_nobody_asked_for_ends_it() {
    for head in [
        "GET /pods HTTP/1.1\r\nHost: n\r\n\r\n",
        // Without the word in Connection it is not asked for.
        "GET /pods HTTP/1.1\r\nHost: n\r\nUpgrade: websocket\r\n\r\n",
        // Nor behind a body, which the server might take for the new protocol.
        "POST /exec/a/b/c HTTP/1.1\r\nHost: n\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\nContent-Length: 1\r\n\r\nx",
    ] {
        let mut exchange = Exchange::default();
        feed(&mut exchange, head.as_bytes()).unwrap();
        let switched = exchange.down(b"HTTP/1.1 101 Switching Protocols\r\n\r\n");
        assert_eq!(switched, Err(Violation::UnaskedSwitch), "{head}");
    }
}

#[test]
fn smuggling_is_refused() {
    let with = |headers: &str| format!("POST /run/a/b/c HTTP/1.1\r\nHost: n\r\n{headers}\r\n\r\n");
    for (headers, error) in [
        (
            "Content-Length: 1\r\nContent-Length: 2",
            HeadError::TwoLengths,
        ),
        (
            "Content-Length: 1\r\nContent-Length: 1",
            HeadError::TwoLengths,
        ),
        ("Content-Length: 1, 1", HeadError::TwoLengths),
        (
            "content-length: 1\r\nCONTENT-LENGTH: 2",
            HeadError::TwoLengths,
        ),
        ("Content-Length: +1", HeadError::Length),
        ("Content-Length: -1", HeadError::Length),
        ("Content-Length: 0x1", HeadError::Length),
        ("Content-Length: 1 1", HeadError::Length),
        ("Content-Length: ", HeadError::Length),
        ("Content-Length: 99999999999999999999", HeadError::Length),
        ("Content-Length: 9999999999999999999", HeadError::Length),
        (
            "Content-Length: 1\r\nTransfer-Encoding: chunked",
            HeadError::LengthAndEncoding,
        ),
        (
            "Transfer-Encoding: chunked\r\nContent-Length: 0",
            HeadError::LengthAndEncoding,
        ),
        ("Transfer-Encoding: identity", HeadError::Encoding),
        ("Transfer-Encoding: gzip, chunked", HeadError::Encoding),
        ("Transfer-Encoding: chunked, chunked", HeadError::Encoding),
        (
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            HeadError::Encoding,
        ),
        (
            "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked",
            HeadError::Encoding,
        ),
        ("Transfer-Encoding: xchunked", HeadError::Encoding),
        ("Transfer-Encoding: \"chunked\"", HeadError::Encoding),
        ("Transfer-Encoding: chunked;q=1", HeadError::Encoding),
        ("Transfer-Encoding:", HeadError::Encoding),
        ("Transfer-Encoding : chunked", HeadError::Syntax),
        ("Transfer-Encoding\t: chunked", HeadError::Syntax),
        ("Transfer-Encoding: \x0bchunked", HeadError::Syntax),
        ("Transfer\x00-Encoding: chunked", HeadError::Syntax),
        ("X: a\r\n Transfer-Encoding: chunked", HeadError::Fold),
        ("X: a\r\n\tfolded", HeadError::Fold),
        ("X: a\nTransfer-Encoding: chunked", HeadError::BareLf),
        ("X: a\rTransfer-Encoding: chunked", HeadError::BareCr),
        ("X: a\r\r\nY: b", HeadError::BareCr),
        ("Host: other", HeadError::Host),
        ("Upgrade: h2c\r\nConnection: Upgrade", HeadError::Upgrade),
        (
            "Upgrade: websocket, h2c\r\nConnection: Upgrade",
            HeadError::Upgrade,
        ),
        (
            "Upgrade: websocket\r\nUpgrade: h2c\r\nConnection: Upgrade",
            HeadError::Upgrade,
        ),
        (": x", HeadError::Syntax),
        ("no colon", HeadError::Syntax),
    ] {
        assert_eq!(
            refused(&with(headers)),
            Violation::Head(error),
            "{headers:?}"
        );
    }
}

#[test]
fn request_lines_that_are_none_are_refused() {
    for (line, error) in [
        ("GET /pods HTTP/1.0", HeadError::Version),
        ("GET /pods HTTP/2.0", HeadError::Version),
        ("GET /pods", HeadError::Syntax),
        ("GET  /pods HTTP/1.1", HeadError::Syntax),
        ("GET /pods  HTTP/1.1", HeadError::Version),
        ("GET\t/pods HTTP/1.1", HeadError::Syntax),
        ("GET /po ds HTTP/1.1", HeadError::Version),
        ("CONNECT n:10250 HTTP/1.1", HeadError::Method),
        ("TRACE /pods HTTP/1.1", HeadError::Method),
        ("GETX /pods HTTP/1.1", HeadError::Method),
        ("GET http://n/pods HTTP/1.1", HeadError::Target),
        ("GET n:10250 HTTP/1.1", HeadError::Target),
        ("OPTIONS * HTTP/1.1", HeadError::Target),
        ("GET /pods#x HTTP/1.1", HeadError::Target),
        ("GET /p\u{e4} HTTP/1.1", HeadError::Target),
        ("get /pods HTTP/1.1", HeadError::NotHttp),
        ("\r\nGET /pods HTTP/1.1", HeadError::NotHttp),
        (" GET /pods HTTP/1.1", HeadError::NotHttp),
        ("\x16\x03\x01", HeadError::NotHttp),
        ("PRI * HTTP/2.0", HeadError::Http2),
    ] {
        let head = format!("{line}\r\nHost: n\r\n\r\n");
        assert_eq!(refused(&head), Violation::Head(error), "{line:?}");
    }
    let bare = refused("GET /pods HTTP/1.1\r\n\r\n");
    assert_eq!(bare, Violation::Head(HeadError::Host));
}

#[test]
fn heads_are_bounded() {
    let begin = "GET /pods HTTP/1.1\r\nHost: n\r\nX: ";
    let long = format!("{begin}{}", "y".repeat(limits::GATEWAY_HEAD_BYTES));
    assert_eq!(refused(&long), Violation::Head(HeadError::TooLarge));
    assert_eq!(
        refused(&format!("{long}\r\n\r\n")),
        Violation::Head(HeadError::TooLarge)
    );
    let many = format!(
        "GET /pods HTTP/1.1\r\nHost: n\r\n{}\r\n",
        "X: y\r\n".repeat(limits::GATEWAY_HEADERS)
    );
    assert_eq!(refused(&many), Violation::Head(HeadError::ManyHeaders));
    let fits = limits::GATEWAY_HEAD_BYTES - begin.len() - 4;
    let most = format!("{begin}{}\r\n\r\n", "y".repeat(fits));
    assert!(feed(&mut Exchange::default(), most.as_bytes()).is_ok());
}

#[test]
fn answers_are_held_to_the_same_rules() {
    let asked = || {
        let mut exchange = Exchange::default();
        feed(&mut exchange, b"GET /pods HTTP/1.1\r\nHost: n\r\n\r\n").unwrap();
        exchange
    };
    for (head, error) in [
        ("HTTP/1.0 200 OK\r\n\r\n", HeadError::Version),
        ("HTTP/2 200\r\n\r\n", HeadError::Version),
        ("\r\nHTTP/1.1 200 OK\r\n\r\n", HeadError::NotHttp),
        ("200 OK\r\n\r\n", HeadError::NotHttp),
        ("HTTP/1.1 099 No\r\n\r\n", HeadError::Syntax),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n",
            HeadError::TwoLengths,
        ),
        (
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            HeadError::LengthAndEncoding,
        ),
        ("HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n", HeadError::Fold),
        ("HTTP/1.1 200 OK\nX: a\n\n", HeadError::BareLf),
    ] {
        let answered = answer(&mut asked(), head.as_bytes());
        assert_eq!(answered, Err(Violation::Head(error)), "{head:?}");
    }
    let mut exchange = asked();
    let chunks = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n";
    assert_eq!(
        answer(&mut exchange, chunks),
        Err(Violation::Body(BodyError::Size))
    );
    // A second answer, or one before any question, is a request smuggled past us.
    let mut exchange = asked();
    let two = [OK, OK].concat();
    assert_eq!(answer(&mut exchange, &two), Err(Violation::Unasked));
    assert_eq!(
        answer(&mut Exchange::default(), OK),
        Err(Violation::Unasked)
    );
}

#[test]
fn answers_without_a_body_end_with_their_head() {
    for (method, head, framing) in [
        (
            Method::Head,
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n",
            Framing::Nothing,
        ),
        (
            Method::Get,
            "HTTP/1.1 204 No Content\r\n\r\n",
            Framing::Nothing,
        ),
        (
            Method::Get,
            "HTTP/1.1 304 Not Modified\r\nContent-Length: 9\r\n\r\n",
            Framing::Nothing,
        ),
        (Method::Get, "HTTP/1.1 200 OK\r\n\r\n", Framing::UntilClose),
        (
            Method::Get,
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n",
            Framing::Length(9),
        ),
    ] {
        let read = head::response(head.as_bytes(), method).unwrap();
        assert_eq!(read.framing, framing, "{head:?}");
    }
}

#[test]
fn nothing_that_was_cut_looks_whole() {
    let mut exchange = Exchange::default();
    assert!(exchange.client_may_end(0));
    assert!(!exchange.client_may_end(5), "half a head");
    feed(
        &mut exchange,
        b"POST /run/a/b/c HTTP/1.1\r\nHost: n\r\nContent-Length: 3\r\n\r\nab",
    )
    .unwrap();
    assert!(!exchange.client_may_end(0) && !exchange.server_may_end(0));
    feed(&mut exchange, b"c").unwrap();
    assert!(exchange.client_may_end(0));
    answer(
        &mut exchange,
        b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nab",
    )
    .unwrap();
    assert!(!exchange.server_may_end(0));
    answer(&mut exchange, b"c").unwrap();
    assert!(exchange.server_may_end(0));
}

#[test]
fn a_refused_request_leaves_the_connection_only_when_nothing_follows_it() {
    for (more, goes_on) in [
        ("", true),
        ("Content-Length: 0\r\n", true),
        ("Content-Length: 1\r\n", false),
        ("Transfer-Encoding: chunked\r\n", false),
        ("Expect: 100-continue\r\n", false),
        ("Connection: close\r\n", false),
        ("Connection: Upgrade\r\nUpgrade: websocket\r\n", false),
    ] {
        let mut exchange = Exchange::default();
        let text = format!("POST /exec/a/b/c HTTP/1.1\r\nHost: n\r\n{more}\r\n");
        let UpStep::Request(request, _) = exchange.up(text.as_bytes()).unwrap() else {
            panic!("a request");
        };
        assert_eq!(exchange.refuse(&request), goes_on, "{more}");
        let next = exchange
            .up(b"GET /pods HTTP/1.1\r\nHost: n\r\n\r\n")
            .unwrap();
        assert_eq!(matches!(next, UpStep::Request(..)), goes_on, "{more}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_survived(data in proptest::collection::vec(any::<u8>(), 0..400)) {
        fuzz::exchange(&data);
    }

    #[test]
    fn pieces_of_http_are_survived(
        split in any::<u8>(),
        parts in proptest::collection::vec(proptest::sample::select(vec![
            "GET /pods HTTP/1.1\r\n", "POST /run/a/b/c HTTP/1.1\r\n", "HEAD / HTTP/1.1\r\n", "Host: n\r\n",
            "Content-Length: 3\r\n", "Transfer-Encoding: chunked\r\n", "\r\n", "\n", "\r", "abc",
            "3\r\nabc\r\n", "0\r\n\r\n", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 100 Continue\r\n",
            "HTTP/1.1 101 Switching Protocols\r\n", "Upgrade: websocket\r\n", "Connection: Upgrade\r\n",
            " ", "X: y\r\n",
        ]), 0..24),
    ) {
        let mut data = vec![split];
        data.extend(parts.concat().bytes());
        fuzz::exchange(&data);
    }
}
