//! The compatibility profile, as far as it is configured beside the rest.

use std::net::SocketAddr;
use std::path::Path;

use towline_link::process::compat::{MetricsAt, Second};
use towline_proto::target::Target;

use super::ConfigError;
use crate::attempt::random;
use crate::konnectivity::args::KonnectivityArgs;
use crate::konnectivity::config::{LegacyConfig, Listeners};

/// The compatibility profile.
#[derive(Debug)]
pub struct Compatible {
    /// The legacy server, where there is one.
    pub legacy: Option<LegacyConfig>,
    /// The second port.
    pub second: Second,
    /// What is to be said once at the start.
    pub notes: Vec<String>,
}

/// The compatibility profile as a whole.
pub(super) fn compatible_profile(
    args: KonnectivityArgs,
    servers: &[Target],
    state: Option<&Path>,
    listeners: Listeners,
    health: SocketAddr,
    identified: bool,
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Compatible, ConfigError> {
    let mut notes = vec![
        "--compatibility=konnectivity: targets are not judged by class, and loopback of this node \
         can be reached"
            .to_owned(),
    ];
    let without = args.without_effect();
    if !without.is_empty() {
        notes.push(format!(
            "accepted and without effect here: {}",
            without.join(", ")
        ));
    }
    let wanted = servers.is_empty() || args.proxy_server_host.is_some();
    let legacy = match wanted {
        true => Some(LegacyConfig::new(args, state, env, random_id)?),
        false => None,
    };
    if let Some(legacy) = &legacy {
        if servers.contains(&legacy.server) {
            return Err(ConfigError::SameServer(legacy.server.clone()));
        }
        notes.extend(legacy.warnings());
        if identified && state.is_none() {
            notes.push(
                "without --state-dir a restart forgets which servers have spoken towline/1"
                    .to_owned(),
            );
        }
        if !identified {
            notes.push(
                "no identity (--cert, --key, --server-ca): only the legacy protocol is spoken"
                    .to_owned(),
            );
        }
    }
    let mut second = listeners.second;
    second.metrics = MetricsAt::Port(health.port());
    Ok(Compatible {
        legacy,
        second,
        notes,
    })
}

/// A random UUID, as the original makes one.
fn random_id() -> String {
    let bits = u128::from(random()) << 64 | u128::from(random());
    let bits = bits & !(0xf << 76) | 0x4 << 76;
    let bits = bits & !(0x3 << 62) | 0x2 << 62;
    let text = format!("{bits:032x}");
    let parts = [0..8, 8..12, 12..16, 16..20, 20..32];
    parts.map(|part| text[part].to_owned()).join("-")
}
