//! The approver of signing requests, and where it finds the Kubernetes API.

use std::path::Path;
use std::time::SystemTime;

use towline_proto::target::Target;

use super::ConfigError;
use crate::compat::KonnectivityArgs;
use crate::csr::{SigningArgs, SigningConfig};

/// Without an empty one, which says as much as none.
pub(super) fn named(file: Option<&Path>) -> Option<&Path> {
    file.filter(|path| !path.as_os_str().is_empty())
}

/// Whoever asks the Kubernetes API is told by the same flag where it is.
pub(super) fn signing(
    args: SigningArgs,
    flags: &KonnectivityArgs,
    advertised: &[Target],
    enrols: bool,
    env: &dyn Fn(&str) -> Option<String>,
    now: SystemTime,
) -> Result<Option<SigningConfig>, ConfigError> {
    let file = named(flags.kubeconfig.as_deref());
    let asks = args.kubelet_serving_approver || enrols;
    if file.is_some() && !asks && flags.compatibility.is_none() {
        return Err(ConfigError::OnlyCompatible("--kubeconfig"));
    }
    Ok(args.config(file, env, advertised, now)?)
}
