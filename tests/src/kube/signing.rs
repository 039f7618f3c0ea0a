//! Signing requests and Nodes of the fake API, with the rules that the real one has: who asked is
//! written by the API, `approval` takes decisions only, `status` takes the certificate once, each
//! write needs its right, and what was decided stays decided.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU32, Ordering};

use serde_json::{Value, json};
use towline_link::kube::csr::SigningRequest;

use super::answers::{Answer, Asked, Watched, refused};
use super::leases::{Refused, Stored};
use super::objects::Kind;
use super::{FakeKube, State};

/// Who a caller is to signing requests that it makes.
#[derive(Clone, Debug, Default)]
pub struct User {
    /// Groups.
    pub groups: Vec<String>,
    /// What else is known of it.
    pub extra: HashMap<String, Vec<String>>,
}

/// What callers may not do, and who they are.
#[derive(Default)]
pub(crate) struct Rights {
    missing: HashSet<&'static str>,
    users: HashMap<String, User>,
}

pub(crate) fn answer(state: &mut State, asked: &Asked, caller: &str) -> Option<Answer> {
    for kind in [Kind::Node, Kind::SigningRequest] {
        if let Some(rest) = asked.path.strip_prefix(kind.path()) {
            let parts: Vec<&str> = rest.split('/').filter(|part| !part.is_empty()).collect();
            return Some(match serve(state, asked, caller, kind, &parts) {
                Ok(answer) => answer,
                Err(error) => refused(error),
            });
        }
    }
    None
}

fn serve(
    state: &mut State,
    asked: &Asked,
    caller: &str,
    kind: Kind,
    parts: &[&str],
) -> Result<Answer, Refused> {
    let query = |key: &str| asked.query.get(key).cloned().unwrap_or_default();
    let read = match kind {
        Kind::Node => "nodes",
        Kind::SigningRequest => "requests",
    };
    let body = match (asked.verb.as_str(), parts) {
        ("GET", []) if query("watch") == "true" => {
            state.rights.check(read)?;
            state.rights.check_all(kind)?;
            let version = query("resourceVersion").parse().unwrap_or(0);
            return Ok(Answer::Watch(
                Watched::Objects(kind, query("fieldSelector")),
                version,
            ));
        }
        ("GET", []) => {
            state.rights.check(read)?;
            state.rights.check_all(kind)?;
            let limit = query("limit").parse().unwrap_or(0);
            state
                .objects
                .list(kind, &query("fieldSelector"), limit, &query("continue"))
        }
        ("GET", [name]) => {
            state.rights.check(read)?;
            state.objects.get(kind, name)?
        }
        ("POST", []) if kind == Kind::SigningRequest => {
            state.rights.check("create")?;
            let object = state.rights.sealed(asked.body.clone(), caller)?;
            return Ok(Answer::Whole(201, state.objects.create(kind, object)?));
        }
        ("PUT", [name, "approval"]) => {
            state.rights.check("approve")?;
            let old = state.objects.current(kind, name, &asked.body)?;
            let new = approval(old, &asked.body)?;
            state.objects.put(kind, new)
        }
        ("PUT", [name, "status"]) => {
            state.rights.check("sign")?;
            let old = state.objects.current(kind, name, &asked.body)?;
            let new = status(old, &asked.body)?;
            state.objects.put(kind, new)
        }
        _ => return Err((405, "MethodNotAllowed", "not allowed".to_owned())),
    };
    Ok(Answer::Whole(200, body))
}

impl Rights {
    fn check(&self, right: &'static str) -> Result<(), Refused> {
        match self.missing.contains(right) {
            true => Err((403, "Forbidden", format!("user cannot {right}"))),
            false => Ok(()),
        }
    }

    /// To list and watch is another right than to read one.
    fn check_all(&self, kind: Kind) -> Result<(), Refused> {
        match kind {
            Kind::Node => self.check("all-nodes"),
            Kind::SigningRequest => Ok(()),
        }
    }

