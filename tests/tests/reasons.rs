//! Every reason, made to happen on both carriers and read where an operator reads it: in the audit
//! trail for dials, in the metrics for links. A reason without a scenario fails the first test.

use std::net::SocketAddr;
use std::path::Path;

use bytes::Bytes;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::task::AbortOnDropHandle;
use towline_link::carrier::{CarrierKind, Stream};
use towline_link::driver::greet_agent;
use towline_proto::dial::ACCEPTED;
use towline_proto::id::Role;
use towline_proto::limits;
use towline_proto::reason::Reason;
use towline_tests::apiserver::Pipe;
use towline_tests::cluster::{Cluster, Plan, node_ip};
use towline_tests::rogue;
use towline_tests::scenario::{eventually, expect};
use towline_tests::scenarios;
use towline_tests::target::{Behaviour, refusing_address};

const POD: &str = "10.244.0.5:8080";
const KUBELET: &str = "10.0.0.1:10250";

/// Where a reason is shown when not by the scenario of its name in this file.
enum Elsewhere {
    /// By this test.
    Test(&'static str, &'static str),
    /// Nobody says it; the number is kept for peers of other versions.
    Unsaid,
}

/// No arm for all others: a new reason does not compile before somebody has thought of it.
const fn elsewhere(reason: Reason) -> Option<Elsewhere> {
    use Elsewhere::{Test, Unsaid};
    match reason {
        // The door refuses such a request before it is a dial, in words of its own; draining links
        // come last and are used; a link whose four billion streams are used up says it too.
        Reason::BadTarget | Reason::Draining | Reason::ServerBusy | Reason::Unknown(_) => {
            Some(Unsaid)
        }
        Reason::AuditUnavailable => Some(Test(
            "tests/audit_process.rs",
            "a_full_disk_refuses_new_dials_with_a_reason_until_there_is_room",
        )),
        Reason::PolicyChanged => Some(Test(
            "tests/policy.rs",
            "a_new_policy_ends_the_live_dials_that_it_forbids_and_no_others",
        )),
        Reason::RouteWithdrawn => Some(Test(
            "tests/policy.rs",
            "dials_to_a_prefix_that_grants_no_longer_give_are_ended",
        )),
        Reason::BadRequest => Some(Test(
            "tests/gateway_rules.rs",
            "every_request_is_one_record",
        )),
        Reason::FrontEndUnverified => Some(Test(
            "tests/gateway.rs",
            "who_is_no_front_end_says_nothing_to_a_kubelet",
        )),
        // It takes a process that is killed.
        Reason::LinkLost => Some(Test(
            "tests/audit_process.rs",
            "a_killed_server_leaves_a_whole_chain_and_goes_on_with_it",
        )),
        // It takes both carriers at once.
        Reason::Moved => Some(Test(
            "tests/carrier.rs",
            "new_dials_move_to_quic_when_udp_opens_and_old_ones_stay_whole",
        )),
        Reason::Revoked => Some(Test(
            "tests/revocation.rs",
            "a_revoked_certificate_ends_its_link_and_dials_and_no_other",
        )),
        Reason::RevocationUnknown => Some(Test(
            "tests/revocation.rs",
            "a_list_that_becomes_stale_ends_links_with_fail_closed",
        )),
        // A process without descriptors left would take the whole test with it.
        Reason::LocalResources => Some(Test(
            "../agent/src/reach.rs",
            "no_udp_is_a_fault_of_this_machine",
        )),
        Reason::Aborted
        | Reason::AgentBusy
        | Reason::AgentPolicy
        | Reason::BadCertificate
        | Reason::CertificateEnded
        | Reason::Denied
        | Reason::DialTimeout
        | Reason::Done
        | Reason::ExcessClaim
        | Reason::ForbiddenAddress
        | Reason::FrontEndGone
        | Reason::GreetingTimeout
        | Reason::KubeletHandshake
        | Reason::KubeletUnverified
        | Reason::MemoryBudget
        | Reason::NameNotFound
        | Reason::NoAgent
        | Reason::NoRoute
        | Reason::Overloaded
        | Reason::PeerSilent
        | Reason::Protocol
        | Reason::ReaderGone
        | Reason::ServerPolicy
        | Reason::Shutdown
        | Reason::Superseded
        | Reason::TargetRefused
        | Reason::TargetReset
        | Reason::TargetTimeout
        | Reason::TargetUnreachable
        | Reason::Unreachable
        | Reason::Version => None,
    }
}

