//! A fleet on its way: verified agents and Konnectivity's own behind one server, step by step as the guide
//! `server/deploy/konnectivity/README.md` has them, and back.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;
use towline_proto::id::Role;
use towline_tests::konnectivity::agent::{AgentFiles, AgentPlan};
use towline_tests::konnectivity::pair::Makers;
use towline_tests::konnectivity::{Maker, Mode, Pairing, ProxyAgent, Verb};
use towline_tests::scenario::{eventually, run};
use towline_tests::target::{Behaviour, Target};

/// The node `n1`, whose kubelet listens here and nobody else.
const NODE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));

/// Something that echoes at the node's own address.
async fn kubelet() -> (SocketAddr, AbortOnDropHandle<()>) {
    let listener = TcpListener::bind((NODE, 0)).await.expect("127.0.0.2");
    let address = listener.local_addr().expect("an address");
    let task = tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut buffer = [0; 4096];
                while let Ok(n) = stream.read(&mut buffer).await {
                    if n == 0 || stream.write_all(&buffer[..n]).await.is_err() {
                        break;
                    }
                }
            });
        }
    });
    (address, AbortOnDropHandle::new(task))
}

struct Fleet {
    pairing: Pairing,
    own_server: Vec<String>,
    own_agent: Vec<String>,
}

impl Fleet {
    /// A server, one agent of Konnectivity's, and what ours will be told.
    async fn start(makers: Makers, carrier: &str, mode: Mode, kubelet: u16) -> Self {
        let pairing = Pairing::start(makers, mode).await;
        let (authority, scratch) = (&pairing.authority, &pairing.scratch);
        let server = authority.leaf(Role::Server, "s1").sign();
        let server = server.write(scratch, "s1").expect("files");
        let agent = authority.leaf(Role::Agent, "n1").ips(&[NODE]).sign();
        let agent = agent.write(scratch, "n1").expect("files");
        let ca = |name: &str, role| {
            let pem = authority.issuer(role).pem();
            scratch
                .write(name, pem)
                .expect("a file")
                .display()
                .to_string()
        };
        let kubelet = format!("--kubelet-port={kubelet}");
        let own_server = vec![
            format!("--cert={}", server.cert.display()),
            format!("--key={}", server.key.display()),
            format!("--agent-ca={}", ca("verified-agents.ca", Role::Agent)),
            format!("--state-dir={}", scratch.join("server-state").display()),
            kubelet.clone(),
        ];
        let own_agent = vec![
            format!("--cert={}", agent.cert.display()),
            format!("--key={}", agent.key.display()),
            format!("--server-ca={}", ca("verified-servers.ca", Role::Server)),
            format!("--state-dir={}", scratch.join("agent-state").display()),
            format!("--carrier={carrier}"),
            kubelet,
        ];
        Self {
            pairing,
            own_server,
            own_agent,
        }
    }

    /// Starts our agent of node `n1` with these flags more.
    async fn agent(&self, flags: &[String]) -> ProxyAgent {
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let at = self.pairing.server.agents;
        self.pairing
            .agent_of(Maker::Towline, "n1", at, &flags)
            .await
    }

    async fn linked(&self, count: f64) {
        let server = &self.pairing.server;
        eventually("so many verified agents", || async {
            let linked = server
                .metrics()
                .await
                .sum("towline_server_agents_linked", &[]);
            (linked.unwrap_or(0.0) == count).then_some(())
        })
        .await;
    }
}

async fn the_story(carrier: &str, mode: Mode) {
    let (kubelet, _kubelet) = kubelet().await;
    let node = format!("n1:{}", kubelet.port());
    let echo = Target::start(Behaviour::Echo).await.expect("a target");
    let elsewhere = echo.address().to_string();
    // Step 1: our server in place of theirs.
    let mut fleet = Fleet::start(Makers::OUR_SERVER, carrier, mode, kubelet.port()).await;
    let ask = |target: &str| Verb::ask(target, "question").times(10).workers(2);
    fleet.pairing.front_end.fine(ask(&elsewhere)).await;

    // Step 2 for one node: our agent, as legacy as the other.
    let mut agent = fleet.agent(&fleet.own_agent[4..]).await;
    fleet.linked(0.0).await;

    // Step 3: an identity for the server. Both agents come back as they were.
    let flags = fleet.own_server.clone();
    fleet
        .pairing
        .replace_server_with(Maker::Towline, &flags)
        .await;
    let server = &fleet.pairing.server;
    eventually("the agents' return", || async {
        server.ready().await.then_some(())
    })
    .await;
    fleet.pairing.front_end.fine(ask(&elsewhere)).await;

    // Step 4: an identity for the agent. It is verified from now on and owns its node.
    agent.end().await;
    agent = fleet.agent(&fleet.own_agent).await;
    fleet.linked(1.0).await;
    fleet.pairing.front_end.fine(ask(&node)).await;
    fleet.pairing.front_end.fine(ask(&elsewhere)).await;

    // Somebody who only says that it is that node gets nothing of it.
    let liar = AgentFiles::write(&fleet.pairing.authority, &fleet.pairing.scratch, "liar");
    let says = format!("--agent-identifiers=ipv4={NODE}&host=n1");
    let plan = AgentPlan::new(Maker::Konnectivity, "liar", fleet.pairing.server.agents);
    let mut liar = plan
        .flags(&[&says])
        .start(&liar, &fleet.pairing.scratch)
        .await;
    fleet.pairing.front_end.fine(ask(&node)).await;
    agent.end().await;
    fleet.linked(0.0).await;
    let refused = fleet.pairing.front_end.run(Verb::dial(&node)).await;
    assert!(
        refused.error.is_some(),
        "a legacy agent was given a verified node's target"
    );
    liar.end().await;

    // And back: the agent as it was in step 2, which both ends have to be told to allow.
    let mut back = fleet.own_agent[3..4].to_vec();
    back.push("--allow-downgrade".to_owned());
    let _agent = fleet.agent(&back).await;
    fleet.linked(0.0).await;
    let name = "konnectivity_network_proxy_server_ready_backends";
    let server = &fleet.pairing.server;
    eventually("two legacy agents", || async {
        (server.metrics().await.sum(name, &[]) == Some(2.0)).then_some(())
    })
    .await;
    fleet.pairing.front_end.fine(ask(&elsewhere)).await;
}

