//! Throw-away certificates: one cluster's root and issuers, kept in memory, and leaves as good
//! or as bad as a scenario wants them. Real certificates come from `towline-pki`, which refuses
//! to make most of what is made here; that is why the kit signs by itself.

use std::io;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevokedCertParams, SanType, SerialNumber,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use towline_proto::id::Role;

use crate::scratch::{self, Scratch};

const HOUR: Duration = Duration::from_secs(3600);

/// The algorithms that keys of the product have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Algorithm {
    EcdsaP256,
    EcdsaP384,
    Ed25519,
    Rsa2048,
    Rsa3072,
}

impl Algorithm {
    /// All of them.
    pub const ALL: [Algorithm; 5] = [
        Algorithm::EcdsaP256,
        Algorithm::EcdsaP384,
        Algorithm::Ed25519,
        Algorithm::Rsa2048,
        Algorithm::Rsa3072,
    ];

    fn generate(self) -> KeyPair {
        match self {
            Algorithm::EcdsaP256 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256),
            Algorithm::EcdsaP384 => KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384),
            Algorithm::Ed25519 => KeyPair::generate_for(&rcgen::PKCS_ED25519),
            Algorithm::Rsa2048 => {
                KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048)
            }
            Algorithm::Rsa3072 => {
                KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_3072)
            }
        }
        .expect("keys can be generated")
    }
}

/// A certificate authority of the kit.
pub struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
    der: CertificateDer<'static>,
}

impl Ca {
    fn new(name: &str, parent: Option<&Ca>) -> Self {
        Self::with_key(name, parent, Algorithm::EcdsaP256)
    }

    /// An authority of its own with a key of this algorithm.
    pub fn of(algorithm: Algorithm) -> Self {
        Self::with_key("of another algorithm", None, algorithm)
    }

    fn with_key(name: &str, parent: Option<&Ca>, algorithm: Algorithm) -> Self {
        let key = algorithm.generate();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.use_authority_key_identifier_extension = parent.is_some();
        let now = SystemTime::now();
        params.not_before = (now - HOUR).into();
        params.not_after = (now + 24 * HOUR).into();
        let cert = match parent {
            Some(parent) => params.signed_by(&key, &parent.issuer),
            None => params.self_signed(&key),
        }
        .expect("a CA certificate can be signed");
        let (pem, der) = (cert.pem(), cert.der().clone());
        Self {
            issuer: Issuer::new(params, key),
            pem,
            der,
        }
    }

    /// An authority that belongs to nobody, as a kubelet without a signer makes one up.
    pub fn made_up(name: &str) -> Self {
        Self::new(name, None)
    }

    /// A revocation list with these certificates, as PEM.
    pub fn revocation_list(&self, revoked: &[&Pair]) -> String {
        let serials: Vec<&str> = revoked.iter().map(|pair| pair.serial.as_str()).collect();
        let now = SystemTime::now();
        self.list(1, &serials, now - HOUR, now + 24 * HOUR)
    }

    /// A revocation list of this number and time, as PEM.
    pub fn list(
        &self,
        number: u64,
        revoked: &[&str],
        this_update: SystemTime,
        next_update: SystemTime,
    ) -> String {
        let serial = |serial: &&str| {
            let digits = |at: usize| u8::from_str_radix(&serial[at..at + 2], 16);
            let bytes: Result<Vec<u8>, _> = (0..serial.len()).step_by(2).map(digits).collect();
            RevokedCertParams {
                serial_number: bytes.expect("hexadecimal digits").into(),
                revocation_time: this_update.into(),
                reason_code: None,
                invalidity_date: None,
            }
        };
        let params = CertificateRevocationListParams {
            this_update: this_update.into(),
            next_update: next_update.into(),
            crl_number: SerialNumber::from(number),
            issuing_distribution_point: None,
            revoked_certs: revoked.iter().map(serial).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = params
            .signed_by(&self.issuer)
            .expect("a list can be signed");
        list.pem().expect("a list can be written")
    }

    /// Its key as PEM, for whoever is to sign with it.
    pub fn key_pem(&self) -> String {
        self.issuer.key().serialize_pem()
    }

    /// The certificate as PEM, to be written into a trust file.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    /// The certificate as DER.
    pub fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }
}