#[test]
fn every_reason_has_a_test_on_both_carriers() {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    let holds = |file: &str, name: &str| {
        let text = std::fs::read_to_string(tests.join(file)).expect("a source");
        text.contains(&format!("fn {name}("))
    };
    let missing: Vec<_> = Reason::ALL
        .iter()
        .filter(|reason| match elsewhere(**reason) {
            Some(Elsewhere::Unsaid) => false,
            Some(Elsewhere::Test(file, name)) => !holds(file, name),
            None => !holds("tests/reasons.rs", &reason.as_str().replace('-', "_")),
        })
        .collect();
    assert!(missing.is_empty(), "no scenario shows {missing:?}");
}

/// The record of a dial that was refused for this reason.
async fn refused(cluster: &Cluster, target: &str, reason: Reason) -> Value {
    let answer = cluster.apiserver().refusal(target).await;
    assert!((400..600).contains(&answer.status), "{answer:?}");
    let record = cluster
        .audit(0)
        .record("a refusal", |record| {
            record["event"] == "refused" && record["target"] == target
        })
        .await;
    assert_eq!(record["reason"], reason.as_str(), "{record}");
    record
}

/// The record of the only dial that was opened to this target, which ended for this reason.
async fn ended(cluster: &Cluster, target: &str, reason: Reason) -> Value {
    let (_, end) = cluster.audit(0).dial(target).await;
    assert_eq!(end["reason"], reason.as_str(), "{end}");
    end
}

/// Waits until a metric of links at this address counts this reason.
async fn counted(address: SocketAddr, families: &[&str], reason: Reason) {
    let word = format!("reason=\"{}\"", reason.as_str());
    eventually(reason.as_str(), || async {
        let mut stream = tokio::net::TcpStream::connect(address).await.ok()?;
        let request = b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        stream.write_all(request).await.ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.ok()?;
        let counts = |line: &str| {
            families.iter().any(|family| line.starts_with(family)) && line.contains(&word)
        };
        text.lines().any(counts).then_some(())
    })
    .await;
}

const ENDED: &[&str] = &["towline_server_links_ended_total"];
const REFUSED: &[&str] = &[
    "towline_server_links_refused_total",
    "towline_server_links_ended_total",
];
const ATTEMPTS: &[&str] = &["towline_agent_attempts_failed_total"];

async fn at_server(cluster: &Cluster, families: &[&str], reason: Reason) {
    counted(cluster.server(0).health_address(), families, reason).await;
}

async fn echoes(pipe: &mut Pipe) {
    pipe.write_all(b"ping").await.unwrap();
    let mut back = [0; 4];
    expect("the echo", pipe.read_exact(&mut back))
        .await
        .unwrap();
}

/// An agent `n9` of the cluster that does with each dial what the scenario wants; probes are
/// answered.
async fn rogue_agent(
    cluster: &Cluster,
    carrier: CarrierKind,
    dial: impl Fn(Stream) + Send + 'static,
) -> AbortOnDropHandle<()> {
    let pair = cluster
        .authority
        .leaf(Role::Agent, "n9")
        .ips(&[node_ip(9)])
        .sign();
    let server = cluster.server(0).link_address();
    let link = rogue::connect(carrier, server, &cluster.authority, Some(&pair))
        .await
        .unwrap();
    let (link, _, run) = greet_agent(link, rogue::hello("n9")).await.unwrap();
    AbortOnDropHandle::new(tokio::spawn(async move {
        let _driver = AbortOnDropHandle::new(tokio::spawn(run));
        while let Ok(mut stream) = link.carrier().accept().await {
            let Ok(Some(request)) = stream.recv.recv(limits::READ_CHUNK).await else {
                continue;
            };
            let _ = stream.send.send(Bytes::from_static(&[ACCEPTED])).await;
            // Two bytes of length, then the kind: 1 is a dial, 2 a probe.
            if request.get(2) == Some(&1) {
                dial(stream);
            } else {
                stream.send.finish();
            }
        }
    }))
}

/// A cluster with a rogue `n9`, and a dial to it.
async fn through_rogue(
    carrier: CarrierKind,
    dial: impl Fn(Stream) + Send + 'static,
) -> (Cluster, AbortOnDropHandle<()>, Pipe) {
    let cluster = Plan::on(carrier).unverified_kubelets().start().await;
    let rogue = rogue_agent(&cluster, carrier, dial).await;
    let pipe = cluster.apiserver().pipe("10.0.0.9:10250").await;
    (cluster, rogue, pipe)
}

