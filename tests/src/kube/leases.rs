//! The Leases of the fake API: versions, conflicts, selectors, and what happened since when.

use std::collections::BTreeMap;

use serde_json::{Value, json};

/// A stored Lease: what was sent, with name, uid and version.
pub type Stored = Value;

/// Why a write was refused: status, the API's word, text.
pub(crate) type Refused = (u16, &'static str, String);

/// One change, as a watch tells it.
#[derive(Clone)]
pub(crate) struct Change {
    pub(crate) version: u64,
    pub(crate) kind: &'static str,
    pub(crate) namespace: String,
    pub(crate) object: Stored,
}

#[derive(Default)]
pub(crate) struct Store {
    version: u64,
    uids: u64,
    compacted: u64,
    objects: BTreeMap<(String, String), Stored>,
    log: Vec<Change>,
}

fn name_of(lease: &Value) -> String {
    lease["metadata"]["name"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

fn conflict(name: &str, text: &str) -> Refused {
    let message =
        format!("Operation cannot be fulfilled on leases.coordination.k8s.io \"{name}\": {text}");
    (409, "Conflict", message)
}

fn missing(name: &str) -> Refused {
    (
        404,
        "NotFound",
        format!("leases.coordination.k8s.io \"{name}\" not found"),
    )
}

impl Store {
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    pub(crate) fn all(&self, namespace: &str) -> Vec<Stored> {
        let mine = |key: &&(String, String)| key.0 == namespace;
        let keys = self.objects.keys().filter(mine);
        keys.filter_map(|key| self.objects.get(key))
            .cloned()
            .collect()
    }

    pub(crate) fn get(&self, namespace: &str, name: &str) -> Result<Stored, Refused> {
        let key = (namespace.to_owned(), name.to_owned());
        self.objects.get(&key).cloned().ok_or_else(|| missing(name))
    }

    /// Creates or replaces without questions.
    pub(crate) fn put(&mut self, namespace: &str, lease: Value) -> Stored {
        let key = (namespace.to_owned(), name_of(&lease));
        let old = self
            .objects
            .get(&key)
            .map(|old| old["metadata"]["uid"].clone());
        let kind = if old.is_some() { "MODIFIED" } else { "ADDED" };
        let uid = old.unwrap_or_else(|| {
            self.uids += 1;
            json!(format!("00000000-0000-4000-8000-{:012}", self.uids))
        });
        self.version += 1;
        let mut stored = lease;
        stored["apiVersion"] = json!("coordination.k8s.io/v1");
        stored["kind"] = json!("Lease");
        stored["metadata"]["namespace"] = json!(namespace);
        stored["metadata"]["uid"] = uid;
        stored["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.objects.insert(key, stored.clone());
        self.tell(kind, namespace, stored.clone());
        stored
    }

    fn tell(&mut self, kind: &'static str, namespace: &str, object: Stored) {
        self.log.push(Change {
            version: self.version,
            kind,
            namespace: namespace.to_owned(),
            object,
        });
    }

    pub(crate) fn create(&mut self, namespace: &str, lease: Value) -> Result<Stored, Refused> {
        let name = name_of(&lease);
        if name.is_empty() {
            return Err((
                422,
                "Invalid",
                "name or generateName is required".to_owned(),
            ));
        }
        if self.get(namespace, &name).is_ok() {
            let text = format!("leases.coordination.k8s.io \"{name}\" already exists");
            return Err((409, "AlreadyExists", text));
        }
        Ok(self.put(namespace, lease))
    }

    pub(crate) fn update(
        &mut self,
        namespace: &str,
        name: &str,
        lease: Value,
    ) -> Result<Stored, Refused> {
        let old = self.get(namespace, name)?;
        if name_of(&lease) != name {
            return Err((
                400,
                "BadRequest",
                "the name of the object does not match".to_owned(),
            ));
        }
        let asked = &lease["metadata"]["resourceVersion"];
        if asked.is_string() && *asked != old["metadata"]["resourceVersion"] {
            return Err(conflict(name, "the object has been modified"));
        }
        Ok(self.put(namespace, lease))
    }

    pub(crate) fn delete(
        &mut self,
        namespace: &str,
        name: &str,
        options: &Value,
    ) -> Result<(), Refused> {
        let old = self.get(namespace, name)?;
        for field in ["uid", "resourceVersion"] {
            let asked = &options["preconditions"][field];
            if asked.is_string() && *asked != old["metadata"][field] {
                return Err(conflict(name, "the precondition does not hold"));
            }
        }
        self.remove(namespace, name);
        Ok(())
    }

    pub(crate) fn remove(&mut self, namespace: &str, name: &str) {
        let key = (namespace.to_owned(), name.to_owned());
        if let Some(mut old) = self.objects.remove(&key) {
            self.version += 1;
            old["metadata"]["resourceVersion"] = json!(self.version.to_string());
            self.tell("DELETED", namespace, old);
        }
    }

    pub(crate) fn compact(&mut self) {
        self.compacted = self.version;
        self.log.clear();
    }

    /// What happened after `version`, or `None` when that is not known any more.
    pub(crate) fn since(&self, version: u64, namespace: &str) -> Option<Vec<Change>> {
        if version < self.compacted {
            return None;
        }
        let after = self.log.iter().filter(|change| change.version > version);
        let mine = after.filter(|change| change.namespace == namespace);
        Some(mine.cloned().collect())
    }
}

/// Whether an object has the labels of an equality selector: `a=b,c==d,e!=f,g,!h`.
pub(crate) fn selected(selector: &str, object: &Value) -> bool {
    let label = |key: &str| object["metadata"]["labels"][key.trim()].as_str();
    selector
        .split(',')
        .filter(|part| !part.trim().is_empty())
        .all(|part| {
            if let Some((key, value)) = part.split_once("!=") {
                label(key) != Some(value.trim())
            } else if let Some((key, value)) = part.split_once('=') {
                label(key) == Some(value.trim_start_matches('=').trim())
            } else if let Some(key) = part.trim().strip_prefix('!') {
                label(key).is_none()
            } else {
                label(part).is_some()
            }
        })
}
