//! A TCP connection to a server through an HTTP proxy: CONNECT, and nothing but CONNECT.

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use towline_proto::limits::{PROXY_HEAD_BYTES, PROXY_HEADERS};
use towline_proto::target::Target;

use super::addresses;
use super::proxy::HttpProxy;
use crate::error::{ConnectError, detail};

/// Connects to the proxy and has it connect to the server.
pub(super) async fn open(proxy: &HttpProxy, server: &Target) -> Result<TcpStream, ConnectError> {
    let refused = |detail: String| ConnectError::Proxy {
        proxy: proxy.to_string(),
        server: server.to_string(),
        detail,
    };
    let mut tcp = addresses::connect(&proxy.host, proxy.port)
        .await
        .map_err(|error| refused(detail(error)))?;
    ask(&mut tcp, proxy, server).await.map_err(refused)?;
    Ok(tcp)
}

/// Sends the request and reads the answer; the error is the cause in words.
async fn ask<IO>(io: &mut IO, proxy: &HttpProxy, server: &Target) -> Result<(), String>
where
    IO: AsyncRead + AsyncWrite + Unpin,
{
    let mut request =
        format!("CONNECT {server} HTTP/1.1\r\nHost: {server}\r\nUser-Agent: towline\r\n");
    if let Some(credentials) = &proxy.credentials {
        request.push_str(&format!("Proxy-Authorization: Basic {credentials}\r\n"));
    }
    request.push_str("\r\n");
    io.write_all(request.as_bytes()).await.map_err(detail)?;
    io.flush().await.map_err(detail)?;
    let mut head = Vec::new();
    loop {
        if head.len() >= PROXY_HEAD_BYTES {
            return Err(format!(
                "the head of its answer is longer than {PROXY_HEAD_BYTES} bytes"
            ));
        }
        let mut rest = (&mut *io).take((PROXY_HEAD_BYTES - head.len()) as u64);
        if rest.read_buf(&mut head).await.map_err(detail)? == 0 {
            return Err("it closed the connection without an answer".to_owned());
        }
        if let Some(end) = verdict(&head, proxy)? {
            // We speak first inside the tunnel: bytes already there are not the server's.
            return match end == head.len() {
                true => Ok(()),
                false => Err("it sent bytes of its own into the tunnel".to_owned()),
            };
        }
    }
}

/// What the answer says: the length of its head, or nothing yet.
fn verdict(head: &[u8], proxy: &HttpProxy) -> Result<Option<usize>, String> {
    let mut headers = [httparse::EMPTY_HEADER; PROXY_HEADERS];
    let mut answer = httparse::Response::new(&mut headers);
    let end = match answer.parse(head) {
        Ok(httparse::Status::Complete(end)) => end,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(format!("its answer is not HTTP: {}", detail(error))),
    };
    match answer.code.unwrap_or_default() {
        200..300 => Ok(Some(end)),
        407 if proxy.credentials.is_some() => {
            Err("it does not accept the user name and password (407); see HTTPS_PROXY".to_owned())
        }
        407 => Err("it wants a user name and password (407); put them into HTTPS_PROXY as http://user:password@host:port".to_owned()),
        code => Err(format!(
            "it answered {code} {}",
            detail(answer.reason.unwrap_or_default())
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What [`ask`] makes of an answer, and what the proxy was asked.
    async fn asked(env: &str, answer: &[u8]) -> (Result<(), String>, String) {
        let proxy = HttpProxy::from_flag_or_env(None, &|name| {
            (name == "HTTPS_PROXY").then(|| env.to_owned())
        })
        .expect("a good setting")
        .expect("a proxy");
        let server: Target = "server.example:8091".parse().expect("a server");
        let (mut near, mut far) = tokio::io::duplex(256);
        let answer = answer.to_owned();
        let peer = tokio::spawn(async move {
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                far.read_buf(&mut request).await.expect("a request");
            }
            // The near end may give up in the middle.
            let _ = far.write_all(&answer).await;
            let _ = far.shutdown().await;
            String::from_utf8(request).expect("text")
        });
        let outcome = ask(&mut near, &proxy, &server).await;
        drop(near);
        (outcome, peer.await.expect("the proxy's end"))
    }

    #[tokio::test]
    async fn the_tunnel_opens_on_any_2xx() {
        let (outcome, request) = asked(
            "http://p:3128",
            b"HTTP/1.1 200 Connection established\r\nVia: x\r\n\r\n",
        )
        .await;
        assert_eq!(outcome, Ok(()));
        assert_eq!(
            request,
            "CONNECT server.example:8091 HTTP/1.1\r\nHost: server.example:8091\r\nUser-Agent: towline\r\n\r\n"
        );
        let (_, request) = asked("http://user:pw@p:3128", b"HTTP/1.0 200 OK\r\n\r\n").await;
        assert!(request.contains("\r\nProxy-Authorization: Basic dXNlcjpwdw==\r\n"));
    }

    #[tokio::test]
    async fn a_refusal_says_what_to_do() {
        let error = |outcome: Result<(), String>| outcome.expect_err("refused");
        let (outcome, _) = asked("p:1", b"HTTP/1.1 407 Auth\r\n\r\n").await;
        assert!(error(outcome).contains("put them into HTTPS_PROXY"));
        let (outcome, _) = asked("u:p@p:1", b"HTTP/1.1 407 Auth\r\n\r\n").await;
        assert!(error(outcome).contains("does not accept"));
        let (outcome, _) = asked("p:1", b"HTTP/1.1 403 No\tway\r\n\r\n").await;
        assert_eq!(error(outcome), "it answered 403 No\\tway");
        let (outcome, _) = asked("p:1", b"SSH-2.0-x\r\n").await;
        assert!(error(outcome).contains("not HTTP"));
        let (outcome, _) = asked("p:1", b"").await;
        assert!(error(outcome).contains("without an answer"));
        let (outcome, _) = asked("p:1", b"HTTP/1.1 200 OK\r\n\r\nhello").await;
        assert!(error(outcome).contains("bytes of its own"));
        let long = [b"HTTP/1.1 200 OK\r\nX: ".to_vec(), vec![b'x'; 20_000]].concat();
        let (outcome, _) = asked("p:1", &long).await;
        assert!(error(outcome).contains("longer than"));
    }

    /// Every answer near a good one is taken or refused, and nothing else happens.
    #[test]
    fn any_answer_is_judged() {
        let proxy = HttpProxy::from_flag_or_env(Some("p:1"), &|_| None)
            .expect("a good setting")
            .expect("a proxy");
        let answer = b"HTTP/1.1 200 OK\r\nVia: 1.1 x\r\nX: y\r\n\r\n";
        for at in 0..answer.len() {
            assert_eq!(
                verdict(&answer[..at], &proxy),
                Ok(None),
                "a part of an answer"
            );
            for value in 0..=u8::MAX {
                let mut mutant = *answer;
                mutant[at] = value;
                let judged = verdict(&mutant, &proxy);
                assert!(
                    judged.is_err()
                        || judged.is_ok_and(|end| end.is_none_or(|end| end <= mutant.len()))
                );
            }
        }
    }
}
