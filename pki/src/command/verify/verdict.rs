//! A verdict: who it is and until when, or what is wrong and what to do about it; and how that is
//! told.

use std::fmt::Write;
use std::time::SystemTime;

use rustls::CertificateError as TlsCertificateError;
use rustls_pki_types::CertificateDer;
use serde_json::{Value, json};
use towline_pki::kubelet::{self, Cause};
use towline_pki::{Certificate, PeerError, VerifiedPeer, WebError, WebRoots, date, web};
use towline_proto::id::Name;
use towline_proto::target::Host;

use crate::command::Failure;
use crate::command::answer::{self, Answer};

/// See the head of this file.
pub(super) enum Judged {
    Good {
        /// "server cp-1 of prod", "kubelet of node-7".
        who: String,
        identity: Option<String>,
        until: SystemTime,
    },
    Bad(Fault),
}

/// What is wrong.
pub(super) struct Fault {
    /// For machines: stable.
    pub(super) cause: &'static str,
    pub(super) reason: String,
    pub(super) fix: &'static str,
}

impl Fault {
    pub(super) fn of_cause(cause: &Cause) -> Self {
        Self {
            cause: cause.as_str(),
            reason: cause.to_string(),
            fix: cause.fix(),
        }
    }
}

/// How a dial went, beside the certificate.
pub(super) struct Connection {
    pub(super) version: Option<&'static str>,
    pub(super) alpn: Option<String>,
    /// For machines: stable.
    pub(super) client: &'static str,
    /// The same for people.
    pub(super) client_text: String,
}

impl Judged {
    pub(super) fn of_peer(judged: Result<VerifiedPeer, PeerError>) -> Self {
        match judged {
            Ok(peer) => {
                let identity = peer.identity();
                Judged::Good {
                    who: format!(
                        "{} {} of {}",
                        identity.role, identity.name, identity.cluster
                    ),
                    identity: Some(identity.to_string()),
                    until: peer.valid_until(),
                }
            }
            Err(error) => Judged::of_peer_error(&error),
        }
    }

    pub(super) fn of_peer_error(error: &PeerError) -> Self {
        Judged::Bad(Fault {
            cause: error.as_str(),
            reason: error.to_string(),
            fix: error.fix(),
        })
    }

    pub(super) fn of_kubelet(node: &Name, verdict: &kubelet::Verdict) -> Self {
        match &verdict.result {
            Ok(until) => Judged::Good {
                who: format!("kubelet of {node}"),
                identity: None,
                until: *until,
            },
            Err(cause) => Judged::Bad(Fault::of_cause(cause)),
        }
    }

