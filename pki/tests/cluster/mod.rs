//! A cluster's authorities in memory, leaves that are good or broken in one way, and a scratch
//! directory. Time is a constant: nothing here depends on the day of the test.

#![allow(dead_code, unreachable_pub)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, SystemTime};

use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use towline_pki::{
    Anchors, Authority, AuthoritySpec, Credentials, DenyList, Identity, KeyKind, LeafSpec,
    PeerVerifier, PrivateKey, Usage,
};
use towline_proto::id::Role;

pub const DAY: Duration = Duration::from_secs(86_400);

/// Now in every test that does not run a process. Whole seconds, before the real now.
pub fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_790_000_000)
}

pub struct Cluster {
    pub name: &'static str,
    pub root: Authority,
    pub agents: Authority,
    pub servers: Authority,
}

/// A chain and its key.
pub struct Paper {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: PrivateKey,
}

impl Paper {
    pub fn key_der(&self) -> PrivateKeyDer<'static> {
        self.key.to_der()
    }
}

pub fn spec(purpose: &str, path_length: Option<u32>, usages: &[Usage]) -> AuthoritySpec {
    AuthoritySpec {
        purpose: purpose.into(),
        organisation: "test".into(),
        not_before: now() - DAY,
        not_after: now() + 1000 * DAY,
        path_length,
        usages: usages.to_vec(),
    }
}

pub fn new_key() -> PrivateKey {
    PrivateKey::generate(KeyKind::EcdsaP256).unwrap()
}

impl Cluster {
    pub fn new(name: &'static str) -> Self {
        let root = Authority::create(&spec("root", Some(1), &[]), new_key()).unwrap();
        let below = |purpose, usages: &[Usage]| {
            root.create_below(&spec(purpose, Some(0), usages), new_key())
                .unwrap()
        };
        let agents = below("agents", &[Usage::ClientAuth]);
        let servers = below("servers", &[Usage::ServerAuth, Usage::ClientAuth]);
        Self {
            name,
            root,
            agents,
            servers,
        }
    }

    pub fn issuer(&self, role: Role) -> &Authority {
        match role {
            Role::Agent => &self.agents,
            _ => &self.servers,
        }
    }

    pub fn identity(&self, role: Role, name: &str) -> Identity {
        Identity::new(self.name.parse().unwrap(), role, name.parse().unwrap())
    }

    /// A good leaf, to be spoilt.
    pub fn leaf(&self, role: Role, name: &str) -> LeafSpec {
        LeafSpec {
            common_name: format!("towline:{role}:{name}"),
            uris: vec![self.identity(role, name).to_string()],
            dns: vec![],
            ips: vec![],
            usages: vec![Usage::of(role)],
            not_before: now() - DAY,
            not_after: now() + 90 * DAY,
        }
    }

    pub fn mint(&self, role: Role, spec: &LeafSpec) -> Paper {
        let key = new_key();
        let der = self.issuer(role).issue_raw(spec, &key.public()).unwrap();
        Paper {
            chain: vec![der],
            key,
        }
    }

    pub fn paper(&self, role: Role, name: &str) -> Paper {
        self.mint(role, &self.leaf(role, name))
    }

    pub fn credentials(&self, role: Role, name: &str) -> Credentials {
        let paper = self.paper(role, name);
        Credentials::new(paper.chain.clone(), paper.key_der(), role, now()).unwrap()
    }

    pub fn anchors(&self, role: Role) -> Anchors {
        Anchors::new(std::slice::from_ref(self.issuer(role).der())).unwrap()
    }

    pub fn verifier(&self, role: Role) -> Arc<PeerVerifier> {
        self.verifier_denying(role, "")
    }

    pub fn verifier_denying(&self, role: Role, list: &str) -> Arc<PeerVerifier> {
        let deny = DenyList::parse(list.as_bytes()).unwrap();
        PeerVerifier::new(self.name.parse().unwrap(), role, self.anchors(role), deny)
    }
}

/// A directory of its own for one test, removed at the end.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("towline-pki-test-{}-{number}", std::process::id());
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.0.join(name)
    }

    pub fn root(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Whether openssl is on this machine; says why a test does nothing when it is not.
pub fn have_openssl() -> bool {
    let have = Command::new("openssl").arg("version").output().is_ok();
    if !have {
        eprintln!("SKIPPED: openssl is not on this machine, nothing was cross-checked");
    }
    have
}

/// Runs openssl in a directory; panics with its words when it fails.
pub fn openssl(dir: &Path, args: &str) -> String {
    let output = Command::new("openssl")
        .args(args.split_whitespace())
        .current_dir(dir)
        .output()
        .unwrap();
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "openssl {args}: {text}");
    text
}
