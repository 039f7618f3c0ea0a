//! What the admin socket tells about this agent: one JSON document, read by people and tools.

use std::time::SystemTime;

use serde::Serialize;
use towline_link::process::drain::DrainView;
use towline_proto::id::InstanceId;

use crate::enrol::Enrolling;
use crate::enrol::metrics::EnrolmentStatus;
use crate::konnectivity::servers::{LegacyServerStatus, LegacyServers};
use crate::links::{Links, ServerStatus};
use crate::reach::Reach;
use crate::serve::Serve;
use crate::trust::Trust;

/// The document.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// Identity in our certificate, where there is one.
    pub identity: Option<String>,
    /// Serial number of our certificate.
    pub serial: Option<String>,
    /// Where the certificate comes from, when the agent sees to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enrolment: Option<EnrolmentStatus>,
    /// This process.
    pub instance: String,
    /// What runs here.
    pub software: &'static str,
    /// `running`, `draining`, `closing` or `forced`.
    pub stage: &'static str,
    /// What is worst, when something is wrong.
    pub degraded: Option<String>,
    /// Each configured server with its links.
    pub servers: Vec<ServerStatus>,
    /// Streams to legacy servers, which are known by name alone.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub legacy_servers: Vec<LegacyServerStatus>,
    /// Dials of this process.
    pub dials: DialsStatus,
    /// UDP socket buffers, where there is a UDP socket.
    pub udp: Option<UdpStatus>,
    /// What the policy goes by.
    pub policy: PolicyStatus,
    /// Everything loaded that ends.
    pub expiries: Vec<ExpiryStatus>,
    /// Authorities that servers may come from; `towline-pki rotate activate` asks for them.
    pub trust: Vec<AnchorStatus>,
}

/// See [`Status::dials`].
#[derive(Clone, Debug, Serialize)]
pub struct DialsStatus {
    /// Open now.
    pub live: usize,
    /// Of those, how many have a target that takes no bytes.
    pub stalled: usize,
    /// Bytes to targets since the start, of dials that go on included.
    pub bytes_in: u64,
    /// Bytes from targets.
    pub bytes_out: u64,
    /// How many may be open.
    pub max: u32,
    /// Ended because the memory budget was used up.
    pub ended_for_memory: u64,
}

/// See [`Status::udp`].
#[derive(Clone, Debug, Serialize)]
pub struct UdpStatus {
    /// Asked for, each way.
    pub asked: usize,
    /// Granted for receiving.
    pub receive: usize,
    /// Granted for sending.
    pub send: usize,
    /// So little that `auto` prefers tls.
    pub low: bool,
}

/// See [`Status::policy`].
#[derive(Clone, Debug, Serialize)]
pub struct PolicyStatus {
    /// Where the kubelet is looked for.
    pub kubelet_addresses: Vec<String>,
    /// At which port.
    pub kubelet_port: u16,
    /// Only these are class `service`, when there are any.
    pub service_prefixes: Vec<String>,
    /// Only these are class `pod`, when there are any.
    pub pod_prefixes: Vec<String>,
}

/// See [`Status::expiries`].
#[derive(Clone, Debug, Serialize)]
pub struct ExpiryStatus {
    /// What it is.
    pub what: String,
    /// Where it came from.
    pub path: String,
    /// Until then; negative when it is over.
    pub seconds: i64,
}

/// See [`Status::trust`].
#[derive(Clone, Debug, Serialize)]
pub struct AnchorStatus {
    /// The role of those peers.
    pub role: &'static str,
    /// The file.
    pub path: String,
    /// Which it is.
    pub sha256: String,
}

/// Everything that the document is made of.
pub struct Sources {
    /// Links.
    pub links: Links,
    /// Dials and policy.
    pub serve: std::sync::Arc<Serve>,
    /// Files.
    pub trust: Option<std::sync::Arc<Trust>>,
    /// Who sees to the certificate.
    pub enrolling: Option<std::sync::Arc<Enrolling>>,
    /// Streams to legacy servers.
    pub legacy: Option<LegacyServers>,
    /// UDP socket.
    pub reach: std::sync::Arc<Reach>,
    /// Stage.
    pub stage: DrainView,
    /// This process.
    pub instance: InstanceId,
}

impl Sources {
    /// The document of this moment.
    pub fn status(&self) -> Status {
        let trust = self.trust.as_ref().map(|trust| trust.current());
        let trust = trust.as_deref();
        let policy = self.serve.policy();
        let rules = policy.rules();
        let live = self.serve.live();
        let now = SystemTime::now();
        fn texts<T: ToString>(items: &[T]) -> Vec<String> {
            items.iter().map(ToString::to_string).collect()
        }
        Status {
            identity: trust.map(|trust| trust.identity().to_string()),
            serial: trust.map(|trust| trust.material.credentials().leaf().serial.to_string()),
            enrolment: self.enrolling.as_ref().map(|enrolling| enrolling.status()),
            instance: self.instance.to_string(),
            software: crate::attempt::SOFTWARE,
            stage: self.stage.stage().as_str(),
            degraded: self.links.worst(),
            servers: self.links.status(),
            legacy_servers: self
                .legacy
                .as_ref()
                .map_or_else(Vec::new, LegacyServers::status),
            dials: DialsStatus {
                live: live.len(),
                stalled: live.stalled(),
                bytes_in: live.bytes().1,
                bytes_out: live.bytes().0,
                max: self.serve.max_dials(),
                ended_for_memory: live.ended_for_memory(),
            },
            udp: self.reach.buffers().map(|buffers| UdpStatus {
                asked: buffers.asked,
                receive: buffers.granted_recv,
                send: buffers.granted_send,
                low: buffers.low(),
            }),
            policy: PolicyStatus {
                kubelet_addresses: texts(&rules.kubelet_addresses),
                kubelet_port: rules.kubelet_port,
                service_prefixes: texts(&rules.service_prefixes),
                pod_prefixes: texts(&rules.pod_prefixes),
            },
            trust: trust
                .map_or_else(Vec::new, |trust| trust.material.trusted())
                .into_iter()
                .map(|(role, path, sha256)| AnchorStatus {
                    role: role.as_str(),
                    path: path.display().to_string(),
                    sha256: sha256.to_string(),
                })
                .collect(),
            expiries: trust
                .map_or_else(Vec::new, |trust| trust.material.expiries())
                .into_iter()
                .map(|expiry| ExpiryStatus {
                    what: expiry.what,
                    path: expiry.path.display().to_string(),
                    seconds: seconds_left(expiry.not_after, now),
                })
                .collect(),
        }
    }
}

fn seconds_left(end: SystemTime, now: SystemTime) -> i64 {
    let whole = |length: std::time::Duration| i64::try_from(length.as_secs()).unwrap_or(i64::MAX);
    match end.duration_since(now) {
        Ok(left) => whole(left),
        Err(over) => -whole(over.duration()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn what_is_over_has_negative_seconds_left() {
        let now = SystemTime::now();
        assert_eq!(seconds_left(now + Duration::from_secs(5), now), 5);
        assert_eq!(seconds_left(now - Duration::from_secs(5), now), -5);
    }
}