    pub(super) fn of_web(
        roots: &WebRoots,
        chain: &[CertificateDer<'static>],
        host: &Host,
        now: SystemTime,
    ) -> Self {
        let checked =
            web::server_name(&host_text(host)).and_then(|name| roots.check(chain, &name, now));
        match checked {
            Ok(()) => {
                let read = chain
                    .iter()
                    .filter_map(|der| Certificate::parse(der.as_ref()).ok());
                Judged::Good {
                    who: format!("server {}", host_text(host)),
                    identity: None,
                    until: read.map(|one| one.not_after).min().unwrap_or(now),
                }
            }
            Err(error) => Judged::of_web_error(&error),
        }
    }

    fn of_web_error(error: &WebError) -> Self {
        let (cause, fix) = match error {
            WebError::Server(rustls::Error::InvalidCertificate(error)) => web_cause(error),
            WebError::NoCertificate => ("no-certificate", "see what listens at this port"),
            _ => ("bad-certificate", "issue it anew"),
        };
        Judged::Bad(Fault {
            cause,
            reason: error.to_string(),
            fix,
        })
    }

    /// Nothing that it could be dialled by.
    pub(super) fn nameless() -> Self {
        Judged::Bad(Fault {
            cause: "no-names",
            reason: "the certificate has neither DNS names nor addresses".to_owned(),
            fix: "issue it anew with the names and addresses that it is dialled by",
        })
    }

    /// For people, for machines, and as an exit code.
    pub(super) fn answer(
        self,
        place: &str,
        chain: &[CertificateDer<'static>],
        notes: &[&str],
        connection: Option<Connection>,
        now: SystemTime,
    ) -> Result<Answer, Failure> {
        let read: Vec<Certificate> = chain
            .iter()
            .filter_map(|der| Certificate::parse(der.as_ref()).ok())
            .collect();
        let shown: Vec<Value> = read
            .iter()
            .map(|one| answer::certificate(one, now))
            .collect();
        let tls = connection.as_ref().map(|connection| {
            json!({
                "version": connection.version,
                "alpn": connection.alpn,
                "client": connection.client,
            })
        });
        let mut result = json!({
            "place": place,
            "verified": matches!(self, Judged::Good { .. }),
            "connection": tls,
            "notes": notes,
            "certificates": shown,
        });
        let mut text = String::new();
        let mut line = |name: &str, value: &str| {
            let _ = writeln!(text, "  {name:<10}{value}");
        };
        match &self {
            Judged::Good {
                identity, until, ..
            } => {
                if let Some(identity) = identity {
                    line("identity", identity);
                }
                line(
                    "until",
                    &format!("{} ({})", date::text(*until), date::distance(now, *until)),
                );
                result["identity"] = identity.clone().into();
                result["validUntil"] = date::text(*until).into();
            }
            Judged::Bad(fault) => {
                line("cause", fault.cause);
                line("reason", &fault.reason);
                line("fix", fault.fix);
                result["cause"] = fault.cause.into();
                result["reason"] = fault.reason.clone().into();
                result["fix"] = fault.fix.into();
            }
        }
        if let Some(connection) = &connection {
            let version = connection.version.unwrap_or("TLS not agreed on");
            let alpn = connection.alpn.as_deref().unwrap_or("none");
            line("link", &format!("{version}, protocol {alpn}"));
            line("client", &connection.client_text);
        }
        for (index, one) in read.iter().enumerate() {
            let end = date::text(one.not_after);
            let name = if index == 0 { "shown" } else { "" };
            line(
                name,
                &format!("{} until {end}, serial {}", one.subject, one.serial),
            );
        }
        for note in notes {
            line("note", note);
        }
        match self {
            Judged::Good { who, .. } => Ok(Answer::new(format!("verified {who}\n{text}"), result)),
            Judged::Bad(fault) => {
                let failure = Failure::failed(format!("{place}: {}", fault.reason));
                Err(failure.with_answer(Answer::new(format!("refused  {place}\n{text}"), result)))
            }
        }
    }
}

fn web_cause(error: &TlsCertificateError) -> (&'static str, &'static str) {
    use TlsCertificateError as E;
    match error {
        E::UnknownIssuer => (
            "unknown-issuer",
            "name with --trust the authority that signed it, or issue it anew from the one that is \
             trusted",
        ),
        E::Expired | E::ExpiredContext { .. } => (
            "expired",
            "renew it; `towline-pki needs-renewal` tells in time when one is due",
        ),
        E::NotValidYet | E::NotValidYetContext { .. } => {
            ("not-yet-valid", "compare the clocks of both machines")
        }
        E::NotValidForName | E::NotValidForNameContext { .. } => (
            "wrong-name",
            "dial it by a name or address that is in it, or issue it anew with this one",
        ),
        E::InvalidPurpose | E::InvalidPurposeContext { .. } => {
            ("wrong-usage", "issue it anew for serverAuth")
        }
        _ => (
            "bad-certificate",
            "issue it anew; `towline-pki inspect` shows what is in it",
        ),
    }
}

/// What a certificate in a file could be dialled by.
pub(super) fn first_name(chain: &[CertificateDer<'static>]) -> Option<Host> {
    let leaf = Certificate::parse(chain.first()?.as_ref()).ok()?;
    let ip = leaf.ip_sans.first().map(|ip| Host::Ip(*ip));
    ip.or_else(|| leaf.dns_sans.iter().find_map(|name| name.parse().ok()))
}

pub(super) fn host_text(host: &Host) -> String {
    match host {
        Host::Ip(ip) => ip.to_string(),
        Host::Name(name) => name.to_string(),
    }
}
