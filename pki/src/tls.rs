//! Every TLS configuration of Towline, and the one crypto provider behind them.
//!
//! TLS 1.3 only. Key exchange is X25519MLKEM768 first, so that what is recorded today cannot be
//! read when X25519 falls. AES-128-GCM comes first because it is the fastest with hardware help;
//! ChaCha20 stays for machines without. Session resumption, tickets, 0-RTT and half-RTT data are
//! off at both ends: a resumed handshake does not run the verifier, so somebody who was denied
//! would come back. A peer of ours always authenticates; there is no switch to leave that out.
//!
//! One exception to the version: **kubelets** are not ours. Those of FIPS builds on older Go, with
//! BoringCrypto (Bottlerocket's FIPS images of 2025 among them), speak TLS 1.2 at most, so towards
//! kubelets, and only there, TLS 1.2 with forward secrecy and AEAD suites is spoken too.

use std::sync::{Arc, LazyLock};

use rustls::client::danger::ServerCertVerifier;
use rustls::client::{ResolvesClientCert, Resumption, WebPkiServerVerifier};
use rustls::crypto::aws_lc_rs::{self, cipher_suite, kx_group};
use rustls::crypto::hash::Output;
use rustls::crypto::{CryptoProvider, GetRandomFailed};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::{CertifiedKey, SigningKey, SingleCertAndKey};
use rustls::version::{TLS12, TLS13};
use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use towline_proto::limits;
use towline_proto::target::Host;
use towline_proto::version::{ALPN_ENROL, ALPN_LINK};

use crate::chain::ChainVerifier;
use crate::credentials::Credentials;
use crate::either::Either;
use crate::first_contact::FirstContact;
use crate::gateway::{FrontEndVerifier, Serving};
use crate::handshake::MayShow;
use crate::kubelet::{KubeletCheck, KubeletClient};
use crate::presented::Looker;
use crate::telling::Telling;
use crate::verify::PeerVerifier;
use crate::web::{WebPair, WebRoots};

/// ALPN of the door over TCP, for CONNECT. It comes first: who offers both means this one.
pub const ALPN_HTTP11: &[u8] = b"http/1.1";
/// ALPN of the door over TCP, for gRPC. Who offers nothing is told apart by its first bytes.
pub const ALPN_HTTP2: &[u8] = b"h2";

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The library refused it. With what is checked beforehand this is a defect.
    #[error("TLS configuration: {0}")]
    Library(#[from] rustls::Error),
    /// What is shown to nodes that enrol.
    #[error(
        "the server's own chain of {own} certificates and {authorities} authorities behind it make \
         {}, and agents take {} at most: leave out authorities that no join token names any more, \
         or intermediates that agents have as anchors",
        own + authorities, limits::CHAIN_CERTIFICATES
    )]
    LongChain {
        /// In the server's own chain.
        own: usize,
        /// Authorities that are not in it.
        authorities: usize,
    },
}

/// A server's end of a link, on both carriers. Agents must prove who they are.
pub fn link_server(
    own: &Credentials,
    peers: Arc<PeerVerifier>,
) -> Result<Arc<ServerConfig>, TlsError> {
    server(single(own.presented().clone()), peers, &[ALPN_LINK])
}

/// An agent's end of a link, on both carriers.
pub fn link_client(
    own: &Credentials,
    peers: Arc<PeerVerifier>,
) -> Result<Arc<ClientConfig>, TlsError> {
    client(own.presented().clone(), peers, ALPN_LINK)
}

/// The same for one handshake whose refusal is to be known exactly. `telling` asks the verifier
/// that `config` was made with.
pub fn telling(config: &ClientConfig, telling: Arc<Telling>) -> Arc<ClientConfig> {
    let mut config = config.clone();
    // Not another rule: the same verifier, with a memory.
    config.dangerous().set_certificate_verifier(telling);
    Arc::new(config)
}

