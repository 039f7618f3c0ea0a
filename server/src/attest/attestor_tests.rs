//! How long a verdict counts, on a clock that stands still until it is told otherwise.

use super::*;
use crate::attest::memory::Attestations;

/// An attestor without files, and a kubelet that nobody asked for.
fn attestor() -> Arc<Attestor> {
    let config = KubeletConfig {
        mode: Mode::Enforce,
        trust: None,
    };
    Attestor::new(config, 10250, Arc::default(), AttestMetrics::default())
}

fn verified(for_so_long: Duration) -> Verdict {
    Verdict {
        presented: None,
        result: Ok(SystemTime::now() + for_so_long),
    }
}

/// How long this verdict is fresh, found by looking each millisecond around the expected end.
async fn counts_for(verdict: Verdict, expected: Duration) {
    let attestor = attestor();
    let node = Node::new("n1".parse().unwrap());
    let kubelet = attestor.kubelet(&node, &"10.0.0.1".parse().unwrap());
    let stamp = attestor.stamp(&node);
    attestor.learn(&node, &kubelet, verdict, stamp, Instant::now());
    let fresh = || kubelet.fresh(stamp, Instant::now()).is_some();
    assert!(fresh());
    tokio::time::advance(expected - Duration::from_millis(100)).await;
    assert!(fresh(), "just before {expected:?}");
    tokio::time::advance(Duration::from_millis(100)).await;
    assert!(!fresh(), "at {expected:?}");
}

const A_DAY: Duration = Duration::from_secs(86_400);

#[tokio::test(start_paused = true)]
async fn a_good_verdict_counts_for_its_life_and_no_longer_than_the_certificate() {
    assert_eq!(limits::ATTESTATION_LIFE, Duration::from_secs(60));
    counts_for(verified(A_DAY), limits::ATTESTATION_LIFE).await;
    counts_for(verified(Duration::from_secs(10)), Duration::from_secs(10)).await;
}

#[tokio::test(start_paused = true)]
async fn a_bad_verdict_is_looked_at_again_soon() {
    let failed = |cause| counts_for(Verdict::failed(cause), limits::ATTESTATION_RETRY);
    failed(Cause::NoCertificate).await;
    failed(Cause::Timeout).await;
    failed(Cause::AgentRefuses {
        reason: Reason::AgentPolicy,
    })
    .await;
    let unanswered = Verdict::failed(Cause::HungUp);
    counts_for(unanswered, limits::ATTESTATION_RETRY_UNANSWERED).await;
}

#[tokio::test(start_paused = true)]
async fn silence_prolongs_nothing_that_was_proved_before() {
    let attestor = attestor();
    let node = Node::new("n1".parse().unwrap());
    let kubelet = attestor.kubelet(&node, &"10.0.0.1".parse().unwrap());
    let stamp = attestor.stamp(&node);
    let learn = |verdict| attestor.learn(&node, &kubelet, verdict, stamp, Instant::now());
    learn(verified(A_DAY));
    tokio::time::advance(Duration::from_secs(50)).await;
    assert!(learn(Verdict::failed(Cause::Timeout)).is_verified());
    tokio::time::advance(Duration::from_secs(10)).await;
    assert!(kubelet.fresh(stamp, Instant::now()).is_none());
    // What is said about the certificate, or by the agent's rules, counts at once.
    learn(verified(A_DAY));
    let refused = Cause::AgentRefuses {
        reason: Reason::AgentPolicy,
    };
    assert!(!learn(Verdict::failed(refused)).is_verified());
    // A new link of the agent, or other files, are another stamp.
    learn(verified(A_DAY));
    let attested: &Attestations = node.attested();
    attested.new_session();
    assert!(
        kubelet
            .fresh(attestor.stamp(&node), Instant::now())
            .is_none()
    );
}
