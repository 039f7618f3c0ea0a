//! Everything that is done about signing requests, as one value for `run`.

use std::path::PathBuf;
use std::sync::Arc;

use tokio::task::JoinSet;
use towline_link::kube::csr::SigningRequests;
use towline_pki::{Authority, AuthorityError, Expiry};

use super::desk::Desk;
use super::flags::SigningConfig;
use super::issuer::Issuer;
use super::names::NodeNames;
use super::office::Office;
use super::serving::{Denied, Serving};
use super::told::{SigningMetrics, Told};
use crate::agents::Agents;
use crate::audit::trail::Audit;
use crate::classify::Prefixes;
use crate::directory::FileDirectory;
use crate::nodes::NodeWatch;

/// What it needs of the rest of the server.
pub struct Around {
    /// Who is linked.
    pub agents: Arc<Agents>,
    /// What is granted.
    pub directory: Arc<FileDirectory>,
    /// The cluster's addresses.
    pub prefixes: Prefixes,
    /// Whether a node's agent is on the deny list.
    pub denied: Denied,
    /// The trail.
    pub audit: Audit,
}

/// See the head of this file.
pub struct Signing {
    serving: Arc<Desk<Serving>>,
    issuer: Option<Arc<Issuer>>,
}

/// What a reload needs: outlives the start, costs nothing.
#[derive(Clone, Default)]
pub struct SigningFiles(Option<Arc<Issuer>>);

impl SigningFiles {
    /// Every file.
    pub fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        self.0.iter().flat_map(|issuer| issuer.paths())
    }

    /// When they end.
    pub fn expiries(&self) -> impl Iterator<Item = Expiry> {
        self.0.iter().map(|issuer| issuer.expiry())
    }

    /// Reads them.
    pub fn read(&self, now: std::time::SystemTime) -> Result<Option<Authority>, AuthorityError> {
        self.0
            .as_ref()
            .map(|issuer| issuer.read_again(now))
            .transpose()
    }

    /// Puts them in force.
    pub fn replace(&self, authority: Option<Authority>) {
        if let (Some(issuer), Some(authority)) = (&self.0, authority) {
            issuer.replace(authority);
        }
    }
}

impl Signing {
    /// Nothing is asked of the API yet. It is told by `nodes` what changes.
    pub fn new(
        config: SigningConfig,
        around: Around,
        nodes: &mut NodeWatch,
        metrics: SigningMetrics,
    ) -> Self {
        let names = NodeNames {
            book: nodes.book(),
            agents: around.agents,
            directory: around.directory,
            prefixes: around.prefixes,
            control_plane: config.control_plane,
            control_plane_names: config.control_plane_names,
            domains: config.domains,
        };
        let office = Serving::new(names, around.denied, config.issuer.clone());
        let manifest = office.texts().manifest;
        let told = Told::new(office.word(), manifest, metrics, around.audit);
        let requests = SigningRequests::new(config.client);
        let serving = Desk::new(office, requests, told);
        nodes.tells(Arc::clone(&serving) as _);
        Self {
            serving,
            issuer: config.issuer,
        }
    }

    /// For reloads.
    pub fn files(&self) -> SigningFiles {
        SigningFiles(self.issuer.clone())
    }

    /// Works until the tasks are dropped.
    pub fn start(self, tasks: &mut JoinSet<()>) {
        tasks.spawn(self.serving.run());
    }
}
