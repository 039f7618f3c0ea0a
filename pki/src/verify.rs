//! Verification of a peer: the only way to a [`VerifiedPeer`].
//!
//! In this order, and the first failure decides:
//! 1. something was presented, and it is not too much to look at;
//! 2. each certificate of the path is valid now, the leaf carries the usage of its role, and the
//!    path leads to an anchor of exactly this role that is valid itself (`webpki`);
//! 3. the leaf has exactly one URI SAN, and it is an identity;
//! 4. its cluster is ours, its role the expected one;
//! 5. neither the identity nor a serial of the path is on the deny list.
//!
//! Where revocation lists are given, rule 2 includes that each certificate of the path is covered by
//! one of them and not revoked ([`crate::crl`]).
//!
//! There is no host-name rule: identity decides. There is no allowance for clocks. The same code
//! runs in handshakes of both directions (`handshake`) and when a live link is checked again.
//! A verifier is never changed; a reload makes a new one.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use rustls::crypto::CryptoProvider;
use rustls_pki_types::{CertificateDer, TrustAnchor};
use towline_proto::id::{ClusterName, Role};
use towline_proto::limits;
use webpki::{EndEntityCert, KeyUsage, VerifiedPath};

use crate::anchors::Anchors;
use crate::crl::Revocation;
use crate::identity::Identity;
use crate::inspect::{Certificate, Leaf, Usage};
use crate::peer_error::{PeerError, unix, usage_word};
use crate::revoke::DenyList;
use crate::serial::Serial;
use crate::tls;

/// A peer that passed every check, at the time of the check. Cheap to clone.
#[derive(Clone)]
pub struct VerifiedPeer(Arc<Proof>);

struct Proof {
    leaf: Leaf,
    chain: Vec<CertificateDer<'static>>,
    valid_until: SystemTime,
}

impl VerifiedPeer {
    /// Who it is.
    pub fn identity(&self) -> &Identity {
        &self.0.leaf.identity
    }

    /// What its certificate says.
    pub fn leaf(&self) -> &Leaf {
        &self.0.leaf
    }

    /// What it presented, leaf first: for checking it again after a reload.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.0.chain
    }

    /// When the first certificate of the path, anchor included, ends.
    pub fn valid_until(&self) -> SystemTime {
        self.0.valid_until
    }
}

impl fmt::Debug for VerifiedPeer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (serial {})", self.identity(), self.leaf().serial)
    }
}

/// Decides whether a peer is of a cluster and a role.
pub struct PeerVerifier {
    cluster: ClusterName,
    role: Role,
    anchors: Anchors,
    deny: DenyList,
    revocation: Option<Revocation>,
    pub(crate) provider: Arc<CryptoProvider>,
}

impl fmt::Debug for PeerVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PeerVerifier({} of {})", self.role, self.cluster)
    }
}

impl PeerVerifier {
    /// A verifier of peers that must have this role in this cluster.
    pub fn new(cluster: ClusterName, role: Role, anchors: Anchors, deny: DenyList) -> Arc<Self> {
        Self::with_lists(cluster, role, anchors, deny, None)
    }

    /// The same, with revocation lists that must cover every peer.
    pub fn with_lists(
        cluster: ClusterName,
        role: Role,
        anchors: Anchors,
        deny: DenyList,
        revocation: Option<Revocation>,
    ) -> Arc<Self> {
        Arc::new(Self {
            cluster,
            role,
            anchors,
            deny,
            revocation,
            provider: tls::provider(),
        })
    }

    /// The role that peers must have.
    pub fn role(&self) -> Role {
        self.role
    }

    /// The cluster that peers must be of.
    pub fn cluster(&self) -> &ClusterName {
        &self.cluster
    }

    /// The anchors that peers must chain to.
    pub fn anchors(&self) -> &Anchors {
        &self.anchors
    }

    /// Who is refused although it verifies.
    pub fn deny_list(&self) -> &DenyList {
        &self.deny
    }

    /// The revocation lists in force, when there are any.
    pub fn revocation(&self) -> Option<&Revocation> {
        self.revocation.as_ref()
    }

    /// Whether a certificate of this serial counts no more, by the deny list or a revocation list.
    pub fn has_revoked(&self, serial: &Serial) -> bool {
        let lists = self.revocation.as_ref();
        self.deny.has_serial(serial) || lists.is_some_and(|lists| lists.has_serial(serial))
    }

