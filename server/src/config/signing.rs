//! The approver of signing requests, and where it finds the Kubernetes API.

use std::time::SystemTime;

use towline_proto::target::Target;

use super::ConfigError;
use crate::compat::KonnectivityArgs;
use crate::csr::{SigningArgs, SigningConfig};

/// Whoever asks the Kubernetes API is told by the same flag where it is.
pub(super) fn signing(
    args: SigningArgs,
    flags: &KonnectivityArgs,
    advertised: &[Target],
    enrols: bool,
    env: &dyn Fn(&str) -> Option<String>,
    now: SystemTime,
) -> Result<Option<SigningConfig>, ConfigError> {
    let file = flags.kubeconfig.as_deref();
    let file = file.filter(|path| !path.as_os_str().is_empty());
    let asks = args.kubelet_serving_approver || enrols;
    if file.is_some() && !asks && flags.compatibility.is_none() {
        return Err(ConfigError::OnlyCompatible("--kubeconfig"));
    }
    Ok(args.config(file, env, advertised, now)?)
}