/// The server's end of enrolment. Who shows a certificate must be an agent that `peers` takes;
/// who shows none proves the name by a token. `authorities` go out behind our own chain, for
/// agents that know no more of them than a hash: all of them, or it is an error.
///
/// Over TCP only: no QUIC listener is ever given this configuration.
pub fn enrol_server(
    own: &Credentials,
    authorities: &[CertificateDer<'static>],
    peers: Arc<PeerVerifier>,
) -> Result<Arc<ServerConfig>, TlsError> {
    let presented = own.presented();
    let mut shown = presented.cert.clone();
    for authority in authorities {
        if !shown.contains(authority) {
            shown.push(authority.clone());
        }
    }
    if shown.len() > limits::CHAIN_CERTIFICATES {
        let own = presented.cert.len();
        let authorities = shown.len() - own;
        return Err(TlsError::LongChain { own, authorities });
    }
    let shown = CertifiedKey::new(shown, Arc::clone(&presented.key));
    server(
        single(Arc::new(shown)),
        Arc::new(MayShow(peers)),
        &[ALPN_ENROL],
    )
}

/// An agent's end of enrolment; `own` only where the certificate is what proves the name.
pub fn enrol_client(
    own: Option<&Credentials>,
    servers: Arc<FirstContact>,
) -> Result<Arc<ClientConfig>, TlsError> {
    let builder = client_builder(servers)?;
    let config = match own {
        Some(own) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(
            Arc::clone(own.presented()),
        ))),
        None => builder.with_no_client_auth(),
    };
    Ok(finish_client(config, ALPN_ENROL))
}

/// The door over TCP. Front ends must prove who they are.
pub fn door_server(
    own: &Credentials,
    peers: Arc<PeerVerifier>,
) -> Result<Arc<ServerConfig>, TlsError> {
    server(
        single(own.presented().clone()),
        peers,
        &[ALPN_HTTP11, ALPN_HTTP2],
    )
}

/// A front end's end of the door over TCP.
pub fn door_client(
    own: &Credentials,
    peers: Arc<PeerVerifier>,
) -> Result<Arc<ClientConfig>, TlsError> {
    client(own.presented().clone(), peers, ALPN_HTTP11)
}

/// A connection to a kubelet: `check` decides whether it is the expected one and keeps what it
/// found, `own` is shown to the kubelet where it has to know who asks (not for an attestation).
/// For the one connection that the check is for, with [`kubelet_name`].
pub fn kubelet_client(
    check: Arc<KubeletCheck>,
    own: Option<&KubeletClient>,
) -> Result<Arc<ClientConfig>, TlsError> {
    let builder = ClientConfig::builder_with_provider(kubelet_provider())
        .with_protocol_versions(&[&TLS13, &TLS12])?
        // Not rustls' own verifier but the one that knows nodes.
        .dangerous()
        .with_custom_certificate_verifier(check);
    let mut config = match own {
        Some(own) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(
            Arc::clone(own.presented()),
        ))),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN_HTTP11.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config.enable_sni = true;
    Ok(Arc::new(config))
}

/// The gateway's end towards front ends, which must prove who they are, for one dialled host.
pub fn gateway_server(
    serving: &Serving,
    front_ends: Arc<FrontEndVerifier>,
) -> Result<Arc<ServerConfig>, TlsError> {
    server(Arc::new(serving.clone()), front_ends, &[ALPN_HTTP11])
}

/// A handshake that is broken off when the server has shown its certificate: [`crate::presented`].
/// All that is offered is there so that servers of every kind get as far as that.
pub(crate) fn looking_client(looker: Arc<Looker>) -> Result<Arc<ClientConfig>, TlsError> {
    let mut config = ClientConfig::builder_with_provider(kubelet_provider())
        .with_protocol_versions(&[&TLS13, &TLS12])?
        // It refuses everybody, which is more than rustls' own does.
        .dangerous()
        .with_custom_certificate_verifier(looker)
        .with_no_client_auth();
    config.alpn_protocols = [ALPN_LINK, b"h2", ALPN_HTTP11].map(<[u8]>::to_vec).to_vec();
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    Ok(Arc::new(config))
}

/// A handshake that goes to its end so that people see what comes of it: [`crate::probe`]. Of
/// `ours` it is spoken as agents speak: TLS 1.3, no name sent.
pub(crate) fn probing_client(
    verifier: Arc<dyn ServerCertVerifier>,
    own: Arc<dyn ResolvesClientCert>,
    alpn: &[&[u8]],
    ours: bool,
) -> Result<Arc<ClientConfig>, TlsError> {
    let builder = match ours {
        true => client_builder(verifier)?,
        false => ClientConfig::builder_with_provider(kubelet_provider())
            .with_protocol_versions(&[&TLS13, &TLS12])?
            .dangerous()
            .with_custom_certificate_verifier(verifier),
    };
    let mut config = builder.with_client_cert_resolver(own);
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config.enable_sni = !ours;
    Ok(Arc::new(config))
}