    /// Whatever a caller says of itself is overwritten.
    fn sealed(&self, mut object: Value, caller: &str) -> Result<Value, Refused> {
        let invalid = |text: &str| (422, "Invalid", text.to_owned());
        let spec = &mut object["spec"];
        if !spec["signerName"]
            .as_str()
            .is_some_and(|name| name.contains('/'))
        {
            return Err(invalid(
                "spec.signerName: must be a fully qualified domain and path",
            ));
        }
        if spec["expirationSeconds"]
            .as_i64()
            .is_some_and(|seconds| seconds < 600)
        {
            return Err(invalid("spec.expirationSeconds: may not be less than 600"));
        }
        if spec["usages"].as_array().is_none_or(Vec::is_empty) {
            return Err(invalid("spec.usages: Required value"));
        }
        let user = self.users.get(caller).cloned().unwrap_or_default();
        // Pods of one account are one user, each with extras of its own.
        let name = caller.split('#').next().unwrap_or(caller);
        spec["username"] = json!(name);
        spec["groups"] = json!(user.groups);
        spec["extra"] = json!(user.extra);
        object["status"] = json!({});
        Ok(object)
    }
}

fn conditions(object: &Value) -> Vec<Value> {
    let list = object["status"]["conditions"].as_array();
    list.cloned().unwrap_or_default()
}

fn is_decision(condition: &Value) -> bool {
    condition["type"] == "Approved" || condition["type"] == "Denied"
}

fn check(list: &[Value]) -> Result<(), Refused> {
    let invalid = |text: &str| Err((422, "Invalid", text.to_owned()));
    let has = |kind: &str| list.iter().filter(|one| one["type"] == kind).count();
    if has("Approved") > 0 && has("Denied") > 0 {
        return invalid("status.conditions: Approved and Denied conditions are mutually exclusive");
    }
    if ["Approved", "Denied", "Failed"]
        .iter()
        .any(|kind| has(kind) > 1)
    {
        return invalid("status.conditions: Duplicate value");
    }
    if list
        .iter()
        .any(|one| is_decision(one) && one["status"] != "True")
    {
        return invalid("status.conditions: Approved and Denied conditions must be True");
    }
    Ok(())
}

fn approval(mut old: Value, new: &Value) -> Result<Value, Refused> {
    let list = conditions(new);
    check(&list)?;
    for was in conditions(&old).iter().filter(|one| is_decision(one)) {
        if !list.iter().any(|is| is["type"] == was["type"]) {
            let text = format!("status.conditions: {} may not be removed", was["type"]);
            return Err((422, "Invalid", text));
        }
    }
    old["status"]["conditions"] = json!(list);
    Ok(old)
}

fn status(mut old: Value, new: &Value) -> Result<Value, Refused> {
    let certificate = &new["status"]["certificate"];
    let was = &old["status"]["certificate"];
    if was.is_string() && certificate != was {
        return Err((
            422,
            "Invalid",
            "status.certificate: field is immutable".to_owned(),
        ));
    }
    let read: SigningRequest = serde_json::from_value(new.clone())
        .map_err(|error| (400, "BadRequest", error.to_string()))?;
    let begin = b"-----BEGIN CERTIFICATE-----";
    if read
        .certificate()
        .is_some_and(|pem| !pem.starts_with(begin))
    {
        let text = "status.certificate: must contain one or more PEM blocks";
        return Err((422, "Invalid", text.to_owned()));
    }
    let mut list = conditions(&old);
    list.extend(
        conditions(new)
            .into_iter()
            .filter(|one| one["type"] == "Failed"),
    );
    check(&list)?;
    old["status"]["conditions"] = json!(list);
    if certificate.is_string() {
        old["status"]["certificate"] = certificate.clone();
    }
    Ok(old)
}

impl FakeKube {
    /// Callers with this token are the pod of an account on a node, as Kubernetes 1.30 and later
    /// describe it.
    pub fn pod_caller(&self, token: &str, account: &str, node: &str) {
        let name = format!("system:serviceaccount:{account}#{node}");
        self.caller(token, &name);
        let namespace = account.split(':').next().unwrap_or_default();
        self.user(
            &name,
            User {
                groups: vec![
                    "system:serviceaccounts".into(),
                    format!("system:serviceaccounts:{namespace}"),
                    "system:authenticated".into(),
                ],
                extra: pod_extra(node),
            },
        );
    }