/// The authorities of one cluster: a root, an issuer for agents, one for servers, clients and
/// operators, and the unrelated CA that signs kubelets' serving certificates.
pub struct Authority {
    cluster: String,
    root: Arc<Ca>,
    agents: Ca,
    others: Ca,
    kubelets: Ca,
}

impl Authority {
    /// Makes them for a cluster of this name.
    pub fn new(cluster: &str) -> Self {
        Self::below(cluster, Arc::new(Ca::new(&format!("{cluster} root"), None)))
    }

    /// Another cluster's issuers below the same root, whose leaves claim to be of this cluster.
    pub fn sibling(&self) -> Self {
        Self::below(&self.cluster, Arc::clone(&self.root))
    }

    fn below(cluster: &str, root: Arc<Ca>) -> Self {
        Self {
            cluster: cluster.to_owned(),
            agents: Ca::new(&format!("{cluster} agents"), Some(&root)),
            others: Ca::new(&format!("{cluster} servers"), Some(&root)),
            kubelets: Ca::new(&format!("{cluster} kubelets"), None),
            root,
        }
    }

    /// The cluster's name.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    /// Who signs for this role.
    pub fn issuer(&self, role: Role) -> &Ca {
        match role {
            Role::Agent => &self.agents,
            Role::Client | Role::Operator | Role::Server => &self.others,
        }
    }

    /// Who signs kubelets' serving certificates.
    pub fn kubelets(&self) -> &Ca {
        &self.kubelets
    }

    /// The identity text of this cluster.
    pub fn identity(&self, role: Role, name: &str) -> String {
        format!("spiffe://{}/towline/{role}/{name}", self.cluster)
    }

    /// A faultless leaf, to be changed before it is signed.
    pub fn leaf(&self, role: Role, name: &str) -> LeafPlan<'_> {
        let usage = match role {
            Role::Server => ExtendedKeyUsagePurpose::ServerAuth,
            Role::Agent | Role::Client | Role::Operator => ExtendedKeyUsagePurpose::ClientAuth,
        };
        let now = SystemTime::now();
        LeafPlan {
            issuer: self.issuer(role),
            common_name: name.to_owned(),
            organisation: None,
            uris: vec![self.identity(role, name)],
            ips: Vec::new(),
            names: Vec::new(),
            usages: vec![usage],
            algorithm: Algorithm::EcdsaP256,
            not_before: now - HOUR,
            not_after: now + 12 * HOUR,
        }
    }

    /// A kubelet's serving certificate as `kubeadm` and the kubelet's own CSR make it.
    pub fn kubelet_leaf(&self, node: &str, ips: &[IpAddr]) -> LeafPlan<'_> {
        let now = SystemTime::now();
        LeafPlan {
            issuer: &self.kubelets,
            common_name: format!("system:node:{node}"),
            organisation: Some("system:nodes".to_owned()),
            uris: Vec::new(),
            ips: ips.to_vec(),
            names: vec![node.to_owned()],
            usages: vec![ExtendedKeyUsagePurpose::ServerAuth],
            algorithm: Algorithm::EcdsaP256,
            not_before: now - HOUR,
            not_after: now + 12 * HOUR,
        }
    }
}

/// What is wrong with a leaf.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flaw {
    /// Signed by an authority that nobody trusts, with the right names in it.
    WrongCa,
    /// Signed by the cluster's other issuer.
    WrongIssuer,
    /// The identity of another cluster, under our issuer.
    WrongCluster,
    /// The identity of another role, under the issuer of this one.
    WrongRole,
    /// Its time is over.
    Expired,
    /// Its time has not come.
    NotYetValid,
    /// Two identities.
    TwoIdentities,
    /// No identity.
    NoIdentity,
    /// The other extended key usage.
    WrongUsage,
}

