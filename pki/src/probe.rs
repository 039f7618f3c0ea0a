//! One real handshake with a server, for people who ask whether it would do: what it showed, what
//! a daemon's own verifier says to that, and whether it takes our certificate.
//!
//! Unlike [`crate::presented`] this goes the whole way: the server proves that it holds its key,
//! and we show our certificate when we have one. Nothing but the end of the connection is sent
//! over it; what a server says to that tells whether it took us.

use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    ClientConnection, DigitallySignedStruct, Error as TlsFailure, ProtocolVersion, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use towline_proto::limits;
use towline_proto::target::Host;
use towline_proto::version::ALPN_LINK;

use crate::inspect::escape;
use crate::kubelet::KubeletCheck;
use crate::tls::{self, TlsError};
use crate::verify::PeerVerifier;
use crate::web::{WebPair, WebRoots};

/// Whom we take the server for, and thereby how it is spoken to and judged.
pub enum Judge {
    /// A Towline server, at its link port or its door.
    Server(Arc<PeerVerifier>),
    /// The kubelet of a node.
    Kubelet(Arc<KubeletCheck>),
    /// A server known by its name alone: kube-apiserver.
    Web(WebRoots),
}

/// What came of it.
#[derive(Debug)]
pub struct Probe {
    /// What the server showed, leaf first; empty when it did not come to that.
    pub chain: Vec<CertificateDer<'static>>,
    /// Whether the handshake came to its end, which the verifier must have allowed.
    pub handshake: Result<(), io::Error>,
    /// "TLS 1.3", once that is agreed.
    pub version: Option<&'static str>,
    /// The protocol that was agreed on.
    pub alpn: Option<String>,
    /// What became of our certificate.
    pub client: Client,
}

/// What a server makes of who comes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Client {
    /// It did not ask for a certificate.
    NotAsked,
    /// It asked, was shown none, and ended the connection for it.
    Required,
    /// It asked, was shown none, and went on.
    Optional,
    /// It was shown ours and went on.
    Taken,
    /// It was shown ours and ended the connection: the alert.
    Refused(String),
    /// Nobody can say: the handshake did not end, or the server said nothing more in time.
    Unknown,
}

/// Dials through `io`, which blocks as long as its time-outs say.
pub fn probe(
    io: &mut (impl Read + Write),
    judge: &Judge,
    host: &Host,
    own: Option<&WebPair>,
) -> Result<Probe, TlsError> {
    let witness = Arc::new(Witness {
        inner: judge.verifier()?,
        chain: OnceLock::new(),
    });
    let asked = Arc::new(Asked {
        own: own.map(WebPair::presented),
        was: AtomicBool::new(false),
    });
    let (alpn, name): (&[&[u8]], _) = match judge {
        Judge::Server(_) => (&[ALPN_LINK, tls::ALPN_HTTP11], tls::server_name()),
        Judge::Kubelet(_) => (&[tls::ALPN_HTTP11], tls::kubelet_name(host)),
        Judge::Web(_) => (
            &[tls::ALPN_HTTP2, tls::ALPN_HTTP11],
            tls::kubelet_name(host),
        ),
    };
    let ours = matches!(judge, Judge::Server(_));
    let config = tls::probing_client(
        Arc::clone(&witness) as _,
        Arc::clone(&asked) as _,
        alpn,
        ours,
    )?;
    let mut connection = ClientConnection::new(config, name)?;
    let handshake = loop {
        match connection.complete_io(io) {
            Ok(_) if connection.is_handshaking() => {}
            Ok(_) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    let was_asked = asked.was.load(Ordering::Relaxed);
    let client = match (&handshake, was_asked, own.is_some()) {
        (Ok(()), false, _) => {
            goodbye(&mut connection, io);
            Client::NotAsked
        }
        (Ok(()), true, shown) => farewell(&mut connection, io, shown),
        (Err(_), ..) => Client::Unknown,
    };
    Ok(Probe {
        chain: witness.chain.get().cloned().unwrap_or_default(),
        handshake,
        version: connection.protocol_version().map(version_word),
        alpn: connection
            .alpn_protocol()
            .map(|name| escape(&String::from_utf8_lossy(name))),
        client,
    })
}

/// Says goodbye and listens to the answer: a server that does not take us sends an alert, one that
/// does ends the connection as well.
fn farewell(
    connection: &mut ClientConnection,
    io: &mut (impl Read + Write),
    shown: bool,
) -> Client {
    let good = match shown {
        true => Client::Taken,
        false => Client::Optional,
    };
    let bad = |alert: String| match shown {
        true => Client::Refused(alert),
        false => Client::Required,
    };
    goodbye(connection, io);
    for _ in 0..limits::PROBE_READS {
        match connection.read_tls(io) {
            Ok(0) => return good,
            Ok(_) => {}
            Err(_) => return Client::Unknown,
        }
        match connection.process_new_packets() {
            Ok(state) if state.peer_has_closed() => return good,
            Ok(_) => {
                let mut sink = [0; 1024];
                while connection
                    .reader()
                    .read(&mut sink)
                    .is_ok_and(|read| read > 0)
                {}
            }
            Err(TlsFailure::AlertReceived(alert)) => return bad(format!("{alert:?}")),
            Err(_) => return Client::Unknown,
        }
    }
    Client::Unknown
}

fn goodbye(connection: &mut ClientConnection, io: &mut impl Write) {
    connection.send_close_notify();
    while connection.wants_write() {
        // Who was refused finds the connection closed perhaps, and the alert behind it.
        if connection.write_tls(io).is_err() {
            break;
        }
    }
}

const fn version_word(version: ProtocolVersion) -> &'static str {
    match version {
        ProtocolVersion::TLSv1_3 => "TLS 1.3",
        ProtocolVersion::TLSv1_2 => "TLS 1.2",
        _ => "another version",
    }
}

impl Judge {
    fn verifier(&self) -> Result<Arc<dyn ServerCertVerifier>, TlsError> {
        Ok(match self {
            Judge::Server(verifier) => Arc::clone(verifier) as _,
            Judge::Kubelet(check) => Arc::clone(check) as _,
            Judge::Web(roots) => tls::web_verifier(roots)?,
        })
    }
}

/// Keeps what was shown, and lets the verifier decide.
#[derive(Debug)]
struct Witness {
    inner: Arc<dyn ServerCertVerifier>,
    chain: OnceLock<Vec<CertificateDer<'static>>>,
}

impl ServerCertVerifier for Witness {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, TlsFailure> {
        let all = std::iter::once(end_entity).chain(intermediates);
        let all = all.take(limits::CHAIN_CERTIFICATES);
        let _ = self
            .chain
            .set(all.map(|der| der.clone().into_owned()).collect());
        self.inner
            .verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsFailure> {
        self.inner.verify_tls12_signature(message, cert, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, TlsFailure> {
        self.inner.verify_tls13_signature(message, cert, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// Our certificate, if there is one, and whether anybody wanted to see it.
#[derive(Debug)]
struct Asked {
    own: Option<Arc<CertifiedKey>>,
    was: AtomicBool,
}

impl ResolvesClientCert for Asked {
    fn resolve(
        &self,
        _root_hint_subjects: &[&[u8]],
        _schemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        self.was.store(true, Ordering::Relaxed);
        self.own.clone()
    }

    fn has_certs(&self) -> bool {
        true
    }
}
