//! Why a file is made, made anew, or waited for: a word for machines and a sentence for people.

use std::fmt;
use std::net::IpAddr;
use std::time::SystemTime;

use crate::date;

/// One reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Nothing was there.
    New,
    /// The machine was not in the file before.
    NewMachine(String),
    /// A run was cut off here, or somebody removed the certificate; its key is there.
    CertificateMissing,
    /// A run was cut off between a certificate and its key.
    CutOff,
    /// Signed by another authority than the one that is there.
    IssuerChanged,
    /// Another subject.
    Subject {
        from: String,
        to: String,
    },
    NameAdded(String),
    NameRemoved(String),
    AddressAdded(IpAddr),
    AddressRemoved(IpAddr),
    /// Another identity.
    IdentityChanged,
    /// Other usages.
    Usages {
        from: String,
        to: String,
    },
    /// Another kind of key than the file asks for.
    KeyKind {
        from: String,
        to: String,
    },
    /// Older than a certificate may become.
    Due {
        not_after: SystemTime,
    },
    Expired {
        not_after: SystemTime,
    },
    /// On a revocation list, or its serial number is denied.
    Revoked,
    /// It begins later than now: made with a clock that was wrong.
    NotYetValid {
        not_before: SystemTime,
    },
    /// It lives longer than the file allows.
    LongLife {
        days: u64,
        most: u64,
    },
    /// kube-apiserver is somewhere else.
    ServerMoved {
        to: String,
    },
    /// The authority's certificates are others than those that are there.
    AnchorsChanged,
    /// What it is a copy of has changed.
    SourceChanged,
    /// A request waits to be signed.
    Unsigned,
    /// The request was answered.
    Answered,
    /// It is not in the file any more.
    Gone,
}

impl Reason {
    /// The word for machines: stable.
    pub const fn as_str(&self) -> &'static str {
        match self {
            Reason::New => "new",
            Reason::NewMachine(_) => "new-machine",
            Reason::CertificateMissing => "certificate-missing",
            Reason::CutOff => "cut-off",
            Reason::IssuerChanged => "issuer-changed",
            Reason::Subject { .. } => "subject-changed",
            Reason::NameAdded(_) => "name-added",
            Reason::NameRemoved(_) => "name-removed",
            Reason::AddressAdded(_) => "address-added",
            Reason::AddressRemoved(_) => "address-removed",
            Reason::IdentityChanged => "identity-changed",
            Reason::Usages { .. } => "usage-changed",
            Reason::KeyKind { .. } => "key-kind-changed",
            Reason::Due { .. } => "due",
            Reason::Expired { .. } => "expired",
            Reason::Revoked => "revoked",
            Reason::NotYetValid { .. } => "not-yet-valid",
            Reason::LongLife { .. } => "long-life",
            Reason::ServerMoved { .. } => "server-moved",
            Reason::AnchorsChanged => "anchors-changed",
            Reason::SourceChanged => "source-changed",
            Reason::Unsigned => "unsigned",
            Reason::Answered => "answered",
            Reason::Gone => "gone",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::New => f.write_str("new"),
            Reason::NewMachine(name) => write!(f, "{name} is new"),
            Reason::CertificateMissing => f.write_str("its certificate is missing"),
            Reason::CutOff => f.write_str("an earlier run was cut off here"),
            Reason::IssuerChanged => f.write_str("signed by another authority"),
            Reason::Subject { from, to } => write!(f, "subject {from} becomes {to}"),
            Reason::NameAdded(name) => write!(f, "name {name} added"),
            Reason::NameRemoved(name) => write!(f, "name {name} removed"),
            Reason::AddressAdded(ip) => write!(f, "address {ip} added"),
            Reason::AddressRemoved(ip) => write!(f, "address {ip} removed"),
            Reason::IdentityChanged => f.write_str("another identity"),
            Reason::Usages { from, to } => write!(f, "usages {from} become {to}"),
            Reason::KeyKind { from, to } => write!(f, "key is {from}, wanted is {to}"),
            Reason::Due { not_after } => write!(f, "due: it ends {}", date::text(*not_after)),
            Reason::Expired { not_after } => write!(f, "it ended {}", date::text(*not_after)),
            Reason::Revoked => f.write_str("it was revoked"),
            Reason::NotYetValid { not_before } => {
                write!(f, "it begins only {}", date::text(*not_before))
            }
            Reason::LongLife { days, most } => {
                write!(f, "it lives {days} days, the file allows {most}")
            }
            Reason::ServerMoved { to } => write!(f, "kube-apiserver is at {to}"),
            Reason::AnchorsChanged => f.write_str("the authority's certificates changed"),
            Reason::SourceChanged => f.write_str("its original changed"),
            Reason::Unsigned => f.write_str("waits for its authority's signature"),
            Reason::Answered => f.write_str("its request was answered"),
            Reason::Gone => f.write_str("not in the file any more"),
        }
    }
}