scenarios! {
    async fn done(carrier) {
        let cluster = Plan::on(carrier).start().await;
        let _echo = cluster.target(POD, Behaviour::Echo).await;
        let mut pipe = cluster.apiserver().pipe(POD).await;
        echoes(&mut pipe).await;
        pipe.shutdown().await.unwrap();
        let _ = expect("the end", pipe.read(&mut [0])).await;
        ended(&cluster, POD, Reason::Done).await;
    }

    async fn no_agent(carrier) {
        let cluster = Plan::on(carrier).start().await;
        refused(&cluster, "10.0.0.9:10250", Reason::NoAgent).await;
    }

    async fn no_route(carrier) {
        let cluster = Plan::on(carrier).agents(0).start_unlinked().await;
        // No agent has ever linked, so nobody may serve it.
        refused(&cluster, POD, Reason::NoRoute).await;
    }

    async fn server_policy(carrier) {
        let cluster = Plan::on(carrier).start().await;
        let record = refused(&cluster, "10.0.0.1:22", Reason::ServerPolicy).await;
        assert!(record["rule"].is_string() || record["class"] == "node", "{record}");
    }

    async fn agent_policy(carrier) {
        let cluster = Plan::on(carrier).agent_flags(&["--allow-class", "kubelet"]).start().await;
        refused(&cluster, POD, Reason::AgentPolicy).await;
    }

    async fn forbidden_address(carrier) {
        let cluster = Plan::on(carrier).start().await;
        refused(&cluster, "169.254.169.254:80", Reason::ForbiddenAddress).await;
        // A name that resolves to one is refused by the agent, which tells the address.
        cluster.wire.name("evil.ns.svc", &[&["169.254.169.254".parse().unwrap()]]);
        let record = refused(&cluster, "evil.ns.svc:80", Reason::ForbiddenAddress).await;
        assert_eq!(record["address"], "169.254.169.254");
    }

    async fn dial_timeout(carrier) {
        let cluster = Plan::on(carrier).path().server_flags(&["--dial-timeout", "300ms"]).start().await;
        // The agent would say that the target does not answer: it must not be heard.
        cluster.path().cut();
        refused(&cluster, POD, Reason::DialTimeout).await;
    }

    async fn target_refused(carrier) {
        let cluster = Plan::on(carrier).start().await;
        cluster.wire.lead(POD.parse().unwrap(), refusing_address().await.unwrap());
        refused(&cluster, POD, Reason::TargetRefused).await;
    }

    async fn target_unreachable(carrier) {
        let cluster = Plan::on(carrier).start().await;
        refused(&cluster, POD, Reason::TargetUnreachable).await;
    }

    async fn target_timeout(carrier) {
        let cluster = Plan::on(carrier).agent_flags(&["--connect-timeout", "200ms"]).start().await;
        cluster.wire.swallow(POD.parse().unwrap());
        refused(&cluster, POD, Reason::TargetTimeout).await;
    }

    async fn name_not_found(carrier) {
        let cluster = Plan::on(carrier).start().await;
        refused(&cluster, "nowhere.ns.svc:443", Reason::NameNotFound).await;
    }

    async fn target_reset(carrier) {
        let cluster = Plan::on(carrier).start().await;
        let _target = cluster.target(POD, Behaviour::ResetsAfter(1)).await;
        let mut pipe = cluster.apiserver().pipe(POD).await;
        pipe.write_all(b"x").await.unwrap();
        ended(&cluster, POD, Reason::TargetReset).await;
    }

    async fn agent_busy(carrier) {
        let cluster = Plan::on(carrier).server_flags(&["--max-dials", "1"]).start().await;
        let _echo = cluster.target(POD, Behaviour::Echo).await;
        let _pipe = cluster.apiserver().pipe(POD).await;
        refused(&cluster, POD, Reason::AgentBusy).await;
    }

    async fn memory_budget(carrier) {
        let cluster = Plan::on(carrier).server_flags(&["--memory-budget", "8MiB"]).start().await;
        let _source = cluster.target(POD, Behaviour::Source(u64::MAX)).await;
        let mut stalled = Vec::new();
        for _ in 0..3 {
            stalled.push(cluster.apiserver_tcp().pipe(POD).await);
        }
        let end = cluster.audit(0).record("the end of one", |record| record["event"] == "end").await;
        assert_eq!(end["reason"], "memory-budget", "{end}");
    }

    async fn aborted(carrier) {
        let (held, mut kept) = tokio::sync::mpsc::unbounded_channel();
        let (cluster, _rogue, _pipe) = through_rogue(carrier, move |stream| {
            let _ = held.send(stream);
        }).await;
        // Dropped without an end, as by a task that panicked.
        drop(expect("the dial", kept.recv()).await);
        ended(&cluster, "10.0.0.9:10250", Reason::Aborted).await;
    }

    async fn reader_gone(carrier) {
        let (held, mut kept) = tokio::sync::mpsc::unbounded_channel();
        let (cluster, _rogue, mut pipe) = through_rogue(carrier, move |mut stream| {
            stream.recv.stop(Reason::ReaderGone);
            stream.send.finish();
            let _ = held.send(stream);
        }).await;
        let _kept = expect("the dial", kept.recv()).await;
        let _ = pipe.write_all(b"nobody reads this").await;
        let _ = pipe.shutdown().await;
        ended(&cluster, "10.0.0.9:10250", Reason::ReaderGone).await;
    }

    async fn protocol(carrier) {
        let cluster = Plan::on(carrier).unverified_kubelets().start().await;
        let pair = cluster.authority.leaf(Role::Agent, "n9").ips(&[node_ip(9)]).sign();
        let server = cluster.server(0).link_address();
        let link = rogue::connect(carrier, server, &cluster.authority, Some(&pair)).await.unwrap();
        let (link, _, run) = greet_agent(link, rogue::hello("n9")).await.unwrap();
        let _driver = AbortOnDropHandle::new(tokio::spawn(run));
        let _liar = AbortOnDropHandle::new(tokio::spawn(async move {
            while let Ok(mut stream) = link.carrier().accept().await {
                let _ = stream.send.send(Bytes::from_static(&[0x7f])).await;
                stream.send.finish();
            }
        }));
        refused(&cluster, "10.0.0.9:10250", Reason::Protocol).await;
    }

    async fn front_end_gone(carrier) {
        let cluster = Plan::on(carrier).start().await;
        cluster.wire.swallow(POD.parse().unwrap());
        let mut waiting = cluster.apiserver().connect().await.unwrap();
        waiting.write_all(format!("CONNECT {POD} HTTP/1.1\r\nHost: {POD}\r\n\r\n").as_bytes()).await.unwrap();
        eventually("the dial on its way", || async { (!cluster.wire.tried().is_empty()).then_some(()) }).await;
        drop(waiting);
        let record = cluster.audit(0).record("the refusal", |record| record["event"] == "refused").await;
        assert_eq!(record["reason"], "front-end-gone", "{record}");
    }

    async fn shutdown(carrier) {
        let mut cluster = Plan::on(carrier).start().await;
        let _echo = cluster.target(POD, Behaviour::Echo).await;
        let mut pipe = cluster.apiserver().pipe(POD).await;
        echoes(&mut pipe).await;
        let server = cluster.take_server(0);
        server.stop_now();
        let _ = expect("the end", server.wait()).await;
        ended(&cluster, POD, Reason::Shutdown).await;
    }

    async fn denied(carrier) {
        let cluster = Plan::on(carrier).start().await;
        let _echo = cluster.target(POD, Behaviour::Echo).await;
        let mut pipe = cluster.apiserver().pipe(POD).await;
        echoes(&mut pipe).await;
        cluster.deny(&cluster.authority.identity(Role::Agent, "n1"));
        assert_eq!(cluster.reload().await, Vec::<String>::new());
        at_server(&cluster, ENDED, Reason::Denied).await;
        let (_, end) = cluster.audit(0).dial(POD).await;
        assert_ne!(end["reason"], "done", "{end}");
    }

    async fn certificate_ended(carrier) {
        let mut cluster = Plan::on(carrier).agents(0).start().await;
        let leaf = cluster.authority.leaf(Role::Agent, "n1").ips(&[node_ip(1)]);
        let pair = leaf.ends_in(std::time::Duration::from_secs(4)).sign();
        cluster.start_agent_with("n1", &pair).await;
        cluster.linked().await;
        at_server(&cluster, ENDED, Reason::CertificateEnded).await;
    }

    async fn superseded(carrier) {
        let cluster = Plan::on(carrier).start().await;
        let _newer = cluster.second_agent("n1", cluster.files("n1")).await;
        at_server(&cluster, ENDED, Reason::Superseded).await;
    }

    async fn version(carrier) {
        let cluster = Plan::on(carrier).start().await;
        let pair = cluster.authority.leaf(Role::Agent, "n9").ips(&[node_ip(9)]).sign();
        let mut hello = rogue::hello("n9");
        hello.versions = (60_000, 60_001);
        let server = cluster.server(0).link_address();
        let entering = rogue::enter(carrier, server, &cluster.authority, Some(&pair), hello);
        let why = expect("the verdict", entering).await.unwrap_err();
        assert!(why.contains(Reason::Version.as_str()), "{why}");
    }

    async fn peer_silent(carrier) {
        let cluster = Plan::on(carrier).path().start().await;
        let _echo = cluster.target(POD, Behaviour::Echo).await;
        let mut pipe = cluster.apiserver().pipe(POD).await;
        echoes(&mut pipe).await;
        cluster.path().cut();
        at_server(&cluster, ENDED, Reason::PeerSilent).await;
    }

    async fn greeting_timeout(carrier) {
        let cluster = Plan::on(carrier).start().await;
        let pair = cluster.authority.leaf(Role::Agent, "n9").ips(&[node_ip(9)]).sign();
        let server = cluster.server(0).link_address();
        let silent = rogue::connect(carrier, server, &cluster.authority, Some(&pair)).await.unwrap();
        assert_eq!(expect("the end of the link", silent.closed()).await, Reason::GreetingTimeout);
    }

    async fn excess_claim(carrier) {
        let cluster = Plan::on(carrier).start().await;
        let pair = cluster.authority.leaf(Role::Agent, "n9").ips(&[node_ip(9)]).sign();
        let mut hello = rogue::hello("n9");
        hello.addresses = vec![node_ip(1)];
        let server = cluster.server(0).link_address();
        let entering = rogue::enter(carrier, server, &cluster.authority, Some(&pair), hello);
        expect("the verdict", entering).await.map(drop).unwrap_err();
        at_server(&cluster, REFUSED, Reason::ExcessClaim).await;
    }

    async fn overloaded(carrier) {
        let mut cluster = Plan::on(carrier).server_flags(&["--max-links", "1"]).start().await;
        cluster.start_agent("n2").await;
        at_server(&cluster, REFUSED, Reason::Overloaded).await;
        counted(cluster.agent("n2").health_address(), ATTEMPTS, Reason::Overloaded).await;
    }

    async fn bad_certificate(carrier) {
        let mut cluster = Plan::on(carrier).start().await;
        let pair = cluster.stranger.leaf(Role::Agent, "n2").ips(&[node_ip(2)]).sign();
        cluster.start_agent_with("n2", &pair).await;
        counted(cluster.agent("n2").health_address(), ATTEMPTS, Reason::BadCertificate).await;
    }

    async fn unreachable(carrier) {
        let mut cluster = Plan::on(carrier).start().await;
        cluster.kill_server(0);
        counted(cluster.agent("n1").health_address(), ATTEMPTS, Reason::Unreachable).await;
    }

    async fn kubelet_unverified(carrier) {
        let cluster = Plan::on(carrier).start().await;
        let pair = cluster.stranger.kubelet_leaf("n1", &[node_ip(1)]).sign();
        let _impostor = cluster.kubelet_with(1, &pair).await;
        let answer = eventually("the verdict", || async {
            let refused = cluster.apiserver().refusal(KUBELET).await;
            refused.phrase.contains("verification says").then_some(refused)
        }).await;
        assert_eq!(answer.status, 502, "{answer:?}");
        let record = cluster.audit(0).record("the refusal", |record| record["reason"] == "kubelet-unverified").await;
        assert_eq!(record["kubelet"]["verdict"], "wrong-ca", "{record}");
        assert_eq!(record["kubelet"]["key"].as_str().map(str::len), Some(64), "the key that was shown: {record}");
        assert_eq!(record["node"], "n1");
    }

    async fn kubelet_handshake(carrier) {
        let cluster = Plan::on(carrier).start().await;
        let _no_kubelet = cluster.target(KUBELET, Behaviour::HalfCloses("")).await;
        let record = refused(&cluster, KUBELET, Reason::KubeletHandshake).await;
        assert!(record["kubelet"]["verdict"].is_string() && record["kubelet"]["key"].is_null(), "{record}");
    }
}
