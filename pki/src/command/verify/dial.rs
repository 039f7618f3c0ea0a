//! `verify HOST:PORT`: one handshake, judged by the verifier of a daemon.

use std::io;
use std::time::SystemTime;

use rustls::{AlertDescription, Error as TlsFailure};
use towline_pki::kubelet::{self, Cause, KubeletCheck};
use towline_pki::probe::{Client, Judge, Probe, probe};
use towline_pki::{Leaf, PeerError, PeerVerifier, WebPair, store};
use towline_proto::id::ClusterName;
use towline_proto::target::{Host, Target};

use super::verdict::{Connection, Fault, Judged};
use super::{Args, Expected, Rules};
use crate::command::answer::Answer;
use crate::command::{Failure, ask};

pub(super) fn run(args: &Args, target: &Target, now: SystemTime) -> Result<Answer, Failure> {
    let own = own(args)?;
    let rules = Rules::load(args)?;
    let host = args.host.clone().unwrap_or_else(|| target.host.clone());
    let mut notes = Vec::new();
    let judge = match rules {
        Rules::Identity {
            role,
            anchors,
            deny,
            lists,
        } => {
            if args.role != Expected::Server {
                return Err(Failure::usage(format!(
                    "a peer of role {role} listens nowhere; name its certificate's file"
                )));
            }
            let cluster = match cluster(args)? {
                Some(cluster) => cluster,
                None => {
                    notes.push("the cluster was not checked; name it with --cluster");
                    // Which one it says it is of: a look, before the handshake that counts.
                    let seen = reach(args, ask::certificates(target))?;
                    let leaf = seen.first().ok_or(PeerError::NoCertificate);
                    let leaf = leaf.and_then(|der| Ok(Leaf::parse(der)?));
                    match leaf {
                        Ok(leaf) => leaf.identity.cluster,
                        Err(error) => {
                            let judged = Judged::of_peer_error(&error);
                            return judged.answer(&args.place, &seen, &[], None, now);
                        }
                    }
                }
            };
            Judge::Server(PeerVerifier::with_lists(
                cluster, role, anchors, deny, lists,
            ))
        }
        Rules::Kubelet(trust) => {
            let Some(node) = args.node.clone() else {
                return Err(Failure::usage("--role kubelet needs --node"));
            };
            let expected = kubelet::Expected {
                node,
                host: host.clone(),
            };
            Judge::Kubelet(KubeletCheck::new(trust, expected))
        }
        Rules::Web(roots) => Judge::Web(roots),
    };
    let mut stream = reach(args, ask::connect(target))?;
    let seen = probe(&mut stream, &judge, &host, own.as_ref()).map_err(Failure::failed)?;
    let judged = judged(args, &judge, &seen, &host, now);
    let connection = Connection {
        version: seen.version,
        alpn: seen.alpn.clone(),
        client: client_word(&seen.client),
        client_text: client_text(&seen.client),
    };
    judged.answer(&args.place, &seen.chain, &notes, Some(connection), now)
}

fn own(args: &Args) -> Result<Option<WebPair>, Failure> {
    let (Some(cert), Some(key)) = (&args.cert, &args.key) else {
        return Ok(None);
    };
    // For its mode; the pair itself is read by the TLS side.
    drop(store::read_private_key(key)?);
    WebPair::load(cert, key).map(Some).map_err(Failure::file)
}

/// That of --cluster, or of the certificate that we show.
fn cluster(args: &Args) -> Result<Option<ClusterName>, Failure> {
    if let Some(cluster) = &args.cluster {
        return Ok(Some(cluster.clone()));
    }
    let Some(cert) = &args.cert else {
        return Ok(None);
    };
    let chain = store::read_certificates(cert)?;
    let leaf = chain.first().and_then(|der| Leaf::parse(der).ok());
    Ok(leaf.map(|leaf| leaf.identity.cluster))
}

fn reach<T>(args: &Args, result: Result<T, ask::AskError>) -> Result<T, Failure> {
    result.map_err(|error| Failure::failed(format!("{}: {error}", args.place)))
}

