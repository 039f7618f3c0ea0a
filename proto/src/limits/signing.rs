//! Bounds of what is done about signing requests of the Kubernetes API.

use std::time::Duration;

const fn days(count: u64) -> Duration {
    Duration::from_secs(count * 86_400)
}

/// DNS names and addresses of one kubelet's serving certificate. Overflow: refused. A node with
/// all its interfaces and both families has fewer.
pub const SERVING_NAMES: usize = 64;
/// Life of a kubelet's serving certificate that we sign, unless its request says otherwise.
/// Kubelets renew by themselves when 70 to 90 of 100 parts are over.
pub const SERVING_LIFE: Duration = days(90);
/// The shortest that is signed or approved: the API server's own bound.
pub const SERVING_LIFE_LEAST: Duration = Duration::from_secs(600);
/// The longest that is signed or approved: what the controller manager signs by default, and a
/// day of a leap year.
pub const SERVING_LIFE_MOST: Duration = days(366);
/// Signing requests that are kept in mind because they are not decided. Overflow: further ones
/// are looked at when others are decided or gone, at the latest at the next list.
pub const CSR_PENDING: usize = 8_192;
/// Of those, made by one user, so that a node that was broken into leaves room for others.
/// Overflow: further ones are not looked at until there is a new list.
pub const CSR_PENDING_EACH: usize = 64;
/// Lines of the log about one cause of refusals, a minute. Overflow: counted, and recorded in the
/// trail all the same.
pub const CSR_LOG_LINES: u32 = 60;
/// Signing requests on which work goes on at once. Overflow: they wait their turn.
pub const CSR_WORKERS: usize = 8;
/// The request in a signing request object, bytes of PEM. Overflow: it is no request.
pub const CSR_REQUEST_BYTES: usize = 32 * 1024;
/// Objects on one page of a list of the Kubernetes API: pages stay below `KUBE_BODY_BYTES` also
/// when each object has 16 KiB. A page above it is asked for again in halves.
pub const KUBE_PAGE: usize = 250;
/// Pages of one list. Overflow: an error, and what was known stays known.
pub const KUBE_PAGES: usize = 4_096;
/// Nodes that are known. Overflow: further ones are not, their requests wait, and it is said once a
/// minute, in `/readyz?verbose` and by `towline_server_nodes_left_out`, which counts as many again.
pub const KUBE_NODES: usize = 20_000;
/// Addresses of one Node that count. Overflow: the rest does not.
pub const KUBE_NODE_ADDRESSES: usize = 64;
/// After this time an undecided request is looked at again although nothing is known to have
/// changed: what others say of it, or a clock, may have.
pub const CSR_AGAIN: Duration = Duration::from_secs(60);
/// Pause before a call about a request is tried again, first and longest.
pub const CSR_RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// Requests whose refusal was written to the log and the trail and is not written again.
/// Overflow: the oldest are forgotten, and said once more.
pub const CSR_TOLD: usize = 4_096;
