//! Pods: on which node one runs, and as whom.

use serde::Deserialize;

use super::client::{Client, escape};
use super::error::KubeError;

/// A Pod, as far as it matters here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Pod {
    /// Which one.
    #[serde(default)]
    pub metadata: PodMetadata,
    /// Where it runs.
    #[serde(default)]
    pub spec: PodSpec,
}

/// See [`Pod::metadata`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct PodMetadata {
    /// Unique over time.
    #[serde(default)]
    pub uid: String,
}

/// See [`Pod::spec`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodSpec {
    /// Its node, once it has one.
    #[serde(default)]
    pub node_name: String,
    /// Its service account.
    #[serde(default)]
    pub service_account_name: String,
}

/// Reads one.
pub async fn get(client: &Client, namespace: &str, name: &str) -> Result<Pod, KubeError> {
    let (namespace, name) = (escape(namespace), escape(name));
    client
        .get(&format!("/api/v1/namespaces/{namespace}/pods/{name}"))
        .await
}