/// What kube-apiserver sends a kubelet as SNI: a name, nothing for an address.
pub fn kubelet_name(host: &Host) -> ServerName<'static> {
    match host {
        Host::Ip(ip) => ServerName::IpAddress((*ip).into()),
        // Names with an underscore are no DNS names to TLS; then nothing is sent.
        Host::Name(name) => ServerName::try_from(name.as_str().to_owned()).unwrap_or(
            ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into()),
        ),
    }
}

/// The same for one that speaks gRPC.
pub fn door_client_http2(
    own: &Credentials,
    peers: Arc<PeerVerifier>,
) -> Result<Arc<ClientConfig>, TlsError> {
    client(own.presented().clone(), peers, ALPN_HTTP2)
}

/// Our end towards a server that has no identity but a DNS name or an address: the Kubernetes
/// API, or Konnectivity's proxy-server. Chain to `roots`, time, usage (server-auth) and the name
/// that is connected to are checked; the name is sent (SNI) where it is a DNS name.
pub fn web_client(
    roots: &WebRoots,
    own: Option<&WebPair>,
    alpn: &[&[u8]],
) -> Result<Arc<ClientConfig>, TlsError> {
    Ok(finish_web(client_builder(web_verifier(roots)?)?, own, alpn))
}

/// Our end towards a server that may be a Towline server or one known by its name alone: both
/// protocols are offered, and a certificate is taken that either rule takes. Who uses this must
/// ask the right rule once the protocol is known, as `either` says.
pub fn auto_client(
    peers: Arc<PeerVerifier>,
    roots: &WebRoots,
    own: Option<&WebPair>,
    alpn: &[&[u8]],
) -> Result<Arc<ClientConfig>, TlsError> {
    let either = Either {
        identity: peers,
        name: web_verifier(roots)?,
    };
    Ok(finish_web(client_builder(Arc::new(either))?, own, alpn))
}

fn finish_web(
    builder: rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>,
    own: Option<&WebPair>,
    alpn: &[&[u8]],
) -> Arc<ClientConfig> {
    let mut config = match own {
        Some(pair) => {
            builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(pair.presented())))
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    Arc::new(config)
}

/// Our end of a door of the compatibility profile. With `clients` a certificate of theirs is
/// required; without, whoever comes is asked for a token by the protocol above, and this end must
/// not be used for anything that does not ask.
///
/// TLS 1.3 here too: every agent and API server of the last years speaks it.
pub fn chain_server(
    own: &WebPair,
    clients: Option<&ChainVerifier>,
    alpn: &[&[u8]],
) -> Result<Arc<ServerConfig>, TlsError> {
    let builder =
        ServerConfig::builder_with_provider(provider()).with_protocol_versions(&[&TLS13])?;
    let builder = match clients {
        Some(clients) => builder.with_client_cert_verifier(clients.inner()),
        None => builder.with_no_client_auth(),
    };
    let resolver = Arc::new(SingleCertAndKey::from(own.presented()));
    let mut config = builder.with_cert_resolver(resolver);
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Ok(Arc::new(without_resumption(config)))
}

/// Checks what TLS itself can check of a client.
pub(crate) fn chain_verifier(roots: &WebRoots) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let building = WebPkiClientVerifier::builder_with_provider(roots.store(), provider());
    building
        .build()
        .map_err(|_| TlsError::Library(rustls::Error::General("no usable root".to_owned())))
}

fn without_resumption(mut config: ServerConfig) -> ServerConfig {
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    config.max_early_data_size = 0;
    config.send_half_rtt_data = false;
    config
}

pub(crate) fn web_verifier(roots: &WebRoots) -> Result<Arc<WebPkiServerVerifier>, TlsError> {
    WebPkiServerVerifier::builder_with_provider(roots.store(), provider())
        .build()
        .map_err(|_| TlsError::Library(rustls::Error::General("no usable root".to_owned())))
}

/// The name that our clients put where TLS wants one. It is not sent (no SNI) and not checked:
/// identity decides.
pub fn server_name() -> ServerName<'static> {
    static NAME: LazyLock<Option<ServerName<'static>>> =
        LazyLock::new(|| ServerName::try_from("towline").ok());
    match &*NAME {
        Some(name) => name.clone(),
        None => ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into()),
    }
}

/// For tests of what must be refused: configurations that present any chain, also one that
/// [`Credentials`] would not take, or none at all. Peers are verified all the same, so nothing
/// here weakens anybody but its user.
pub mod presenting {
    use super::*;