    /// Who this caller (see [`FakeKube::caller`]) is to signing requests that it makes. A `#` and
    /// what is behind it tell apart callers that are one user.
    pub fn user(&self, name: &str, user: User) {
        let mut state = self.shared.lock();
        state.rights.users.insert(name.to_owned(), user);
    }

    /// Nobody has this right any more: `nodes`, `all-nodes` (list and watch), `requests`, `create`, `approve` or `sign`.
    pub fn withdraw(&self, right: &'static str) {
        self.shared.lock().rights.missing.insert(right);
    }

    /// Everybody has it again.
    pub fn grant(&self, right: &'static str) {
        self.shared.lock().rights.missing.remove(right);
    }

    /// Puts a Node there, or changes its addresses. `InternalIP` or `Hostname` by their form.
    pub fn put_node(&self, name: &str, addresses: &[&str]) {
        let kind = |text: &str| match text.parse::<std::net::IpAddr>() {
            Ok(_) => "InternalIP",
            Err(_) => "Hostname",
        };
        let list: Vec<Value> = addresses
            .iter()
            .map(|text| json!({"type": kind(text), "address": text}))
            .collect();
        let node = json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
            "spec": {"podCIDR": "10.244.0.0/24"},
            "status": {"addresses": list, "images": [{"names": ["x"], "sizeBytes": 1}]},
        });
        self.shared.lock().objects.put(Kind::Node, node);
        self.changed();
    }

    /// Removes a Node.
    pub fn remove_node(&self, name: &str) {
        self.shared.lock().objects.remove(Kind::Node, name);
        self.changed();
    }

    /// Puts a signing request there as it stands, whoever it says that it is of.
    pub fn put_request(&self, object: Value) -> Stored {
        let stored = self.shared.lock().objects.put(Kind::SigningRequest, object);
        self.changed();
        stored
    }

    /// Removes a signing request.
    pub fn remove_request(&self, name: &str) {
        self.shared
            .lock()
            .objects
            .remove(Kind::SigningRequest, name);
        self.changed();
    }

    /// A signing request as it is now.
    pub fn request(&self, name: &str) -> Option<Stored> {
        self.shared
            .lock()
            .objects
            .get(Kind::SigningRequest, name)
            .ok()
    }

    /// Every signing request.
    pub fn signing_requests(&self) -> Vec<Stored> {
        self.shared.lock().objects.all(Kind::SigningRequest)
    }

    fn changed(&self) {
        self.shared.changed.send_modify(|version| *version += 1);
    }

    /// Waits until `seen` says yes of the signing requests.
    pub async fn until_requests(&self, seen: impl Fn(&[Stored]) -> bool) {
        let mut changed = self.shared.changed.subscribe();
        loop {
            changed.borrow_and_update();
            if seen(&self.signing_requests()) || changed.changed().await.is_err() {
                return;
            }
        }
    }
}

/// What the API knows of a pod on a node beside whose it is; of another token each time.
pub fn pod_extra(node: &str) -> HashMap<String, Vec<String>> {
    static TOKENS: AtomicU32 = AtomicU32::new(0);
    let number = TOKENS.fetch_add(1, Ordering::Relaxed);
    let extra = [
        ("pod-name", format!("agent-{node}")),
        ("pod-uid", format!("uid-{node}")),
        ("node-name", node.to_owned()),
        ("node-uid", format!("node-uid-{node}")),
        ("credential-id", format!("JTI={number}")),
    ];
    let named =
        |(key, value): (&str, String)| (format!("authentication.kubernetes.io/{key}"), vec![value]);
    extra.into_iter().map(named).collect()
}

/// The words of the decisions of a signing request.
pub fn decisions(request: &Value) -> Vec<String> {
    let word = |one: &Value| one["type"].as_str().unwrap_or_default().to_owned();
    conditions(request).iter().map(word).collect()
}
