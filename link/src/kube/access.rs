//! Where the Kubernetes API is, whom we trust to be it, and what we show it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use towline_pki::web::server_name;
use towline_pki::{Secret, WebPair, WebRoots, store, tls};
use towline_proto::limits;

use super::error::KubeError;
use super::kubeconfig;

/// What a pod has in its environment.
const HOST: &str = "KUBERNETES_SERVICE_HOST";
const PORT: &str = "KUBERNETES_SERVICE_PORT";
/// What a pod has on its disk.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Text that lies in a file, which may be replaced, or was given.
#[derive(Debug)]
pub(super) enum Source {
    File(PathBuf),
    Given { what: String, text: Secret },
}

impl Source {
    fn name(&self) -> String {
        match self {
            Source::File(path) => path.display().to_string(),
            Source::Given { what, .. } => what.clone(),
        }
    }

    fn read(&self) -> Result<Secret, KubeError> {
        match self {
            Source::File(path) => Ok(Secret::new(store::read(path)?)),
            Source::Given { text, .. } => Ok(Secret::new(text.expose().to_vec())),
        }
    }
}

/// Where the API is and who we are.
#[derive(Debug)]
pub struct Access {
    pub(super) host: String,
    pub(super) port: u16,
    /// What stands before every path.
    pub(super) prefix: String,
    pub(super) name: ServerName<'static>,
    pub(super) roots: Source,
    pub(super) pair: Option<(Source, Source)>,
    pub(super) token: Option<Source>,
}

impl Access {
    /// From a kubeconfig, or, without one, as the pod that we run in. `env` is asked for the two
    /// names that Kubernetes gives a pod.
    pub fn load(
        kubeconfig: Option<&Path>,
        env: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Self, KubeError> {
        let access = match kubeconfig {
            Some(path) => kubeconfig::load(path)?,
            None => Self::in_cluster(env)?,
        };
        access.client_config()?;
        access.bearer()?;
        Ok(access)
    }

    fn in_cluster(env: &dyn Fn(&str) -> Option<String>) -> Result<Self, KubeError> {
        let value = |variable| {
            env(variable)
                .filter(|value| !value.is_empty())
                .ok_or(KubeError::NotInCluster { variable })
        };
        let (host, port) = (value(HOST)?, value(PORT)?);
        let folder = Path::new(SERVICE_ACCOUNT);
        Ok(Self {
            port: port.parse().map_err(|_| KubeError::Value {
                what: PORT.to_owned(),
                value: port.chars().take(limits::FLAG_VALUE_BYTES).collect(),
                wanted: "port",
            })?,
            name: server_name(&host)?,
            host,
            prefix: String::new(),
            roots: Source::File(folder.join("ca.crt")),
            pair: None,
            token: Some(Source::File(folder.join("token"))),
        })
    }

    /// `host:port`, for messages and for the Host header.
    pub fn server(&self) -> String {
        let bare = self.host.trim_start_matches('[').trim_end_matches(']');
        match bare.contains(':') {
            true => format!("[{bare}]:{}", self.port),
            false => format!("{bare}:{}", self.port),
        }
    }

    /// Reads roots and pair as they are now.
    pub(super) fn client_config(&self) -> Result<Arc<ClientConfig>, KubeError> {
        let roots = WebRoots::from_pem(self.roots.read()?.expose(), &self.roots.name())?;
        let pair = match &self.pair {
            Some((cert, key)) => Some(WebPair::from_pem(
                cert.read()?.expose(),
                key.read()?.expose(),
                (cert.name(), key.name()),
            )?),
            None => None,
        };
        Ok(tls::web_client(&roots, pair.as_ref(), &[tls::ALPN_HTTP11])?)
    }

    /// `Bearer` and the token as it is now.
    pub(super) fn bearer(&self) -> Result<Option<Secret>, KubeError> {
        let Some(source) = &self.token else {
            return Ok(None);
        };
        let text = source.read()?;
        let token = text.expose().trim_ascii();
        let usable = |byte: &u8| (0x21..0x7f).contains(byte);
        if token.is_empty() || token.len() > limits::KUBE_TOKEN_BYTES || !token.iter().all(usable) {
            return Err(KubeError::Token {
                path: source.name(),
            });
        }
        Ok(Some(Secret::new([b"Bearer ", token].concat())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outside_of_a_pod_a_kubeconfig_is_asked_for() {
        let error = Access::load(None, &|_| None).unwrap_err().to_string();
        assert!(
            error.contains(HOST) && error.contains("--kubeconfig"),
            "{error}"
        );
    }

    #[test]
    fn a_pods_environment_gives_the_address() {
        let env = |name: &str| Some(if name == HOST { "fd00::1" } else { "443" }.to_owned());
        let access = Access::in_cluster(&env).unwrap();
        assert_eq!(access.server(), "[fd00::1]:443");
        let env = |name: &str| Some(if name == HOST { "10.0.0.1" } else { "x" }.to_owned());
        assert!(matches!(
            Access::in_cluster(&env),
            Err(KubeError::Value { .. })
        ));
    }

    #[test]
    fn a_token_is_trimmed_and_must_be_one() {
        let with = |text: &[u8]| Access {
            host: "h".to_owned(),
            port: 1,
            prefix: String::new(),
            name: server_name("h").unwrap(),
            roots: Source::File("/none".into()),
            pair: None,
            token: Some(Source::Given {
                what: "t".to_owned(),
                text: Secret::new(text.to_vec()),
            }),
        };
        let bearer = with(b" abc\n").bearer().unwrap().unwrap();
        assert_eq!(bearer.expose(), b"Bearer abc");
        for bad in [&b"\n"[..], b"a\nb", b"a\x00"] {
            assert!(matches!(with(bad).bearer(), Err(KubeError::Token { .. })));
        }
    }
}
