//! What the fake API answers: verb, path and body to status and JSON.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::leases::{Change, Refused, selected};
use super::objects::{self, Kind};
use super::signing;
use super::{Mood, State, Token};

const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/";
const REVIEWS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";

/// A request, taken apart.
pub(crate) struct Asked {
    pub(crate) verb: String,
    pub(crate) path: String,
    pub(crate) query: HashMap<String, String>,
    pub(crate) body: Value,
}

/// What is to be sent.
pub(crate) enum Answer {
    Whole(u16, Value),
    /// What, from which version on.
    Watch(Watched, u64),
    Nothing,
}

/// What is watched.
pub(crate) enum Watched {
    /// Namespace and label selector.
    Leases(String, String),
    /// Kind and field selector.
    Objects(Kind, String),
}

impl Watched {
    pub(crate) fn since(&self, state: &State, version: u64) -> Option<Vec<Change>> {
        match self {
            Watched::Leases(namespace, _) => state.leases.since(version, namespace),
            Watched::Objects(kind, _) => state.objects.since(version, *kind),
        }
    }

    pub(crate) fn selects(&self, object: &Value) -> bool {
        match self {
            Watched::Leases(_, selector) => selected(selector, object),
            Watched::Objects(_, selector) => objects::selected(selector, object),
        }
    }
}

pub(crate) fn status(code: u16, reason: &str, message: &str) -> Value {
    json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    })
}

pub(crate) fn refused((code, reason, message): Refused) -> Answer {
    Answer::Whole(code, status(code, reason, &message))
}

/// `name` is the caller, where the caller is known.
pub(crate) fn answer(state: &mut State, asked: &Asked, name: Option<&str>) -> Answer {
    match state.mood.clone() {
        Mood::Silent => return Answer::Nothing,
        Mood::Refuses(code, reason) => {
            let text = "it is a bad day\u{1b}[31m";
            return Answer::Whole(code, status(code, &reason, text));
        }
        Mood::Verbose(bytes) => return Answer::Whole(200, json!({"kind": "x".repeat(bytes)})),
        Mood::Good => {}
    }
    if name.is_none() {
        return refused((401, "Unauthorized", "Unauthorized".to_owned()));
    }
    // As an API without streamed lists says; who asks so lists and watches then.
    if asked.query.contains_key("sendInitialEvents") {
        let text =
            "sendInitialEvents is forbidden for watch unless the WatchList feature gate is enabled";
        return refused((422, "Invalid", text.to_owned()));
    }
    if asked.path == REVIEWS && asked.verb == "POST" {
        return Answer::Whole(201, review(state, &asked.body));
    }
    if asked.verb == "GET"
        && let Some(object) = state.plain.get(&asked.path)
    {
        return Answer::Whole(200, object.clone());
    }
    if let Some(answer) = signing::answer(state, asked, name.unwrap_or_default()) {
        return answer;
    }
    match asked
        .path
        .strip_prefix(LEASES)
        .map(|rest| rest.split('/').collect::<Vec<_>>())
    {
        Some(parts) if parts.get(1) == Some(&"leases") && parts.len() <= 3 => {
            leases(state, asked, parts[0], parts.get(2).copied())
        }
        _ => refused((
            404,
            "NotFound",
            "the server could not find the requested resource".to_owned(),
        )),
    }
}

fn leases(state: &mut State, asked: &Asked, namespace: &str, name: Option<&str>) -> Answer {
    let selector = asked
        .query
        .get("labelSelector")
        .cloned()
        .unwrap_or_default();
    let done = match (asked.verb.as_str(), name) {
        ("GET", None)
            if asked
                .query
                .get("watch")
                .is_some_and(|watch| watch == "true") =>
        {
            let version = asked.query.get("resourceVersion");
            let version = version
                .and_then(|version| version.parse().ok())
                .unwrap_or(0);
            return Answer::Watch(Watched::Leases(namespace.to_owned(), selector), version);
        }
        ("GET", None) => {
            let mut items = state.leases.all(namespace);
            items.retain(|lease| selected(&selector, lease));
            Ok(json!({
                "kind": "LeaseList", "apiVersion": "coordination.k8s.io/v1",
                "metadata": {"resourceVersion": state.leases.version().to_string()},
                "items": items,
            }))
        }
        ("GET", Some(name)) => state.leases.get(namespace, name),
        ("POST", None) => {
            return match state.leases.create(namespace, asked.body.clone()) {
                Ok(lease) => Answer::Whole(201, lease),
                Err(error) => refused(error),
            };
        }
        ("PUT", Some(name)) => state.leases.update(namespace, name, asked.body.clone()),
        ("DELETE", Some(name)) => state
            .leases
            .delete(namespace, name, &asked.body)
            .map(|()| json!({"kind": "Status", "apiVersion": "v1", "status": "Success"})),
        _ => Err((405, "MethodNotAllowed", "not allowed".to_owned())),
    };
    match done {
        Ok(body) => Answer::Whole(200, body),
        Err(error) => refused(error),
    }
}

/// As the real one: a token for another audience is simply not authenticated.
fn review(state: &State, body: &Value) -> Value {
    let token = body["spec"]["token"].as_str().unwrap_or_default();
    let asked: Vec<&str> = body["spec"]["audiences"]
        .as_array()
        .map(|list| list.iter().filter_map(Value::as_str).collect())
        .unwrap_or_default();
    let verdict = match state.tokens.get(token) {
        Some(Token { expired: true, .. }) => {
            json!({"user": {}, "error": "[invalid bearer token, service account token has expired]"})
        }
        Some(Token {
            username,
            audiences,
            extra,
            ..
        }) => {
            let good: Vec<&String> = audiences
                .iter()
                .filter(|audience| asked.is_empty() || asked.contains(&audience.as_str()))
                .collect();
            match good.is_empty() {
                true => {
                    json!({"user": {}, "error": "[invalid bearer token, token audiences do not match]"})
                }
                false => json!({
                    "authenticated": true, "audiences": good,
                    "user": {
                        "username": username, "uid": "1", "groups": ["system:serviceaccounts"],
                        "extra": extra,
                    },
                }),
            }
        }
        None => json!({"user": {}}),
    };
    json!({
        "kind": "TokenReview", "apiVersion": "authentication.k8s.io/v1", "metadata": {},
        "spec": body["spec"], "status": verdict,
    })
}