/// What the daemon would say: of the certificate first, then of the connection.
fn judged(args: &Args, judge: &Judge, seen: &Probe, host: &Host, now: SystemTime) -> Judged {
    if seen.chain.is_empty() {
        return Judged::Bad(unfinished(judge, seen));
    }
    let by_rule = match judge {
        Judge::Server(verifier) => Judged::of_peer(verifier.verify(&seen.chain, now)),
        Judge::Kubelet(check) => match (check.verdict(), &args.node) {
            (Some(verdict), Some(node)) => Judged::of_kubelet(node, verdict),
            _ => Judged::Bad(unfinished(judge, seen)),
        },
        Judge::Web(roots) => Judged::of_web(roots, &seen.chain, host, now),
    };
    let Judged::Good { .. } = &by_rule else {
        return by_rule;
    };
    if seen.handshake.is_err() {
        return Judged::Bad(unfinished(judge, seen));
    }
    if args.role == Expected::Server && seen.alpn.is_none() {
        return Judged::Bad(Fault {
            cause: "wrong-protocol",
            reason: "it agrees to neither towline/1 nor what is spoken at a door".to_owned(),
            fix: OTHER_PORT,
        });
    }
    if let Client::Refused(alert) = &seen.client {
        return Judged::Bad(Fault {
            cause: "we-are-refused",
            reason: format!("it is who it must be, but does not take our certificate: {alert}"),
            fix: "look at the server's log: is the authority of --cert in its trust file for our \
                  role (--agent-ca, --client-ca), and are we not on its deny list?",
        });
    }
    by_rule
}

const OTHER_PORT: &str = "see what listens at this port: links come to --listen of towline-server, front ends to its door";

/// Why a handshake did not come to its end although nobody here refused it.
fn unfinished(judge: &Judge, seen: &Probe) -> Fault {
    let error = seen.handshake.as_ref().err();
    let tls = error
        .and_then(|error| error.get_ref())
        .and_then(|inner| inner.downcast_ref::<TlsFailure>());
    if let (Judge::Kubelet(_), Some(tls)) = (judge, tls) {
        return Fault::of_cause(&Cause::of_tls(tls));
    }
    let text = error.map_or_else(|| "nothing was shown".to_owned(), ToString::to_string);
    let (cause, reason, fix) = match (tls, error.map(io::Error::kind)) {
        (Some(TlsFailure::AlertReceived(AlertDescription::NoApplicationProtocol)), _) => (
            "wrong-protocol",
            "it speaks neither towline/1 nor what is spoken at a door".to_owned(),
            OTHER_PORT,
        ),
        (Some(TlsFailure::AlertReceived(alert)), _) => (
            "handshake",
            format!("it ended the handshake: {alert:?}"),
            "look at its log",
        ),
        (Some(TlsFailure::InvalidMessage(_) | TlsFailure::InappropriateMessage { .. }), _) => (
            "not-tls",
            "what answers does not speak TLS".to_owned(),
            OTHER_PORT,
        ),
        (_, Some(io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut)) => (
            "timeout",
            "it did not finish the TLS handshake in time".to_owned(),
            "see that it runs and is not overloaded",
        ),
        (_, Some(io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset)) => (
            "hung-up",
            "it closed the connection during the TLS handshake".to_owned(),
            "look at its log",
        ),
        _ => (
            "handshake",
            format!("the TLS handshake failed: {text}"),
            "look at its log",
        ),
    };
    Fault { cause, reason, fix }
}

fn client_word(client: &Client) -> &'static str {
    match client {
        Client::NotAsked => "not-asked",
        Client::Required => "required",
        Client::Optional => "optional",
        Client::Taken => "taken",
        Client::Refused(_) => "refused",
        Client::Unknown => "unknown",
    }
}

fn client_text(client: &Client) -> String {
    match client {
        Client::NotAsked => "it did not ask for our certificate".to_owned(),
        Client::Required => {
            "it lets nobody in without a certificate; show one with --cert and --key".to_owned()
        }
        Client::Optional => "it asked for a certificate, and does without".to_owned(),
        Client::Taken => "our certificate was taken".to_owned(),
        Client::Refused(alert) => format!("our certificate was refused: {alert}"),
        Client::Unknown => "whether it takes our certificate is not known".to_owned(),
    }
}