    /// Checks what a peer presented, leaf first.
    pub fn verify(
        &self,
        chain: &[CertificateDer<'_>],
        now: SystemTime,
    ) -> Result<VerifiedPeer, PeerError> {
        let (end_entity, intermediates) = chain.split_first().ok_or(PeerError::NoCertificate)?;
        self.check(end_entity, intermediates, now)
    }

    pub(crate) fn check(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: SystemTime,
    ) -> Result<VerifiedPeer, PeerError> {
        bound(end_entity, intermediates)?;
        let certificate =
            Certificate::parse(end_entity.as_ref()).map_err(|cause| PeerError::BadCertificate {
                cause: cause.to_string(),
            })?;
        let path = match self.path(end_entity, intermediates, now, true) {
            Err(PeerError::UnknownIssuer)
                if self.path(end_entity, intermediates, now, false).is_ok() =>
            {
                return Err(PeerError::AnchorNotValid);
            }
            Err(PeerError::Revoked { .. }) => return Err(PeerError::revoked(&certificate)),
            other => other?,
        };
        check_usage(&certificate, &Usage::of(self.role))?;
        let valid_until = path.valid_until.min(certificate.not_after);
        let leaf = Leaf::try_from(certificate)?;
        self.check_identity(&leaf, &path)?;
        let chain = std::iter::once(end_entity)
            .chain(intermediates)
            .map(|der| der.clone().into_owned())
            .collect();
        Ok(VerifiedPeer(Arc::new(Proof {
            leaf,
            chain,
            valid_until,
        })))
    }

    /// The way from a leaf to an anchor that is valid now (`current`) or, to tell a better
    /// reason, to one that is not.
    fn path(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: SystemTime,
        current: bool,
    ) -> Result<Path, PeerError> {
        let usage = Usage::of(self.role);
        let refused = |error| PeerError::from_webpki(error, &usage);
        let anchors = self.anchors.at(now, current);
        let leaf = EndEntityCert::try_from(end_entity).map_err(refused)?;
        let revocation = self.revocation.as_ref();
        let lists = revocation.map_or_else(Vec::new, |revocation| revocation.lists().webpki());
        let found = leaf
            .verify_for_usage(
                self.provider.signature_verification_algorithms.all,
                &anchors,
                intermediates,
                unix(now),
                key_usage(&usage),
                revocation.and_then(|revocation| revocation.options(&lists)),
                Some(&|path: &VerifiedPath<'_>| check_anchor(&self.anchors, path, &usage)),
            )
            .map_err(refused)?;
        let above = found
            .intermediate_certificates()
            .map(|cert| Certificate::parse(cert.der().as_ref()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|cause| PeerError::BadCertificate {
                cause: cause.to_string(),
            })?;
        let anchor: Vec<&Certificate> = self
            .anchors
            .of(found.anchor())
            .map(|anchor| &anchor.certificate)
            .filter(|certificate| certificate.is_current(now) == current)
            .collect();
        let anchor_end = anchor.iter().map(|certificate| certificate.not_after).max();
        let ends = above.iter().map(|cert| cert.not_after).chain(anchor_end);
        let valid_until = ends.min().unwrap_or(now);
        let denied = above
            .iter()
            .any(|certificate| self.deny.has_serial(&certificate.serial))
            || (!anchor.is_empty()
                && anchor
                    .iter()
                    .all(|certificate| self.deny.has_serial(&certificate.serial)));
        Ok(Path {
            valid_until,
            issuer_denied: denied,
        })
    }

    fn check_identity(&self, leaf: &Leaf, path: &Path) -> Result<(), PeerError> {
        let identity = leaf.identity.clone();
        if identity.cluster != self.cluster {
            return Err(PeerError::WrongCluster {
                ours: self.cluster.clone(),
                identity,
            });
        }
        if identity.role != self.role {
            return Err(PeerError::WrongRole {
                expected: self.role,
                identity,
            });
        }
        let by = if self.deny.has_identity(&identity) {
            "its identity"
        } else if self.deny.has_serial(&leaf.serial) {
            "its serial"
        } else if path.issuer_denied {
            "the serial of its issuer"
        } else {
            return Ok(());
        };
        Err(PeerError::Denied {
            identity,
            serial: leaf.serial.clone(),
            by,
        })
    }
}

/// The limits that an anchor's own certificate sets; `webpki` looks at its name and key only.
pub(crate) fn check_anchor(
    anchors: &Anchors,
    path: &VerifiedPath<'_>,
    usage: &Usage,
) -> Result<(), webpki::Error> {
    let between = path.intermediate_certificates().count() as u64;
    let trust: &TrustAnchor<'_> = path.anchor();
    let mut verdict = Err(webpki::Error::UnknownIssuer);
    for anchor in anchors.of(trust) {
        let certificate = &anchor.certificate;
        if certificate
            .path_length
            .is_some_and(|length| between > u64::from(length))
        {
            verdict = Err(webpki::Error::PathLenConstraintViolated);
        } else if !certificate.allows(usage) {
            verdict = Err(webpki::Error::RequiredEkuNotFoundContext(
                webpki::RequiredEkuNotFoundContext {
                    required: key_usage(usage),
                    present: Vec::new(),
                },
            ));
        } else {
            return Ok(());
        }
    }
    verdict
}

struct Path {
    valid_until: SystemTime,
    issuer_denied: bool,
}

fn bound(
    end_entity: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
) -> Result<(), PeerError> {
    let count = intermediates.len() + 1;
    if count > limits::CHAIN_CERTIFICATES {
        return Err(PeerError::LongChain {
            count,
            max: limits::CHAIN_CERTIFICATES,
        });
    }
    let largest = std::iter::once(end_entity)
        .chain(intermediates)
        .map(|der| der.len())
        .max()
        .unwrap_or(0);
    if largest > limits::CERTIFICATE_BYTES {
        return Err(PeerError::TooLarge {
            len: largest,
            max: limits::CERTIFICATE_BYTES,
        });
    }
    Ok(())
}

/// The leaf must carry the usage, and its key must be for signing.
pub(crate) fn check_usage(leaf: &Certificate, usage: &Usage) -> Result<(), PeerError> {
    if !leaf.usages.contains(usage) {
        return Err(PeerError::WrongUsage {
            needed: usage_word(usage),
        });
    }
    if !leaf.signs_handshakes {
        return Err(PeerError::WrongUsage {
            needed: "signing handshakes (digitalSignature)",
        });
    }
    Ok(())
}

/// For the path: a certificate that limits its usages must include this one. Authorities may go
/// without the extension, the leaf may not ([`check_usage`]).
pub(crate) fn key_usage(usage: &Usage) -> KeyUsage {
    match usage {
        Usage::ServerAuth => KeyUsage::server_auth(),
        Usage::ClientAuth | Usage::Other(_) => KeyUsage::client_auth(),
    }
}