/// The other order: agents get their identity while the server is still Konnectivity's. Each finds out by
/// itself what it has met, and does not go back unasked.
async fn identities_first(carrier: &str, mode: Mode) {
    let (kubelet, _kubelet) = kubelet().await;
    let node = format!("n1:{}", kubelet.port());
    let echo = Target::start(Behaviour::Echo).await.expect("a target");
    let elsewhere = echo.address().to_string();
    let mut fleet = Fleet::start(Makers::THEIRS, carrier, mode, kubelet.port()).await;
    let ask = |target: &str| Verb::ask(target, "question").times(10).workers(2);

    // The real server, and nobody but our agent, which could be verified and is not.
    fleet.pairing.agent.end().await;
    let mut agent = fleet.agent(&fleet.own_agent).await;
    fleet.pairing.front_end.fine(ask(&elsewhere)).await;
    assert_eq!(streams(&agent).await, 1.0);

    // Our server in its place: the same agent, without a restart, is verified.
    let flags = fleet.own_server.clone();
    fleet
        .pairing
        .replace_server_with(Maker::Towline, &flags)
        .await;
    fleet.linked(1.0).await;
    fleet.pairing.front_end.fine(ask(&node)).await;
    fleet.pairing.front_end.fine(ask(&elsewhere)).await;
    assert_eq!(streams(&agent).await, 0.0);

    // The real server again: it is tried, and gets no legacy stream, also not after a restart.
    fleet.pairing.replace_server(Maker::Konnectivity).await;
    for restart in [false, true] {
        if restart {
            agent.end().await;
            let flags: Vec<&str> = fleet.own_agent.iter().map(String::as_str).collect();
            let plan = AgentPlan::new(Maker::Towline, "n1", fleet.pairing.server.agents);
            let plan = plan.flags(&flags);
            agent = plan
                .start_alone(&fleet.pairing.agent_files, &fleet.pairing.scratch)
                .await;
        }
        // One more: a server that speaks nothing of ours is asked again after 7 to 15 seconds only.
        let before = failures(&agent).await;
        eventually("an attempt that fails", || async {
            (failures(&agent).await > before).then_some(())
        })
        .await;
        assert!(!fleet.pairing.server.ready().await);
        assert_eq!(streams(&agent).await, 0.0);
        fleet
            .pairing
            .front_end
            .refused(Verb::dial(&elsewhere))
            .await;
    }

    // Unless the operator says so.
    agent.end().await;
    let mut allowed = fleet.own_agent.clone();
    allowed.push("--allow-downgrade".to_owned());
    let agent = fleet.agent(&allowed).await;
    fleet.pairing.front_end.fine(ask(&elsewhere)).await;
    assert_eq!(streams(&agent).await, 1.0);
}

/// Legacy streams of an agent of ours.
async fn streams(agent: &ProxyAgent) -> f64 {
    let name = "towline_agent_legacy_streams";
    agent.metrics().await.sum(name, &[]).unwrap_or(0.0)
}

/// Its attempts that gave nothing.
async fn failures(agent: &ProxyAgent) -> f64 {
    let name = "towline_agent_attempts_failed_total";
    agent.metrics().await.sum(name, &[]).unwrap_or(0.0)
}

/// On each carrier both protocols of the front ends' door, one on a Unix socket and one over TCP.
macro_rules! stories {
    ($($name:ident: $story:ident, $carrier:literal, $mode:ident;)+) => { $(
        #[ignore = "needs Go"]
        #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            let story = Box::pin($story($carrier, Mode::$mode));
            run(stringify!($name), story).await;
        }
    )+ };
}

stories! {
    a_fleet_becomes_verified_step_by_step_on_quic_behind_grpc: the_story, "quic", GrpcUnix;
    a_fleet_becomes_verified_step_by_step_on_quic_behind_connect: the_story, "quic", ConnectTcp;
    a_fleet_becomes_verified_step_by_step_on_tls_behind_grpc: the_story, "tls", GrpcTcp;
    a_fleet_becomes_verified_step_by_step_on_tls_behind_connect: the_story, "tls", ConnectUnix;
    agents_with_identities_serve_the_real_server_first_on_quic: identities_first, "quic", ConnectUnix;
    agents_with_identities_serve_the_real_server_first_on_tls: identities_first, "tls", GrpcTcp;
}