impl Flaw {
    /// All of them.
    pub const ALL: [Flaw; 9] = [
        Flaw::WrongCa,
        Flaw::WrongIssuer,
        Flaw::WrongCluster,
        Flaw::WrongRole,
        Flaw::Expired,
        Flaw::NotYetValid,
        Flaw::TwoIdentities,
        Flaw::NoIdentity,
        Flaw::WrongUsage,
    ];
}

/// A leaf before it is signed.
#[derive(Clone)]
pub struct LeafPlan<'a> {
    issuer: &'a Ca,
    common_name: String,
    organisation: Option<String>,
    uris: Vec<String>,
    ips: Vec<IpAddr>,
    names: Vec<String>,
    usages: Vec<ExtendedKeyUsagePurpose>,
    algorithm: Algorithm,
    not_before: SystemTime,
    not_after: SystemTime,
}

impl<'a> LeafPlan<'a> {
    /// Adds IP subject alternative names.
    pub fn ips(mut self, ips: &[IpAddr]) -> Self {
        self.ips.extend_from_slice(ips);
        self
    }

    /// Adds a DNS subject alternative name.
    pub fn name(mut self, name: &str) -> Self {
        self.names.push(name.to_owned());
        self
    }

    /// Puts it into an organisation.
    pub fn organisation(mut self, name: &str) -> Self {
        self.organisation = Some(name.to_owned());
        self
    }

    /// Gives it another common name.
    pub fn common_name(mut self, name: &str) -> Self {
        self.common_name = name.to_owned();
        self
    }

    /// Leaves it these DNS and IP subject alternative names and no others.
    pub fn only_names(mut self, names: &[&str], ips: &[IpAddr]) -> Self {
        self.names = names.iter().map(|name| (*name).to_owned()).collect();
        self.ips = ips.to_vec();
        self
    }

    /// Begins its life this far from now.
    pub fn begins_in(mut self, pause: Duration) -> Self {
        self.not_before = SystemTime::now() + pause;
        self
    }

    /// Ends its life this far from now.
    pub fn ends_in(mut self, life: Duration) -> Self {
        self.not_after = SystemTime::now() + life;
        self
    }

    /// Gives it a key of another algorithm.
    pub fn key(mut self, algorithm: Algorithm) -> Self {
        self.algorithm = algorithm;
        self
    }

    /// Has another authority sign it.
    pub fn signed_by(mut self, issuer: &'a Ca) -> Self {
        self.issuer = issuer;
        self
    }

    /// Puts other identities in it.
    pub fn identities(mut self, uris: &[String]) -> Self {
        self.uris = uris.to_vec();
        self
    }

    /// Makes it bad in one way. `stranger` is any other authority of the same cluster name.
    pub fn flawed(mut self, flaw: Flaw, own: &'a Authority, stranger: &'a Authority) -> Self {
        let now = SystemTime::now();
        let agent = std::ptr::eq(self.issuer, &own.agents);
        match flaw {
            Flaw::WrongCa => {
                self.issuer = if agent {
                    &stranger.agents
                } else {
                    &stranger.others
                }
            }
            Flaw::WrongIssuer => self.issuer = if agent { &own.others } else { &own.agents },
            Flaw::WrongCluster => {
                for uri in &mut self.uris {
                    *uri = uri.replacen(&format!("//{}/", own.cluster), "//elsewhere.example/", 1);
                }
            }
            Flaw::WrongRole => {
                for uri in &mut self.uris {
                    let other = if agent { "/server/" } else { "/agent/" };
                    for role in Role::ALL {
                        let here = format!("/towline/{role}/");
                        if uri.contains(&here) {
                            *uri = uri.replacen(&here, &format!("/towline{other}"), 1);
                            break;
                        }
                    }
                }
            }
            Flaw::Expired => {
                self.not_before = now - 2 * HOUR;
                self.not_after = now - HOUR;
            }
            Flaw::NotYetValid => {
                self.not_before = now + HOUR;
                self.not_after = now + 2 * HOUR;
            }
            Flaw::TwoIdentities => {
                let second = format!("{}-too", self.uris[0]);
                self.uris.push(second);
            }
            Flaw::NoIdentity => {
                self.uris.clear();
                self.names.push(self.common_name.clone());
            }
            Flaw::WrongUsage => {
                self.usages = match self.usages.first() {
                    Some(ExtendedKeyUsagePurpose::ServerAuth) => {
                        vec![ExtendedKeyUsagePurpose::ClientAuth]
                    }
                    _ => vec![ExtendedKeyUsagePurpose::ServerAuth],
                };
            }
        }
        self
    }

