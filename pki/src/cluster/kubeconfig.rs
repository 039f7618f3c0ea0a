//! Kubeconfigs: one cluster, one user, one context, everything inside the file.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::secret::Secret;
use crate::yaml;

/// What a kubeconfig says.
pub(crate) struct Conf {
    pub(crate) server: String,
    /// PEM.
    pub(crate) authority: Vec<u8>,
    /// PEM.
    pub(crate) certificate: Vec<u8>,
    /// PEM.
    pub(crate) key: Secret,
}

/// Why a file is no kubeconfig of ours.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConfError {
    #[error("not a kubeconfig: {0}")]
    Form(String),
    #[error("a kubeconfig without {0} in its current context: `apply` did not write it")]
    Missing(&'static str),
}

/// The text. Names come from checked types, so nothing in it needs quoting but the user's colons.
pub(crate) fn write(cluster: &str, user: &str, conf: &Conf) -> Secret {
    let mut text = Vec::with_capacity(8 * 1024);
    text.extend(b"apiVersion: v1\nkind: Config\nclusters:\n");
    text.extend(format!("- name: \"{cluster}\"\n  cluster:\n").bytes());
    text.extend(b"    certificate-authority-data: ");
    text.extend(STANDARD.encode(&conf.authority).bytes());
    text.extend(format!("\n    server: \"{}\"\ncontexts:\n", conf.server).bytes());
    text.extend(format!("- name: \"{user}@{cluster}\"\n  context:\n").bytes());
    text.extend(format!("    cluster: \"{cluster}\"\n    user: \"{user}\"\n").bytes());
    text.extend(format!("current-context: \"{user}@{cluster}\"\npreferences: {{}}\n").bytes());
    text.extend(format!("users:\n- name: \"{user}\"\n  user:\n").bytes());
    text.extend(b"    client-certificate-data: ");
    text.extend(STANDARD.encode(&conf.certificate).bytes());
    text.extend(b"\n    client-key-data: ");
    let encoded = Secret::new(STANDARD.encode(conf.key.expose()).into_bytes());
    text.extend(encoded.expose());
    text.push(b'\n');
    Secret::new(text)
}

/// What the current context of a file says.
pub(crate) fn read(text: &[u8]) -> Result<Conf, ConfError> {
    let whole: Value = yaml::read(text).map_err(|fault| ConfError::Form(fault.to_string()))?;
    let current = whole["current-context"]
        .as_str()
        .ok_or(ConfError::Missing("current-context"))?;
    let named = |list: &str, name: &str| {
        let list = whole[list].as_array().into_iter().flatten();
        list.into_iter().find(|one| one["name"] == name).cloned()
    };
    let context = named("contexts", current).ok_or(ConfError::Missing("that context"))?;
    let part = |kind: &str, list: &str, missing| {
        let name = context["context"][kind].as_str();
        name.and_then(|name| named(list, name))
            .map(|found| found[kind].clone())
            .ok_or(ConfError::Missing(missing))
    };
    let cluster = part("cluster", "clusters", "a cluster")?;
    let user = part("user", "users", "a user")?;
    let data = |of: &Value, key: &'static str| {
        let text = of[key].as_str().ok_or(ConfError::Missing(key))?;
        STANDARD
            .decode(text)
            .map_err(|_| ConfError::Form(format!("{key} is not base64")))
    };
    Ok(Conf {
        server: cluster["server"]
            .as_str()
            .ok_or(ConfError::Missing("server"))?
            .to_owned(),
        authority: data(&cluster, "certificate-authority-data")?,
        certificate: data(&user, "client-certificate-data")?,
        key: Secret::new(data(&user, "client-key-data")?),
    })
}
