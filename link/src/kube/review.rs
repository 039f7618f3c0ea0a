//! TokenReview: whose token is this, and is it for us?

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::client::Client;
use super::error::KubeError;

const PATH: &str = "/apis/authentication.k8s.io/v1/tokenreviews";

#[derive(Serialize)]
struct Ask<'a> {
    #[serde(rename = "apiVersion")]
    version: &'static str,
    kind: &'static str,
    spec: Spec<'a>,
}

#[derive(Serialize)]
struct Spec<'a> {
    token: &'a str,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    audiences: &'a [String],
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    status: Verdict,
}

/// What the API says of a token.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Verdict {
    /// Whether it is good, for one of the audiences asked for.
    #[serde(default)]
    pub authenticated: bool,
    /// Whose it is.
    #[serde(default)]
    pub user: User,
    /// For which of the audiences it is good.
    #[serde(default)]
    pub audiences: Vec<String>,
    /// Why it could not be decided.
    #[serde(default)]
    pub error: String,
}

/// See [`Verdict::user`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct User {
    /// Such as `system:serviceaccount:kube-system:konnectivity-agent`.
    #[serde(default)]
    pub username: String,
    /// Unique over time.
    #[serde(default)]
    pub uid: String,
    /// Groups.
    #[serde(default)]
    pub groups: Vec<String>,
    /// What else is known, such as the pod and the node that a token is bound to.
    #[serde(default)]
    pub extra: BTreeMap<String, Vec<String>>,
}

/// Asks the API about a token.
pub async fn token(
    client: &Client,
    token: &str,
    audiences: &[String],
) -> Result<Verdict, KubeError> {
    let ask = Ask {
        version: "authentication.k8s.io/v1",
        kind: "TokenReview",
        spec: Spec { token, audiences },
    };
    let answer: Answer = client.create(PATH, &ask).await?;
    Ok(answer.status)
}
