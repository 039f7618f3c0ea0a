//! Cluster-wide objects of the fake API: Nodes and signing requests, with versions, conflicts,
//! pages and field selectors.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::leases::{Change, Refused, Stored};

/// The kinds that there are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Node,
    SigningRequest,
}

impl Kind {
    pub(crate) const fn path(self) -> &'static str {
        match self {
            Kind::Node => "/api/v1/nodes",
            Kind::SigningRequest => "/apis/certificates.k8s.io/v1/certificatesigningrequests",
        }
    }

    const fn version(self) -> &'static str {
        match self {
            Kind::Node => "v1",
            Kind::SigningRequest => "certificates.k8s.io/v1",
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Kind::Node => "Node",
            Kind::SigningRequest => "CertificateSigningRequest",
        }
    }
}

#[derive(Default)]
pub(crate) struct Objects {
    version: u64,
    uids: u64,
    compacted: u64,
    objects: BTreeMap<(Kind, String), Stored>,
    log: Vec<(Kind, Change)>,
}

impl Objects {
    pub(crate) fn get(&self, kind: Kind, name: &str) -> Result<Stored, Refused> {
        let found = self.objects.get(&(kind, name.to_owned())).cloned();
        found.ok_or_else(|| {
            (
                404,
                "NotFound",
                format!("{} {name:?} not found", kind.name()),
            )
        })
    }

    pub(crate) fn all(&self, kind: Kind) -> Vec<Stored> {
        let mine = self.objects.iter().filter(|((of, _), _)| *of == kind);
        mine.map(|(_, object)| object.clone()).collect()
    }

    /// Creates or replaces without questions. An empty name is found from `generateName`.
    pub(crate) fn put(&mut self, kind: Kind, mut object: Value) -> Stored {
        self.version += 1;
        let metadata = &mut object["metadata"];
        if metadata["name"].as_str().unwrap_or_default().is_empty() {
            let prefix = metadata["generateName"].as_str().unwrap_or_default();
            metadata["name"] = json!(format!("{prefix}{:05}", self.version));
        }
        let name = metadata["name"].as_str().unwrap_or_default().to_owned();
        let key = (kind, name);
        let old = self
            .objects
            .get(&key)
            .map(|old| old["metadata"]["uid"].clone());
        let what = if old.is_some() { "MODIFIED" } else { "ADDED" };
        metadata["uid"] = old.unwrap_or_else(|| {
            self.uids += 1;
            json!(format!("00000000-0000-4000-9000-{:012}", self.uids))
        });
        metadata["resourceVersion"] = json!(self.version.to_string());
        object["apiVersion"] = json!(kind.version());
        object["kind"] = json!(kind.name());
        self.objects.insert(key, object.clone());
        self.tell(kind, what, object.clone());
        object
    }

    pub(crate) fn create(&mut self, kind: Kind, object: Value) -> Result<Stored, Refused> {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        if !name.is_empty() && self.get(kind, name).is_ok() {
            return Err((409, "AlreadyExists", format!("{name:?} already exists")));
        }
        Ok(self.put(kind, object))
    }

    /// What stands there now, when the new one names its version.
    pub(crate) fn current(&self, kind: Kind, name: &str, new: &Value) -> Result<Stored, Refused> {
        let old = self.get(kind, name)?;
        let asked = &new["metadata"]["resourceVersion"];
        if asked.is_string() && *asked != old["metadata"]["resourceVersion"] {
            let text =
                format!("Operation cannot be fulfilled on {name:?}: the object has been modified");
            return Err((409, "Conflict", text));
        }
        Ok(old)
    }

    pub(crate) fn remove(&mut self, kind: Kind, name: &str) {
        if let Some(mut old) = self.objects.remove(&(kind, name.to_owned())) {
            self.version += 1;
            old["metadata"]["resourceVersion"] = json!(self.version.to_string());
            self.tell(kind, "DELETED", old);
        }
    }

    fn tell(&mut self, kind: Kind, what: &'static str, object: Stored) {
        let change = Change {
            version: self.version,
            kind: what,
            namespace: String::new(),
            object,
        };
        self.log.push((kind, change));
    }

    /// A page: `limit` objects after the one that `more` names.
    pub(crate) fn list(&self, kind: Kind, selector: &str, limit: usize, more: &str) -> Value {
        let mut items = self.all(kind);
        items.retain(|object| {
            let name = object["metadata"]["name"].as_str().unwrap_or_default();
            selected(selector, object) && (more.is_empty() || name > more)
        });
        let rest = limit > 0 && items.len() > limit;
        if rest {
            items.truncate(limit);
        }
        let last = items.last().map(|last| last["metadata"]["name"].clone());
        json!({
            "kind": format!("{}List", kind.name()), "apiVersion": kind.version(),
            "metadata": {
                "resourceVersion": self.version.to_string(),
                "continue": if rest { last.unwrap_or(json!("")) } else { json!("") },
            },
            "items": items,
        })
    }

    pub(crate) fn compact(&mut self) {
        self.compacted = self.version;
        self.log.clear();
    }

    pub(crate) fn since(&self, version: u64, kind: Kind) -> Option<Vec<Change>> {
        if version < self.compacted {
            return None;
        }
        // In the order of versions.
        let old = self
            .log
            .partition_point(|(_, change)| change.version <= version);
        let mine = self.log[old..].iter().filter(|(of, _)| *of == kind);
        Some(mine.map(|(_, change)| change.clone()).collect())
    }
}

/// The field selectors that are used here.
pub(crate) fn selected(selector: &str, object: &Value) -> bool {
    match selector.split_once('=') {
        Some(("spec.signerName", signer)) => object["spec"]["signerName"] == signer,
        Some(("metadata.name", name)) => object["metadata"]["name"] == name,
        _ => true,
    }
}
