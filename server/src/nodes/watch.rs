//! Keeps the [`Book`] of Nodes: a list, then a watch, begun anew whenever it fails.
//!
//! While it fails, what was known counts: a claim that was seen first stays first. What is new is not
//! known, and whoever may only believe what is known says so; see [`Book::claim`].

use std::sync::Arc;
use std::time::Duration;

use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use towline_link::error::detail;
use towline_link::kube::follow::{Collection, Told};
use towline_link::kube::node::{self, Node};
use towline_link::kube::{Client, KubeError};
use towline_link::process::ratelimit::RateLimited;
use towline_link::process::ready::Condition;
use towline_proto::limits;

use super::Book;
use crate::csr::told::SigningMetrics;

/// Is told of changes.
pub trait Hears: Send + Sync + 'static {
    /// A Node's names or addresses changed.
    fn node_changed(&self, node: &str);
    /// All Nodes were looked at.
    fn all_changed(&self);
}

/// See the head of this file. Does nothing until it [runs](NodeWatch::run).
pub struct NodeWatch {
    nodes: Collection,
    book: Arc<Book>,
    hear: Vec<Arc<dyn Hears>>,
    errors: SigningMetrics,
    followed: Gauge,
    known: Gauge,
    left_out: Gauge,
    said: RateLimited<()>,
}

/// Between two lines about Nodes for which there is no room.
const SAID: Duration = Duration::from_secs(60);

impl NodeWatch {
    /// Of this API.
    pub fn new(client: Client, errors: SigningMetrics) -> Self {
        Self {
            nodes: node::all(client),
            book: Arc::default(),
            hear: Vec::new(),
            errors,
            followed: Gauge::default(),
            known: Gauge::default(),
            left_out: Gauge::default(),
            said: RateLimited::new(1, SAID),
        }
    }

    /// Adds its numbers to what a scrape shows.
    pub fn register(&self, registry: &mut Registry) {
        self.errors.count("nodes");
        registry.register(
            "towline_server_nodes_followed",
            "1 while the Nodes of the Kubernetes API are listed and watched; while it is 0, addresses that are new to a Node go into no certificate",
            self.followed.clone(),
        );
        registry.register(
            "towline_server_nodes",
            "Nodes that are known from the Kubernetes API",
            self.known.clone(),
        );
        registry.register(
            "towline_server_nodes_left_out",
            "Nodes of the Kubernetes API beyond the bound of those that are kept in mind: no address of theirs goes into a certificate",
            self.left_out.clone(),
        );
    }

    /// What it keeps.
    pub fn book(&self) -> Arc<Book> {
        Arc::clone(&self.book)
    }

    /// Who is told of changes from now on.
    pub fn tells(&mut self, who: Arc<dyn Hears>) {
        self.hear.push(who);
    }

    /// Works until the task is dropped.
    pub async fn run(self, condition: Condition) {
        let nodes = self.nodes.clone();
        condition.note("the Nodes of the cluster are not known yet");
        nodes
            .follow::<Node>(|told| {
                match told {
                    Told::Begins => self.book.begins(),
                    Told::Listed => {
                        self.book.listed();
                        self.followed.set(1);
                        self.met(&condition);
                        self.hear.iter().for_each(|who| who.all_changed());
                    }
                    Told::Page(items) => items.iter().for_each(|node| self.is(node)),
                    Told::Is(node) => self.is(&node),
                    Told::Was(node) => self.book.was(&node),
                    Told::Failed(error, pause) => {
                        self.book.broke();
                        self.followed.set(0);
                        self.errors.failed("nodes");
                        let text = self.failed(error);
                        tracing::error!(retry_in = ?pause, "{text}");
                        condition.note(text);
                    }
                }
                self.known.set(number(self.book.len()));
                let left_out = number(self.book.left_out());
                if self.left_out.set(left_out) != left_out && self.followed.get() == 1 {
                    self.met(&condition);
                }
            })
            .await;
    }

    /// They are followed: all of them, or as many as there is room for.
    fn met(&self, condition: &Condition) {
        match self.book.left_out() {
            0 => condition.met(),
            count => condition.note(format!(
                "{count} Nodes are more than the {} that are kept in mind: they get no addresses by \
                 the API's word; give them certificates with their addresses",
                limits::KUBE_NODES
            )),
        }
    }

    fn is(&self, node: &Node) {
        match self.book.is(node) {
            Some(true) => {
                let name = &node.metadata.name;
                self.hear.iter().for_each(|who| who.node_changed(name));
            }
            Some(false) => {}
            None => {
                if let Some(suppressed) = self.said.allow(()) {
                    tracing::error!(
                        most = limits::KUBE_NODES,
                        left_out = self.book.left_out(),
                        suppressed,
                        "more Nodes than are kept in mind: the others get no addresses by the API's word"
                    );
                }
            }
        }
    }

    fn failed(&self, error: &KubeError) -> String {
        let fix = match error.status() {
            Some(403) => {
                "give this server's user the right to list and watch nodes, as in \
                 server/deploy/enrol-rbac.yaml: "
            }
            _ => "",
        };
        let what = match self.book.is_listed() {
            true => {
                "Nodes are not followed; of what was known the addresses count, new ones do not"
            }
            false => "the Nodes of the cluster are not known; no address of a Node counts",
        };
        format!("{what}: {fix}{}", detail(error))
    }
}

fn number(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
