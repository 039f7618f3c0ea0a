//! Why a link could not be made, for both carriers.

use std::fmt;
use std::io;
use std::time::Duration;

use towline_pki::PeerError;
use towline_proto::reason::Reason;

/// Longest text of a peer or a library that is kept in an error, characters.
const DETAIL_CHARS: usize = 200;

/// Why a link could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The host name of the server, or of a proxy, gave no address.
    #[error("cannot resolve the name {host:?}: {source}")]
    Resolve {
        /// The name that was asked for.
        host: String,
        /// What the resolver said.
        source: io::Error,
    },
    /// No packet could be sent, or the address refused.
    #[error("cannot reach {server}: {source}")]
    Unreachable {
        /// Address or name and port.
        server: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// No verified connection in time. On QUIC this is also what a blocked UDP port looks like.
    #[error("{server} did not complete a handshake within {after:?}")]
    Timeout {
        /// Address or name and port.
        server: String,
        /// The limit that passed.
        after: Duration,
    },
    /// One end gave the handshake up.
    #[error("the handshake with {server} failed ({reason}): {detail}")]
    Handshake {
        /// Address or name and port.
        server: String,
        /// What it means for a retry.
        reason: Reason,
        /// The library's words, escaped and bounded.
        detail: String,
    },
    /// The certificate that the other end showed is not one that we take.
    #[error("{server} is not a peer that this process trusts: {source}")]
    Peer {
        /// Address or name and port.
        server: String,
        /// What is wrong with the certificate.
        source: PeerError,
    },
    /// The other end does not speak Towline.
    #[error("{server} does not speak the protocol towline/1 on this port")]
    Alpn {
        /// Address or name and port.
        server: String,
    },
    /// The HTTP proxy did not open the tunnel.
    #[error("the HTTP proxy {proxy} does not connect to {server}: {detail}")]
    Proxy {
        /// The proxy's address, without credentials.
        proxy: String,
        /// Address or name and port behind it.
        server: String,
        /// Its answer, escaped and bounded.
        detail: String,
    },
}

impl ConnectError {
    /// What it means for the back-off, for metrics and for the log.
    pub fn reason(&self) -> Reason {
        match self {
            ConnectError::Resolve { .. } => Reason::NameNotFound,
            ConnectError::Unreachable { .. }
            | ConnectError::Timeout { .. }
            | ConnectError::Proxy { .. } => Reason::Unreachable,
            ConnectError::Handshake { reason, .. } => *reason,
            ConnectError::Peer { source, .. } => source.reason(),
            ConnectError::Alpn { .. } => Reason::Version,
        }
    }
}

/// Text from a peer or a library, fit for a log: escaped and bounded.
pub fn detail(text: impl fmt::Display) -> String {
    let text = text.to_string();
    let mut kept = String::new();
    for c in text.chars().take(DETAIL_CHARS) {
        escape(c, &mut kept);
    }
    if text.chars().nth(DETAIL_CHARS).is_some() {
        kept.push_str("...");
    }
    kept
}

/// The same for a sentence of our own that holds a word of a peer: whole, and with its quotes as
/// they are.
pub fn one_line(text: &str) -> String {
    let mut kept = String::with_capacity(text.len());
    for c in text.chars() {
        escape(c, &mut kept);
    }
    kept
}

/// Quotes hurt nobody in a line of text, and are half as readable behind a backslash.
fn escape(c: char, into: &mut String) {
    match c {
        '"' | '\'' => into.push(c),
        c => into.extend(c.escape_debug()),
    }
}

#[cfg(test)]
mod tests {
    use super::{detail, one_line};

    #[test]
    fn text_of_a_peer_is_escaped_and_bounded() {
        assert_eq!(detail("a\nb"), "a\\nb");
        assert_eq!(detail("x".repeat(500)).len(), 203);
        assert_eq!(one_line("a\u{1b}[1m\u{202e}\\"), "a\\u{1b}[1m\\u{202e}\\\\");
    }

    #[test]
    fn quotes_stay_as_they_are() {
        let text = "the server's policy: \"n1\" has no port";
        assert_eq!(detail(text), text);
        assert_eq!(one_line(text), text);
    }
}