    /// Signs it with a new key.
    pub fn sign(self) -> Pair {
        let key = self.algorithm.generate();
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, self.common_name.as_str());
        if let Some(organisation) = &self.organisation {
            params
                .distinguished_name
                .push(DnType::OrganizationName, organisation.as_str());
        }
        for uri in &self.uris {
            let uri = uri.as_str().try_into().expect("identities are ASCII");
            params.subject_alt_names.push(SanType::URI(uri));
        }
        for name in &self.names {
            let name = name.as_str().try_into().expect("names are ASCII");
            params.subject_alt_names.push(SanType::DnsName(name));
        }
        params
            .subject_alt_names
            .extend(self.ips.iter().copied().map(SanType::IpAddress));
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = self.usages;
        params.use_authority_key_identifier_extension = true;
        params.not_before = self.not_before.into();
        params.not_after = self.not_after.into();
        let serial = next_serial();
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        let cert = params
            .signed_by(&key, &self.issuer.issuer)
            .expect("a leaf can be signed");
        Pair {
            cert_pem: format!("{}{}", cert.pem(), self.issuer.pem),
            key_pem: key.serialize_pem(),
            chain: vec![cert.der().clone(), self.issuer.der.clone()],
            key: key.serialize_der(),
            serial: serial.iter().map(|byte| format!("{byte:02x}")).collect(),
        }
    }
}

/// Sixteen bytes that differ within a process and between processes; the first is 1..=127 so
/// that the number is positive and has a fixed length.
fn next_serial() -> [u8; 16] {
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let since = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let mut serial = [0; 16];
    serial[0] = 0x4b;
    serial[1..9]
        .copy_from_slice(&(since.as_nanos() as u64 ^ u64::from(std::process::id())).to_be_bytes());
    serial[9..].copy_from_slice(&number.to_be_bytes()[1..]);
    serial
}

/// A certificate with its issuer, and the key.
#[derive(Clone)]
pub struct Pair {
    /// Leaf, then issuer.
    pub cert_pem: String,
    /// PKCS#8.
    pub key_pem: String,
    /// Leaf, then issuer.
    pub chain: Vec<CertificateDer<'static>>,
    key: Vec<u8>,
    /// Serial number in lower-case hexadecimal, as a deny list wants it.
    pub serial: String,
}

impl Pair {
    /// The key.
    pub fn key(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.clone()).into()
    }

    /// Puts the root behind the issuer, as a peer does that hopes to be believed for its sake.
    pub fn with_root(mut self, authority: &Authority) -> Self {
        self.cert_pem.push_str(authority.root.pem());
        self.chain.push(authority.root.der().clone());
        self
    }

    /// Writes `<name>.crt` and `<name>.key`.
    pub fn write(&self, scratch: &Scratch, name: &str) -> io::Result<PairFiles> {
        let files = PairFiles {
            cert: scratch.join(format!("{name}.crt")),
            key: scratch.join(format!("{name}.key")),
        };
        self.replace(&files)?;
        Ok(files)
    }

    /// Writes over the files of an older pair, as a renewal does: the key first, so that for a
    /// moment the two do not match, which a reader has to survive.
    pub fn replace(&self, files: &PairFiles) -> io::Result<()> {
        scratch::replace(&files.key, &self.key_pem)?;
        scratch::replace(&files.cert, &self.cert_pem)
    }
}

/// Where a pair was written.
#[derive(Clone, Debug)]
pub struct PairFiles {
    /// Certificate chain, PEM.
    pub cert: PathBuf,
    /// Key, PEM, mode 0600.
    pub key: PathBuf,
}