    /// A link client that presents this chain and key, or no certificate.
    pub fn link_client(
        own: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
        peers: Arc<PeerVerifier>,
    ) -> Result<Arc<ClientConfig>, TlsError> {
        match own {
            Some((chain, key)) => client(any(chain, key)?, peers, ALPN_LINK),
            None => {
                let builder = client_builder(peers)?;
                Ok(finish_client(builder.with_no_client_auth(), ALPN_LINK))
            }
        }
    }

    /// A client that offers this protocol instead, whichever it is.
    pub fn client_of(
        own: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
        peers: Arc<PeerVerifier>,
        alpn: &[&[u8]],
    ) -> Result<Arc<ClientConfig>, TlsError> {
        let mut config = ClientConfig::clone(&*link_client(own, peers)?);
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        Ok(Arc::new(config))
    }

    /// A link server that presents this chain and key.
    pub fn link_server(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        peers: Arc<PeerVerifier>,
    ) -> Result<Arc<ServerConfig>, TlsError> {
        server(single(any(chain, key)?), peers, &[ALPN_LINK])
    }

    fn any(
        chain: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Arc<CertifiedKey>, TlsError> {
        Ok(Arc::new(CertifiedKey::new(chain, signing_key(key)?)))
    }
}

fn single(own: Arc<CertifiedKey>) -> Arc<dyn ResolvesServerCert> {
    Arc::new(SingleCertAndKey::from(own))
}

fn server(
    own: Arc<dyn ResolvesServerCert>,
    peers: Arc<dyn ClientCertVerifier>,
    alpn: &[&[u8]],
) -> Result<Arc<ServerConfig>, TlsError> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(peers)
        .with_cert_resolver(own);
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    Ok(Arc::new(without_resumption(config)))
}

fn client(
    own: Arc<CertifiedKey>,
    peers: Arc<PeerVerifier>,
    alpn: &[u8],
) -> Result<Arc<ClientConfig>, TlsError> {
    let resolver = Arc::new(SingleCertAndKey::from(own));
    let builder = client_builder(peers)?;
    Ok(finish_client(
        builder.with_client_cert_resolver(resolver),
        alpn,
    ))
}

fn client_builder(
    peers: Arc<dyn ServerCertVerifier>,
) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>, TlsError> {
    Ok(ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])?
        // What rustls calls dangerous is a verifier that is not its own. Ours is stricter.
        .dangerous()
        .with_custom_certificate_verifier(peers))
}

fn finish_client(mut config: ClientConfig, alpn: &[u8]) -> Arc<ClientConfig> {
    config.alpn_protocols = vec![alpn.to_vec()];
    config.resumption = Resumption::disabled();
    config.enable_early_data = false;
    config.enable_sni = false;
    Arc::new(config)
}

static PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    Arc::new(CryptoProvider {
        cipher_suites: vec![
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ],
        kx_groups: vec![
            kx_group::X25519MLKEM768,
            kx_group::X25519,
            kx_group::SECP256R1,
            kx_group::SECP384R1,
        ],
        ..aws_lc_rs::default_provider()
    })
});

static KUBELET_PROVIDER: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| {
    let mut cipher_suites = PROVIDER.cipher_suites.clone();
    cipher_suites.extend([
        cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
        cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
        cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
        cipher_suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
        cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
        cipher_suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
    ]);
    Arc::new(CryptoProvider {
        cipher_suites,
        ..(**PROVIDER).clone()
    })
});

/// The one provider with the suites of TLS 1.2 beside its own, towards kubelets only.
pub(crate) fn kubelet_provider() -> Arc<CryptoProvider> {
    KUBELET_PROVIDER.clone()
}

/// The one crypto provider. It is passed by hand everywhere; no process default is set or read.
pub fn provider() -> Arc<CryptoProvider> {
    PROVIDER.clone()
}

pub(crate) fn signing_key(
    key: PrivateKeyDer<'static>,
) -> Result<Arc<dyn SigningKey>, rustls::Error> {
    PROVIDER.key_provider.load_private_key(key)
}

pub(crate) fn fill_random(bytes: &mut [u8]) -> Result<(), GetRandomFailed> {
    PROVIDER.secure_random.fill(bytes)
}

pub(crate) fn sha256(bytes: &[u8]) -> Output {
    match cipher_suite::TLS13_AES_128_GCM_SHA256 {
        rustls::SupportedCipherSuite::Tls13(suite) => suite.common.hash_provider.hash(bytes),
        #[allow(unreachable_patterns)]
        _ => Output::new(&[]),
    }
}
