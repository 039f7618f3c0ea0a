//! How a gRPC call ends: a number and a text, in headers or trailers.

use http::{HeaderMap, HeaderValue};
use towline_proto::limits;

macro_rules! codes {
    ($($name:ident = $number:literal, $word:literal, $doc:literal;)*) => {
        /// How a call ended, as gRPC numbers it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Code {
            $(#[doc = $doc] $name = $number,)*
        }

        impl Code {
            /// The code of a number; what is no number of a code is [`Code::Unknown`].
            pub const fn from_number(number: u16) -> Self {
                match number {
                    $($number => Code::$name,)*
                    _ => Code::Unknown,
                }
            }

            /// The name in metrics.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Code::$name => $word,)*
                }
            }
        }
    };
}

codes! {
    Ok = 0, "OK", "In order.";
    Canceled = 1, "Canceled", "Given up by the caller.";
    Unknown = 2, "Unknown", "What Go gives an error that is no status.";
    InvalidArgument = 3, "InvalidArgument", "A request that makes no sense.";
    DeadlineExceeded = 4, "DeadlineExceeded", "The caller's time is over.";
    NotFound = 5, "NotFound", "No such thing.";
    AlreadyExists = 6, "AlreadyExists", "It is there.";
    PermissionDenied = 7, "PermissionDenied", "Not allowed.";
    ResourceExhausted = 8, "ResourceExhausted", "Too long a message, or too many of something.";
    FailedPrecondition = 9, "FailedPrecondition", "Not in this state.";
    Aborted = 10, "Aborted", "Somebody was faster.";
    OutOfRange = 11, "OutOfRange", "Past the end.";
    Unimplemented = 12, "Unimplemented", "No such method.";
    Internal = 13, "Internal", "Not the protocol.";
    Unavailable = 14, "Unavailable", "Not now.";
    DataLoss = 15, "DataLoss", "Lost for good.";
    Unauthenticated = 16, "Unauthenticated", "Nobody knows who asks.";
}

/// A code and its text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Status {
    /// The number.
    pub code: Code,
    /// The words.
    pub message: String,
}

impl Status {
    /// A status.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
        }
    }

    /// Writes it into an answer's headers, or behind its messages.
    pub fn put(&self, headers: &mut HeaderMap) {
        headers.insert("grpc-status", HeaderValue::from(self.code as u16));
        let text = percent(&self.message);
        if !text.is_empty()
            && let Ok(text) = HeaderValue::from_str(&text)
        {
            headers.insert("grpc-message", text);
        }
    }
}

impl Status {
    /// What a peer says; without a `grpc-status` there is none.
    pub fn read(headers: &HeaderMap) -> Option<Self> {
        let code = headers.get("grpc-status")?.to_str().ok();
        let code = code.and_then(|code| code.parse().ok());
        let text = headers.get("grpc-message").map(HeaderValue::as_bytes);
        Some(Self {
            code: code.map_or(Code::Unknown, Code::from_number),
            message: text.map(unescape).unwrap_or_default(),
        })
    }
}

/// The opposite of [`percent`], bounded.
fn unescape(text: &[u8]) -> String {
    let mut out = Vec::new();
    let mut rest = &text[..text.len().min(3 * limits::KONNECTIVITY_TEXT_BYTES)];
    while let [first, after @ ..] = rest {
        rest = after;
        let digit = |at: usize| {
            let digit = after.get(at).map(|byte| char::from(*byte));
            digit.and_then(|digit| digit.to_digit(16))
        };
        match (first, digit(0), digit(1)) {
            (b'%', Some(high), Some(low)) => {
                out.push((high << 4 | low) as u8);
                rest = &after[2..];
            }
            _ => out.push(*first),
        }
    }
    let text = String::from_utf8_lossy(&out);
    text.chars().take(limits::KONNECTIVITY_TEXT_BYTES).collect()
}

/// As gRPC writes a message into a header: printable ASCII but `%`, the rest as `%XX`.
fn percent(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes().take(limits::KONNECTIVITY_TEXT_BYTES) {
        match byte {
            b' '..=b'~' if byte != b'%' => out.push(char::from(byte)),
            other => {
                out.push('%');
                out.push_str(&format!("{other:02X}"));
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_written_as_grpc_wants() {
        assert_eq!(percent("a b~"), "a b~");
        assert_eq!(percent("100%\n\u{e9}"), "100%25%0A%C3%A9");
        assert_eq!(
            percent(&"x".repeat(9000)).len(),
            limits::KONNECTIVITY_TEXT_BYTES
        );
    }

    #[test]
    fn a_status_survives_its_headers() {
        for status in [
            Status::new(Code::Unknown, "100% \u{e9}\n"),
            Status::new(Code::Unauthenticated, ""),
        ] {
            let mut headers = HeaderMap::new();
            status.put(&mut headers);
            assert_eq!(Status::read(&headers), Some(status));
        }
        assert_eq!(Status::read(&HeaderMap::new()), None);
        assert_eq!(Code::from_number(99), Code::Unknown);
        assert_eq!(
            (Code::Ok.as_str(), Code::DataLoss.as_str()),
            ("OK", "DataLoss")
        );
        assert_eq!(unescape(b"%4%zz%"), "%4%zz%");
    }
}
