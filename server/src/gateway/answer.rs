//! What the gateway answers by itself: a Kubernetes `Status` object, so that kubectl prints its
//! message as a sentence.

use bytes::Bytes;
use serde_json::json;
use towline_proto::http1::{HeadError, Violation};
use towline_proto::limits;

/// An answer of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    message: String,
}

impl Answer {
    pub(super) fn new(status: u16, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
        }
    }

    /// A request that may not pass.
    pub(super) fn of_violation(violation: Violation) -> Self {
        let status = match violation {
            Violation::Head(HeadError::TooLarge | HeadError::ManyHeaders) => 431,
            Violation::Head(HeadError::Method) => 405,
            Violation::Head(HeadError::Http2 | HeadError::Version) => 505,
            _ => 400,
        };
        Self::new(
            status,
            format!("towline-server refused the request: {violation}"),
        )
    }

    /// A head that did not come to its end.
    pub(super) fn late() -> Self {
        let seconds = limits::GATEWAY_HEAD_TIMEOUT.as_secs();
        Self::new(
            408,
            format!("towline-server: no whole request head within {seconds} s"),
        )
    }

    /// The same without its body: the answer to HEAD.
    pub(super) fn head(&self, last: bool) -> Bytes {
        let mut bytes = self.bytes(last);
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n");
        bytes.truncate(end.map_or(bytes.len(), |end| end + 4));
        bytes
    }

    /// The bytes, for a connection that ends with them (`last`) or goes on.
    pub(super) fn bytes(&self, last: bool) -> Bytes {
        let Answer { status, message } = self;
        let (phrase, reason) = words(*status);
        let body = json!({
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": message,
            "reason": reason,
            "code": status,
        });
        let body = body.to_string();
        let connection = if last { "Connection: close\r\n" } else { "" };
        let length = body.len();
        format!(
            "HTTP/1.1 {status} {phrase}\r\nContent-Type: application/json\r\n\
             Content-Length: {length}\r\n{connection}\r\n{body}"
        )
        .into()
    }
}

/// The phrase of HTTP and the reason of Kubernetes.
const fn words(status: u16) -> (&'static str, &'static str) {
    match status {
        400 => ("Bad Request", "BadRequest"),
        403 => ("Forbidden", "Forbidden"),
        405 => ("Method Not Allowed", "MethodNotAllowed"),
        408 => ("Request Timeout", "Timeout"),
        431 => ("Request Header Fields Too Large", "BadRequest"),
        503 => ("Service Unavailable", "ServiceUnavailable"),
        504 => ("Gateway Timeout", "Timeout"),
        505 => ("HTTP Version Not Supported", "BadRequest"),
        _ => ("Bad Gateway", "ServiceUnavailable"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_a_status_object_of_kubernetes() {
        let bytes = Answer::new(403, "no \"exec\"\r\nhere").bytes(false);
        let text = String::from_utf8(bytes.to_vec()).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 403 Forbidden\r\n"), "{head}");
        assert!(head.contains(&format!("Content-Length: {}", body.len())));
        assert!(!head.contains("Connection"));
        let status: serde_json::Value = serde_json::from_str(body).unwrap();
        for (key, value) in [
            ("kind", json!("Status")),
            ("apiVersion", json!("v1")),
            ("status", json!("Failure")),
            ("reason", json!("Forbidden")),
            ("code", json!(403)),
            ("message", json!("no \"exec\"\r\nhere")),
        ] {
            assert_eq!(status[key], value, "{key}");
        }
        let head = Answer::new(403, "x").head(false);
        assert!(head.ends_with(b"\r\n\r\n") && head.starts_with(b"HTTP/1.1 403 "));
        let last = Answer::new(502, "x").bytes(true);
        assert!(last.starts_with(b"HTTP/1.1 502 Bad Gateway\r\n"));
        assert!(String::from_utf8_lossy(&last).contains("Connection: close\r\n"));
    }
}
