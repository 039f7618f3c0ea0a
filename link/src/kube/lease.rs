//! Leases of coordination.k8s.io: how Konnectivity's servers say that they are there.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::client::{Client, escape};
use super::error::KubeError;
use super::moment::Moment;
use super::watch::Watch;

const VERSION: &str = "coordination.k8s.io/v1";

/// What every object has. What we do not know of is kept, so that an update does not remove it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    /// Name within its namespace.
    #[serde(default)]
    pub name: String,
    /// Its namespace.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// Which object of this name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// Which state of it; an update that names an old one is refused.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub resource_version: String,
    /// Labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The rest.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

/// A Lease.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Lease {
    /// Name, labels, version.
    #[serde(default)]
    pub metadata: Metadata,
    /// Who holds it, and until when.
    #[serde(default)]
    pub spec: LeaseSpec,
}

/// See [`Lease::spec`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LeaseSpec {
    /// Who holds it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder_identity: Option<String>,
    /// How long it counts after it was renewed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lease_duration_seconds: Option<i32>,
    /// When it was taken.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub acquire_time: Option<Moment>,
    /// When it was renewed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub renew_time: Option<Moment>,
    /// The rest.
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

impl Lease {
    /// Until when it counts; never, when it says neither when it was renewed nor when it was
    /// taken, or not for how long.
    pub fn until(&self) -> Option<SystemTime> {
        let from = self.spec.renew_time.or(self.spec.acquire_time)?;
        let seconds = u64::try_from(self.spec.lease_duration_seconds?).ok()?;
        from.0.checked_add(Duration::from_secs(seconds))
    }

    /// Whether it counts.
    pub fn is_valid(&self, now: SystemTime) -> bool {
        self.until().is_some_and(|until| until > now)
    }
}

/// The answer to a list.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct LeaseList {
    /// Its version: a watch begins there.
    #[serde(default)]
    pub metadata: Metadata,
    /// What there is.
    #[serde(default)]
    pub items: Vec<Lease>,
}

#[derive(Serialize)]
struct Typed<'a> {
    #[serde(rename = "apiVersion")]
    version: &'static str,
    kind: &'static str,
    #[serde(flatten)]
    lease: &'a Lease,
}

impl<'a> From<&'a Lease> for Typed<'a> {
    fn from(lease: &'a Lease) -> Self {
        Self {
            version: VERSION,
            kind: "Lease",
            lease,
        }
    }
}

/// The Leases of one namespace.
#[derive(Clone, Debug)]
pub struct Leases {
    client: Client,
    path: String,
}

impl Leases {
    /// Of this namespace.
    pub fn new(client: Client, namespace: &str) -> Self {
        let path = format!("/apis/{VERSION}/namespaces/{}/leases", escape(namespace));
        Self { client, path }
    }

    fn one(&self, name: &str) -> String {
        format!("{}/{}", self.path, escape(name))
    }

    fn query(&self, selector: &str, more: &str) -> String {
        format!("{}?labelSelector={}{more}", self.path, escape(selector))
    }

    /// One of them.
    pub async fn get(&self, name: &str) -> Result<Lease, KubeError> {
        self.client.get(&self.one(name)).await
    }

    /// Those with these labels (`key=value,...`; empty: all).
    pub async fn list(&self, selector: &str) -> Result<LeaseList, KubeError> {
        self.client.get(&self.query(selector, "")).await
    }

    /// A new one; a conflict when the name is taken.
    pub async fn create(&self, lease: &Lease) -> Result<Lease, KubeError> {
        self.client.create(&self.path, &Typed::from(lease)).await
    }

    /// Changes one; a conflict when it changed since it was read.
    pub async fn update(&self, lease: &Lease) -> Result<Lease, KubeError> {
        let path = self.one(&lease.metadata.name);
        self.client.update(&path, &Typed::from(lease)).await
    }

    /// Removes one, only if it is still this very object in this very state, as far as `lease`
    /// names them.
    pub async fn delete(&self, lease: &Lease) -> Result<(), KubeError> {
        let Metadata {
            name,
            uid,
            resource_version,
            ..
        } = &lease.metadata;
        self.client
            .delete(&self.one(name), uid, resource_version)
            .await
    }

    /// What happens to those with these labels after `version`.
    pub async fn watch(&self, selector: &str, version: &str) -> Result<Watch<Lease>, KubeError> {
        let more = format!("&resourceVersion={}", escape(version));
        let path = self.query(selector, &more);
        self.client.watch(&path).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_counts_from_its_renewal_or_else_from_when_it_was_taken() {
        let now = SystemTime::now();
        let ago = |seconds| Some(Moment(now - Duration::from_secs(seconds)));
        let lease = |renew, acquire, seconds| Lease {
            spec: LeaseSpec {
                renew_time: renew,
                acquire_time: acquire,
                lease_duration_seconds: seconds,
                ..LeaseSpec::default()
            },
            ..Lease::default()
        };
        assert!(lease(ago(10), ago(100), Some(30)).is_valid(now));
        assert!(!lease(ago(30), ago(1), Some(30)).is_valid(now));
        assert!(lease(None, ago(10), Some(30)).is_valid(now));
        assert!(!lease(None, None, Some(30)).is_valid(now));
        assert!(!lease(ago(1), None, None).is_valid(now));
        assert!(!lease(ago(1), None, Some(-5)).is_valid(now));
    }

    #[test]
    fn what_we_do_not_know_of_survives_an_update() {
        let text = r#"{"metadata":{"name":"a","resourceVersion":"7","annotations":{"x":"y"}},
            "spec":{"holderIdentity":"h","strategy":"OldestEmulationVersion"}}"#;
        let lease: Lease = serde_json::from_str(text).unwrap();
        let back = serde_json::to_value(Typed::from(&lease)).unwrap();
        assert_eq!(back["kind"], "Lease");
        assert_eq!(back["metadata"]["annotations"]["x"], "y");
        assert_eq!(back["spec"]["strategy"], "OldestEmulationVersion");
        assert_eq!(back["metadata"]["resourceVersion"], "7");
    }
}
