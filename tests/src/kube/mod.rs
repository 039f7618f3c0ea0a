//! A fake Kubernetes API over real TLS: TokenReview and Leases as the real one has them (resource
//! versions, conflicts, preconditions, label selectors, watches that end and fall behind), signing
//! requests and Nodes with their subresources and rights (see [`signing`]), and switches for what a real one does only on a bad day.

mod answers;
mod http;
mod leases;
mod objects;
mod protobuf;
pub mod signing;

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustls::server::WebPkiClientVerifier;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;

use crate::authority::{Authority, Pair};
use crate::scratch::Scratch;
use leases::Store;
use objects::Objects;
use signing::Rights;

pub use leases::Stored;

/// Who a token belongs to, and for whom it is.
#[derive(Clone, Debug, Default)]
pub struct Token {
    /// Such as `system:serviceaccount:kube-system:konnectivity-agent`.
    pub username: String,
    /// Audiences that it is good for.
    pub audiences: Vec<String>,
    /// Its time is over.
    pub expired: bool,
    /// What else the API says of it: keys as in a real answer.
    pub extra: HashMap<String, Vec<String>>,
}

/// What a real API does on a bad day.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Mood {
    /// It works.
    #[default]
    Good,
    /// Every request is answered with this status.
    Refuses(u16, String),
    /// It accepts requests and answers none.
    Silent,
    /// Answers have this many bytes too many.
    Verbose(usize),
}

pub(crate) struct State {
    /// Tokens that callers of the API may show.
    callers: HashMap<String, String>,
    /// Tokens that a TokenReview knows.
    tokens: HashMap<String, Token>,
    leases: Store,
    objects: Objects,
    rights: Rights,
    /// What is read by its path alone: Pods.
    plain: HashMap<String, serde_json::Value>,
    mood: Mood,
    /// Verb and path of every request, oldest first.
    requests: Vec<String>,
    connections: usize,
}

pub(crate) struct Shared {
    state: Mutex<State>,
    /// Changes with every write; watches wait for it.
    changed: watch::Sender<u64>,
    /// Changes when running watches are to end.
    cut: watch::Sender<u64>,
}

impl Shared {
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running fake API.
pub struct FakeKube {
    address: SocketAddr,
    ca_pem: String,
    shared: Arc<Shared>,
    _task: AbortOnDropHandle<()>,
}

impl FakeKube {
    /// Serves on a free port of loopback with a certificate for `127.0.0.1` and
    /// `kubernetes.default.svc`. Callers prove themselves by token (see [`FakeKube::caller`]) or by
    /// a client certificate of `authority`'s operators' issuer.
    pub async fn start(authority: &Authority) -> io::Result<Self> {
        let own = authority
            .kubelet_leaf("kubernetes.default.svc", &[[127, 0, 0, 1].into()])
            .sign();
        Self::start_with(authority, &own).await
    }

