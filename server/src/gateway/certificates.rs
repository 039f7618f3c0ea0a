//! TLS configurations towards front ends, one for each dialled host: a certificate is minted when
//! it is first needed, kept for half its life, and forgotten when the files change.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use rustls::ServerConfig;
use towline_pki::gateway::{GatewayMaterial, ServingError, ServingNames};
use towline_pki::{TlsError, tls};
use towline_proto::limits;

use super::metrics::GatewayMetrics;

/// Why there is no configuration for a host.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConfigError {
    #[error(transparent)]
    Serving(#[from] ServingError),
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// What was made from one set of files.
pub(super) struct Certificates {
    pub(super) material: Arc<GatewayMaterial>,
    kept: Mutex<HashMap<ServingNames, Kept>>,
}

struct Kept {
    config: Arc<ServerConfig>,
    until: SystemTime,
}

impl Certificates {
    pub(super) fn new(material: Arc<GatewayMaterial>) -> Self {
        Self {
            material,
            kept: Mutex::default(),
        }
    }

    pub(super) fn config(
        &self,
        names: &ServingNames,
        now: SystemTime,
        metrics: &GatewayMetrics,
    ) -> Result<Arc<ServerConfig>, ConfigError> {
        if let Some(kept) = self.lock().get(names)
            && now < kept.until
        {
            return Ok(Arc::clone(&kept.config));
        }
        // Outside the lock: two may mint at once, and the later one stays.
        let serving = self.material.serving.serving(names, now)?;
        metrics.minted();
        let config = tls::gateway_server(&serving, Arc::clone(&self.material.front_ends))?;
        let left = serving.not_after.duration_since(now).unwrap_or_default();
        let kept = Kept {
            config: Arc::clone(&config),
            until: now.checked_add(left / 2).unwrap_or(now),
        };
        let mut all = self.lock();
        if all.len() >= limits::GATEWAY_CERTIFICATES {
            all.clear();
        }
        all.insert(names.clone(), kept);
        Ok(config)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<ServingNames, Kept>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
