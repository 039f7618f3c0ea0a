//! The first lines of the log: which program this is, and what flags, files and defaults came to.
//!
//! Fields are named as the flags; what is not in use is left out. Nothing here is a secret: of files
//! only paths are said.

use std::fmt::Display;
use std::path::Path;

use towline_link::process::telemetry::listed;
use towline_link::process::values::{ByteSize, TimeSpan};
use towline_pki::Files;
use towline_proto::id::Role;
use tracing::field::{DisplayValue, display};
use tracing::info;

use crate::audit::open::Place;
use crate::config::Config;
use crate::doors::Speaks;

/// Says everything that was decided, once: who and where, then how much and how long.
pub fn log(config: &Config) {
    let Config {
        own,
        seen: _,
        compat,
        links,
        doors,
        prefixes,
        grants,
        kubelets,
        gateway,
        enrol,
        policy,
        signing,
        dials,
        audit,
        memory_budget,
        drain_timeout,
        process,
    } = config;
    let files = own.as_ref().map(|own| &own.files);
    let unix = doors.unix.as_ref();
    let tcp = doors.tcp.as_ref();
    info!(
        version = %env!("CARGO_PKG_VERSION"),
        identity = own.as_ref().map(|own| display(own.trust.identity())),
        compatibility = compat.as_ref().map(|_| display("konnectivity")),
        cert = path(files.map(|files| files.cert.as_path())),
        agent_ca = path(files.and_then(|files| anchors(files, Role::Agent))),
        client_ca = path(files.and_then(|files| anchors(files, Role::Client))),
        listen = %links.listen,
        carrier = %links.carrier,
        advertise = listed(&links.advertise).map(display),
        door_unix = path(unix.map(|door| door.path.as_path())),
        door_unix_mode = unix.map(|door| display(format!("{:04o}", door.mode))),
        door_unix_uid = unix.map(|door| display(&door.allowed)),
        door_tcp = tcp.map(|door| display(door.address)),
        door_allow = tcp.and_then(|door| listed(&door.allow)).map(display),
        door_signed = doors.signed.map(display),
        mode = speaks(doors.speaks).map(display),
        health_bind = %process.health,
        admin_socket = path(process.admin_socket.as_deref()),
        kubelet_verification = %kubelets.mode,
        kubelet_certificate_authority =
            path(kubelets.trust.as_ref().map(|(files, _)| files.authority.as_path())),
        kubelet_gateway = gateway.as_ref().map(|_| true),
        policy = path(policy.as_ref().map(|((path, _), _)| path.as_path())),
        grants = path(grants.as_ref().map(|(path, _)| path.as_path())),
        audit_log = audit.as_ref().map(|audit| display(place(&audit.place))),
        kubelet_serving_approver = signing.as_ref().map(|_| true),
        enrol_issuer_certificate = path(enrol.as_ref().and_then(|enrol| enrol.certificate())),
        service_cidr = listed(&prefixes.service).map(display),
        pod_cidr = listed(&prefixes.pod).map(display),
        node_cidr = listed(&prefixes.node).map(display),
        state_dir = path(links.state_dir.as_deref()),
        "starting"
    );
    info!(
        max_links = links.max_links,
        max_handshakes = links.quic.handshakes,
        max_door_connections = doors.max_connections,
        max_dials = dials.per_link,
        dial_timeout = %TimeSpan(dials.timeout),
        drain_timeout = %TimeSpan(*drain_timeout),
        memory_budget = %ByteSize(*memory_budget),
        udp_buffer = %ByteSize(u64::try_from(links.quic.udp_buffer).unwrap_or(u64::MAX)),
        quic_payload = links.quic.payload,
        quic_congestion = %links.quic.congestion,
        workers = process.workers,
        kubelet_port = prefixes.kubelet_port,
        log_level = %process.log_level,
        "bounds"
    );
}

fn path(path: Option<&Path>) -> Option<DisplayValue<impl Display + '_>> {
    path.map(|path| display(path.display()))
}

fn anchors(files: &Files, role: Role) -> Option<&Path> {
    let mut anchors = files.anchors.iter();
    let (_, path) = anchors.find(|(of, _)| *of == role)?;
    Some(path)
}

fn speaks(speaks: Speaks) -> Option<&'static str> {
    match (speaks.connect, speaks.grpc) {
        (true, false) => Some("http-connect"),
        (false, true) => Some("grpc"),
        _ => None,
    }
}

fn place(place: &Place) -> String {
    match place {
        Place::StandardOutput => "-".to_owned(),
        Place::File(path) => path.display().to_string(),
    }
}