    /// The same with a certificate of the caller's choice.
    pub async fn start_with(authority: &Authority, own: &Pair) -> io::Result<Self> {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let mut roots = rustls::RootCertStore::empty();
        let issuer = authority.issuer(towline_proto::id::Role::Operator);
        roots.add(issuer.der().clone()).map_err(io::Error::other)?;
        let clients = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone())
            .allow_unauthenticated()
            .build()
            .map_err(io::Error::other)?;
        let mut tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .and_then(|builder| {
                builder
                    .with_client_cert_verifier(clients)
                    .with_single_cert(own.chain.clone(), own.key())
            })
            .map_err(io::Error::other)?;
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                callers: HashMap::new(),
                tokens: HashMap::new(),
                leases: Store::default(),
                objects: Objects::default(),
                rights: Rights::default(),
                plain: HashMap::new(),
                mood: Mood::Good,
                requests: Vec::new(),
                connections: 0,
            }),
            changed: watch::Sender::new(0),
            cut: watch::Sender::new(0),
        });
        let task = tokio::spawn(http::accept(
            listener,
            TlsAcceptor::from(Arc::new(tls)),
            Arc::clone(&shared),
        ));
        Ok(Self {
            address,
            ca_pem: authority.kubelets().pem().to_owned(),
            shared,
            _task: AbortOnDropHandle::new(task),
        })
    }

    /// Where it is.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Who signed its certificate.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// Writes a kubeconfig whose user has a token file; gives the paths of both.
    pub fn kubeconfig(&self, scratch: &Scratch, token: &str) -> io::Result<(PathBuf, PathBuf)> {
        let token = scratch.write("kube-token", token)?;
        let user = format!("{{tokenFile: {:?}}}", token.display().to_string());
        Ok((self.write_kubeconfig(scratch, &user)?, token))
    }

    /// Writes a kubeconfig with this user, in YAML's flow form.
    pub fn write_kubeconfig(&self, scratch: &Scratch, user: &str) -> io::Result<PathBuf> {
        self.write_kubeconfig_as(scratch, "kubeconfig", user)
    }

    /// The same with a name of the caller's choice.
    pub fn write_kubeconfig_as(
        &self,
        scratch: &Scratch,
        name: &str,
        user: &str,
    ) -> io::Result<PathBuf> {
        scratch.write("kube-ca.crt", &self.ca_pem)?;
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts:\n- name: c\n  context: \
             {{cluster: k, user: u}}\nclusters:\n- name: k\n  cluster: {{server: \
             'https://{}', certificate-authority: kube-ca.crt}}\nusers:\n- name: u\n  user: {user}\n",
            self.address
        );
        scratch.write(name, text)
    }

    /// Callers with this token are let in.
    pub fn caller(&self, token: &str, name: &str) {
        let mut state = self.shared.lock();
        state.callers.insert(token.to_owned(), name.to_owned());
    }

    /// Callers with this token are let in no more.
    pub fn forget_caller(&self, token: &str) {
        self.shared.lock().callers.remove(token);
    }

    /// What a TokenReview says of this token.
    pub fn token(&self, token: &str, what: Token) {
        self.shared.lock().tokens.insert(token.to_owned(), what);
    }

    /// The token of an agent's pod on a node, as Kubernetes 1.30 and later describe it.
    pub fn agent_token(&self, token: &str, account: &str, audience: &str, node: &str) {
        let what = Token {
            username: format!("system:serviceaccount:{account}"),
            audiences: vec![audience.to_owned()],
            expired: false,
            extra: signing::pod_extra(node),
        };
        self.token(token, what);
    }

    /// Puts an object at a path, or takes it away.
    pub fn plain(&self, path: &str, object: Option<serde_json::Value>) {
        let mut state = self.shared.lock();
        match object {
            Some(object) => state.plain.insert(path.to_owned(), object),
            None => state.plain.remove(path),
        };
    }

    /// How it behaves from now on.
    pub fn mood(&self, mood: Mood) {
        self.shared.lock().mood = mood;
    }

    /// Puts a Lease there as somebody else would.
    pub fn put_lease(&self, namespace: &str, lease: serde_json::Value) {
        self.shared.lock().leases.put(namespace, lease);
        self.shared.changed.send_modify(|version| *version += 1);
    }

    /// Removes a Lease as somebody else would.
    pub fn remove_lease(&self, namespace: &str, name: &str) {
        self.shared.lock().leases.remove(namespace, name);
        self.shared.changed.send_modify(|version| *version += 1);
    }

    /// Every Lease of a namespace.
    pub fn leases(&self, namespace: &str) -> Vec<Stored> {
        self.shared.lock().leases.all(namespace)
    }

    /// Forgets what happened so far: a watch from an old version is told that it fell behind.
    pub fn compact(&self) {
        let mut state = self.shared.lock();
        state.leases.compact();
        state.objects.compact();
    }

    /// Ends all watches that run.
    pub fn end_watches(&self) {
        self.shared.cut.send_modify(|cut| *cut += 1);
    }

    /// Verb and path of every request so far.
    pub fn requests(&self) -> Vec<String> {
        self.shared.lock().requests.clone()
    }

    /// How many connections were made.
    pub fn connections(&self) -> usize {
        self.shared.lock().connections
    }

    /// Waits until `seen` says yes of the requests so far and the Leases of a namespace.
    pub async fn until(&self, namespace: &str, seen: impl Fn(&[String], &[Stored]) -> bool) {
        let mut changed = self.shared.changed.subscribe();
        loop {
            changed.borrow_and_update();
            if seen(&self.requests(), &self.leases(namespace)) {
                return;
            }
            if changed.changed().await.is_err() {
                return;
            }
        }
    }
}
