//! The other end of the admin socket: one question to a running daemon, for commands. Blocking,
//! bounded in time and size; nothing of a daemon runs here.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use towline_proto::limits;

/// Why there is no answer. The message names the socket and says what to do.
#[derive(Debug, thiserror::Error)]
pub enum AskError {
    /// Nobody there, or we may not.
    #[error(
        "admin socket {path}: {source}; is the daemon running with --admin-socket {path}, and are \
         you root or its user?",
        path = path.display()
    )]
    Connect {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It ended or stalled in the middle.
    #[error("admin socket {path}: {source}", path = path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It is no daemon of ours, or a very different version.
    #[error("admin socket {path}: what answers there is not a daemon of Towline", path = path.display())]
    NotHttp {
        /// Where.
        path: PathBuf,
    },
    /// It refuses.
    #[error("admin socket {path}: {page} is answered with status {status}: {text}", path = path.display())]
    Status {
        /// Where.
        path: PathBuf,
        /// What was asked for.
        page: String,
        /// The number.
        status: u16,
        /// What it says, bounded and printable.
        text: String,
    },
}

/// Asks for a page and gives its body.
pub fn get(socket: &Path, page: &str) -> Result<Vec<u8>, AskError> {
    let failed = |source| AskError::Io {
        path: socket.into(),
        source,
    };
    let mut stream = UnixStream::connect(socket).map_err(|source| AskError::Connect {
        path: socket.into(),
        source,
    })?;
    stream
        .set_read_timeout(Some(limits::ADMIN_CONNECTION))
        .and_then(|()| stream.set_write_timeout(Some(limits::ADMIN_CONNECTION)))
        .map_err(failed)?;
    let request = format!("GET {page} HTTP/1.1\r\nHost: towline\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).map_err(failed)?;
    let mut answer = Vec::new();
    stream
        .take(limits::ADMIN_ANSWER_BYTES)
        .read_to_end(&mut answer)
        .map_err(failed)?;
    read(socket, page, &answer)
}

fn read(socket: &Path, page: &str, answer: &[u8]) -> Result<Vec<u8>, AskError> {
    let not_http = || AskError::NotHttp {
        path: socket.into(),
    };
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut head = httparse::Response::new(&mut headers);
    let end = match head.parse(answer) {
        Ok(httparse::Status::Complete(end)) => end,
        _ => return Err(not_http()),
    };
    let body = &answer[end..];
    let promised = head
        .headers
        .iter()
        .find(|header| header.name.eq_ignore_ascii_case("content-length"))
        .and_then(|header| {
            std::str::from_utf8(header.value)
                .ok()?
                .parse::<usize>()
                .ok()
        });
    let status = head.code.ok_or_else(not_http)?;
    if promised != Some(body.len()) {
        return Err(AskError::Io {
            path: socket.into(),
            source: io::ErrorKind::UnexpectedEof.into(),
        });
    }
    if status == 200 {
        return Ok(body.to_vec());
    }
    let text = String::from_utf8_lossy(body);
    let printable = text.trim().chars().filter(|c| !c.is_control());
    Err(AskError::Status {
        path: socket.into(),
        page: page.into(),
        status,
        text: printable.take(200).collect(),
    })
}

/// Writes to standard output; a reader that went away (`| head`) is no error.
pub fn print(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(text: &str) -> Result<Vec<u8>, AskError> {
        read(Path::new("/run/x"), "/kubelets", text.as_bytes())
    }

    #[test]
    fn an_answer_is_whole_or_an_error() {
        let whole = answer("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}");
        assert_eq!(whole.unwrap(), b"{}");
        let cut = answer("HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\n{}");
        assert!(matches!(cut, Err(AskError::Io { .. })));
        for noise in ["", "SSH-2.0-x\r\n", "HTTP/1.1 200"] {
            assert!(matches!(answer(noise), Err(AskError::NotHttp { .. })));
        }
        let refused =
            answer("HTTP/1.1 403 Forbidden\r\ncontent-length: 5\r\n\r\nno\u{1b}[m").unwrap_err();
        let said = refused.to_string();
        assert!(
            said.contains("403") && said.contains("no[m") && !said.contains('\u{1b}'),
            "{said}"
        );
    }

    #[test]
    fn who_is_not_there_is_named() {
        let error = get(Path::new("/no/such/socket"), "/kubelets").unwrap_err();
        assert!(
            error.to_string().contains("--admin-socket /no/such/socket"),
            "{error}"
        );
    }
}
