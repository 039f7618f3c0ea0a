//! Why a dial or a link was refused or ended: a number for the wire, whose fault it is, and
//! whether trying again can help. No text travels; text is made at the doors and in logs.

use std::fmt;

/// Who has to do something about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Culprit {
    /// A rule or a file of the operator.
    Config,
    /// This process or its machine.
    Local,
    /// The other end of the link.
    Peer,
    /// The endpoint that the dial asked for.
    Target,
}

impl Culprit {
    /// The word used in logs and metric labels.
    pub const fn as_str(self) -> &'static str {
        match self {
            Culprit::Config => "config",
            Culprit::Local => "local",
            Culprit::Peer => "peer",
            Culprit::Target => "target",
        }
    }
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident = $code:literal, $text:literal, $culprit:ident, $retry:literal;)*) => {
        /// Why a dial or a link was refused or ended. Numbers are never reused.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum Reason {
            $($(#[$doc])* $name,)*
            /// A number that a newer peer knows and we do not.
            Unknown(u16),
        }

        impl Reason {
            /// Every reason that this build knows, in order of number.
            pub const ALL: &'static [Reason] = &[$(Reason::$name),*];

            /// The number on the wire.
            pub const fn code(self) -> u16 {
                match self {
                    $(Reason::$name => $code,)*
                    Reason::Unknown(code) => code,
                }
            }

            /// The reason of a number from the wire.
            pub const fn from_code(code: u16) -> Self {
                match code {
                    $($code => Reason::$name,)*
                    other => Reason::Unknown(other),
                }
            }

            /// The word used in logs, metric labels and audit records.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Reason::$name => $text,)*
                    Reason::Unknown(_) => "unknown",
                }
            }

            /// Whose fault it is.
            pub const fn culprit(self) -> Culprit {
                match self {
                    $(Reason::$name => Culprit::$culprit,)*
                    Reason::Unknown(_) => Culprit::Peer,
                }
            }

            /// Whether the same attempt can succeed later without anybody changing a file.
            pub const fn retry(self) -> bool {
                match self {
                    $(Reason::$name => $retry,)*
                    Reason::Unknown(_) => true,
                }
            }
        }
    };
}

reasons! {
    /// Orderly end: both directions were finished.
    Done = 0, "done", Peer, true;
    /// The owner of the target has no live link.
    NoAgent = 1, "no-agent", Peer, true;
    /// No agent is granted this target.
    NoRoute = 2, "no-route", Config, false;
    /// The server's policy does not allow this target.
    ServerPolicy = 3, "server-policy", Config, false;
    /// The agent's policy does not allow this target.
    AgentPolicy = 4, "agent-policy", Config, false;
    /// The address is one that no rule can allow (link-local, metadata, loopback and so on).
    ForbiddenAddress = 5, "forbidden-address", Config, false;
    /// The target is not `host:port`.
    BadTarget = 6, "bad-target", Local, false;
    /// The dial's deadline passed before the agent answered.
    DialTimeout = 7, "dial-timeout", Peer, true;
    /// The target refused the connection.
    TargetRefused = 8, "target-refused", Target, true;
    /// No route from the node to the target.
    TargetUnreachable = 9, "target-unreachable", Target, true;
    /// The target did not answer the connection attempt in time.
    TargetTimeout = 10, "target-timeout", Target, true;
    /// The name does not resolve on the node.
    NameNotFound = 11, "name-not-found", Target, true;
    /// The target reset the connection.
    TargetReset = 12, "target-reset", Target, true;
    /// The agent has as many dials as it may have, or no file descriptors left.
    AgentBusy = 13, "agent-busy", Peer, true;
    /// The server has as many dials as it may have.
    ServerBusy = 14, "server-busy", Local, true;
    /// The link was lost.
    LinkLost = 15, "link-lost", Peer, true;
    /// The end that was asked takes no new dials.
    Draining = 16, "draining", Peer, true;
    /// The process-wide byte budget was used up; this dial had been stalled longest.
    MemoryBudget = 17, "memory-budget", Local, true;
    /// The task that served the dial ended without finishing it.
    Aborted = 18, "aborted", Local, true;
    /// The front end went away.
    FrontEndGone = 19, "front-end-gone", Local, true;
    /// The reader at the far edge takes no more bytes.
    ReaderGone = 20, "reader-gone", Target, true;
    /// The peer's identity or serial is on the deny list.
    Denied = 21, "denied", Config, false;
    /// The peer's certificate reached its end of life.
    CertificateEnded = 22, "certificate-ended", Peer, true;
    /// A newer instance of the same agent took over.
    Superseded = 23, "superseded", Peer, false;
    /// The peer broke the protocol.
    Protocol = 24, "protocol", Peer, false;
    /// No version that both ends speak.
    Version = 25, "version", Peer, false;
    /// Nothing was heard from the peer for too long.
    PeerSilent = 26, "peer-silent", Peer, true;
    /// The greeting did not come in time.
    GreetingTimeout = 27, "greeting-timeout", Peer, true;
    /// The process ends.
    Shutdown = 28, "shutdown", Peer, true;
    /// The agent claims more than it is granted.
    ExcessClaim = 29, "excess-claim", Peer, false;
    /// The server has as many links as it may have.
    Overloaded = 30, "overloaded", Peer, true;
    /// The link was replaced by one on another carrier or path.
    Moved = 31, "moved", Peer, false;
    /// The peer's certificate does not verify.
    BadCertificate = 32, "bad-certificate", Peer, false;
    /// The connection could not be made at all.
    Unreachable = 33, "unreachable", Peer, true;
    /// A limit of the machine was reached (descriptors, memory).
    LocalResources = 34, "local-resources", Local, true;
    /// The kubelet's certificate does not verify, or is not of the node.
    KubeletUnverified = 35, "kubelet-unverified", Target, false;
    /// The TLS handshake by which the kubelet is verified did not come to its end.
    KubeletHandshake = 36, "kubelet-handshake", Target, true;
    /// The dial was live, and a new policy does not allow it.
    PolicyChanged = 50, "policy-changed", Config, false;
    /// The dial was live, and its agent is no longer granted its target.
    RouteWithdrawn = 51, "route-withdrawn", Config, false;
    /// The audit trail cannot be written, and what cannot be recorded is not done.
    AuditUnavailable = 60, "audit-unavailable", Local, true;
    /// The gateway: the front end sent a request that may not pass, and nothing can follow it.
    BadRequest = 70, "bad-request", Local, false;
    /// The gateway: the front end did not prove to be one.
    FrontEndUnverified = 71, "front-end-unverified", Config, false;
    /// The peer's certificate, or that of an authority above it, is revoked.
    Revoked = 80, "revoked", Config, false;
    /// No current revocation list says whether the peer's certificate is revoked.
    RevocationUnknown = 81, "revocation-unknown", Config, false;
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Unknown(code) => write!(f, "unknown reason {code}"),
            known => f.write_str(known.as_str()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn a_reason_survives_the_wire() {
        for reason in Reason::ALL {
            assert_eq!(Reason::from_code(reason.code()), *reason);
        }
        assert_eq!(Reason::from_code(60_000), Reason::Unknown(60_000));
        assert_eq!(Reason::Unknown(60_000).code(), 60_000);
    }

    #[test]
    fn numbers_and_words_are_used_once() {
        let codes: HashSet<_> = Reason::ALL.iter().map(|r| r.code()).collect();
        let words: HashSet<_> = Reason::ALL.iter().map(|r| r.as_str()).collect();
        assert_eq!(codes.len(), Reason::ALL.len());
        assert_eq!(words.len(), Reason::ALL.len());
    }
}
