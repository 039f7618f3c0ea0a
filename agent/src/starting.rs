//! The first lines of the log: which program this is, and what flags, files and defaults came to.
//!
//! Fields are named as the flags; what is not in use is left out. Nothing here is a secret: of files
//! only paths are said, of a proxy never its credentials.

use std::fmt::Display;
use std::path::Path;

use towline_link::process::telemetry::listed;
use towline_link::process::values::{ByteSize, TimeSpan};
use towline_proto::id::Role;
use tracing::field::{DisplayValue, display};
use tracing::info;

use crate::config::Config;

/// Says everything that was decided, once: who and where, then how much and how long.
pub fn log(config: &Config) {
    let Config {
        identity,
        enrolling,
        compatible,
        reach,
        policy,
        policy_file,
        serve,
        drain_timeout,
        process,
    } = config;
    let enrolling = enrolling.as_ref();
    let files = match (identity, enrolling) {
        (Some(identity), _) => Some(&identity.files),
        (None, enrolling) => enrolling.map(|enrolling| &enrolling.config().files),
    };
    let roots = files.and_then(|files| files.anchors.iter().find(|(of, _)| *of == Role::Server));
    let legacy = compatible.as_ref().and_then(|one| one.legacy.as_ref());
    info!(
        version = %env!("CARGO_PKG_VERSION"),
        identity = %config.who(),
        compatibility = compatible.as_ref().map(|_| display("konnectivity")),
        server = listed(&reach.servers).map(display),
        proxy_server = legacy.map(|legacy| display(&legacy.server)),
        cert = path(files.map(|files| files.cert.as_path())),
        server_ca = path(roots.map(|(_, path)| path.as_path())),
        enrol = enrolling.map(|enrolling| display(enrolling.status().source)),
        carrier = %reach.carrier,
        http_proxy = reach.proxy.as_ref().map(display),
        kubelet_port = policy.kubelet_port,
        kubelet_address = listed(&policy.kubelet_addresses).map(display),
        service_cidr = listed(&policy.service_prefixes).map(display),
        pod_cidr = listed(&policy.pod_prefixes).map(display),
        allow_class = policy_file
            .is_none()
            .then(|| listed(&policy.allowed))
            .flatten()
            .map(display),
        policy = path(policy_file.as_ref().map(|((path, _), _)| path.as_path())),
        health_bind = %process.health,
        admin_socket = path(process.admin_socket.as_deref()),
        "starting"
    );
    info!(
        max_dials = serve.max_dials,
        connect_timeout = %TimeSpan(serve.connect_timeout),
        drain_timeout = %TimeSpan(*drain_timeout),
        memory_budget = %ByteSize(serve.memory_budget),
        udp_buffer = %ByteSize(u64::try_from(reach.quic.udp_buffer).unwrap_or(u64::MAX)),
        quic_payload = reach.quic.payload,
        quic_congestion = %reach.quic.congestion,
        workers = process.workers,
        log_level = %process.log_level,
        "bounds"
    );
}

fn path(path: Option<&Path>) -> Option<DisplayValue<impl Display + '_>> {
    path.map(|path| display(path.display()))
}
