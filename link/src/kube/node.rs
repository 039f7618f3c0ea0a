//! Nodes: their addresses, which the kubelet writes itself.

use serde::Deserialize;
use towline_proto::limits;

use super::client::{Client, escape};
use super::error::KubeError;
use super::follow::{Collection, Listed};

const PATH: &str = "/api/v1/nodes";

/// A Node, as far as it matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Node {
    /// Name and version.
    #[serde(default)]
    pub metadata: NodeMetadata,
    /// What its kubelet says.
    #[serde(default)]
    pub status: NodeStatus,
}

/// See [`Node::metadata`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeMetadata {
    /// Its name.
    #[serde(default)]
    pub name: String,
    /// Which Node of this name.
    #[serde(default)]
    pub uid: String,
    /// Which state of it.
    #[serde(default)]
    pub resource_version: String,
}

/// See [`Node::status`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct NodeStatus {
    /// Addresses and names.
    #[serde(default)]
    pub addresses: Vec<NodeAddress>,
}

/// One of them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct NodeAddress {
    /// `InternalIP`, `Hostname` and so on.
    #[serde(default, rename = "type")]
    pub kind: String,
    /// An address or a name.
    #[serde(default)]
    pub address: String,
}

impl Node {
    /// Every address and name, whatever its type, as many as count.
    pub fn addresses(&self) -> impl Iterator<Item = &str> {
        let all = self.status.addresses.iter();
        all.take(limits::KUBE_NODE_ADDRESSES)
            .map(|address| address.address.as_str())
    }
}

impl Listed for Node {
    fn version(&self) -> &str {
        &self.metadata.resource_version
    }
}

/// All Nodes, for following.
pub fn all(client: Client) -> Collection {
    Collection::new(client, PATH, "")
}

/// Reads one.
pub async fn get(client: &Client, name: &str) -> Result<Node, KubeError> {
    client.get(&format!("{PATH}/{}", escape(name))).await
}
