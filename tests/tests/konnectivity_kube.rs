//! What servers and agents ask of a Kubernetes API, with Konnectivity's own programs on one side: tokens
//! that are reviewed, and servers that are counted by their Leases.

use std::net::SocketAddr;
use std::path::PathBuf;

use towline_tests::authority::Authority;
use towline_tests::konnectivity::agent::{AgentFiles, AgentPlan};
use towline_tests::konnectivity::balancer::Balancer;
use towline_tests::konnectivity::metrics;
use towline_tests::konnectivity::pair::{Makers, dialler};
use towline_tests::konnectivity::server::{ServerFiles, ServerPlan};
use towline_tests::konnectivity::{FrontEnd, Maker, Mode, ProxyServer, Verb};
use towline_tests::kube::{FakeKube, Token};
use towline_tests::scenario::{eventually, run};
use towline_tests::scratch::Scratch;
use towline_tests::target::{Behaviour, Target};

const AUDIENCE: &str = "system:konnectivity-server";
/// What is asked of the API does not depend on the front ends' door: each of ours meets both protocols of it,
/// one on a Unix socket and one over TCP.
const PAIRINGS: [(Makers, Mode); 7] = [
    (Makers::THEIRS, Mode::GrpcUnix),
    (Makers::OUR_SERVER, Mode::GrpcUnix),
    (Makers::OUR_SERVER, Mode::ConnectTcp),
    (Makers::OUR_AGENT, Mode::GrpcTcp),
    (Makers::OUR_AGENT, Mode::ConnectUnix),
    (Makers::OURS, Mode::GrpcUnix),
    (Makers::OURS, Mode::ConnectTcp),
];

struct World {
    scratch: Scratch,
    authority: Authority,
    kube: FakeKube,
    kubeconfig: String,
    echo: Target,
    mode: Mode,
}

impl World {
    async fn new(mode: Mode) -> Self {
        let scratch = Scratch::new().expect("a temporary directory");
        let authority = Authority::new("kit.example");
        let kube = FakeKube::start(&authority).await.expect("an API");
        kube.caller("ours", "system:serviceaccount:kube-system:konnectivity");
        let (kubeconfig, _) = kube.kubeconfig(&scratch, "ours").expect("a kubeconfig");
        let echo = Target::start(Behaviour::Echo).await.expect("a target");
        Self {
            kubeconfig: format!("--kubeconfig={}", kubeconfig.display()),
            scratch,
            authority,
            kube,
            echo,
            mode,
        }
    }

    async fn server(&self, maker: Maker, name: &str, flags: &[&str]) -> ProxyServer {
        let files = ServerFiles::write(&self.authority, &self.scratch, name);
        let plan = ServerPlan::new(maker, name, self.mode).flags(&[&self.kubeconfig]);
        plan.flags(flags).start(&files, &self.scratch).await
    }

    /// What an agent has instead of a certificate.
    fn token(&self, name: &str, audience: &str) -> AgentFiles {
        let username = "system:serviceaccount:kube-system:konnectivity-agent".to_owned();
        let token = Token {
            username,
            audiences: vec![audience.to_owned()],
            expired: false,
            extra: Default::default(),
        };
        self.kube.token(name, token);
        let servers = self.authority.issuer(towline_proto::id::Role::Server).pem();
        let write = |suffix: &str, text: &str| -> PathBuf {
            let name = format!("{name}.{suffix}");
            self.scratch.write(&name, text).expect("a file")
        };
        AgentFiles {
            pair: None,
            servers_ca: write("ca", servers),
            token: Some(write("token", name)),
        }
    }

    async fn ask(&self, server: &ProxyServer, what: &str) {
        let dialler = dialler(self.mode, server, &self.authority, &self.scratch);
        let front_end = FrontEnd::start(&dialler, &self.scratch).await;
        let target = self.echo.address().to_string();
        front_end.fine(Verb::ask(&target, what).times(5)).await;
    }

    fn reviews(&self) -> usize {
        let requests = self.kube.requests();
        let review = |request: &&String| request.ends_with("/tokenreviews");
        requests.iter().filter(review).count()
    }
}

async fn is_ready(health: SocketAddr) -> bool {
    matches!(metrics::get(health, "/readyz").await, Some((200, _)))
}

#[ignore = "needs Go"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_comes_in_by_its_token_and_by_no_other() {
    run("tokens", async {
        for (makers, mode) in PAIRINGS {
            let world = World::new(mode).await;
            let audience = format!("--authentication-audience={AUDIENCE}");
            let flags = [
                audience.as_str(),
                "--agent-namespace=kube-system",
                "--agent-service-account=konnectivity-agent",
            ];
            let server = world.server(makers.server, "ps", &flags).await;
            let elsewhere = world.token("elsewhere", "https://kubernetes.default");
            let plan = AgentPlan::new(makers.agent, "thief", server.agents);
            let thief = plan.start_alone(&elsewhere, &world.scratch).await;
            eventually("an agent that was refused and came again", || async {
                (world.reviews() >= 2).then_some(())
            })
            .await;
            assert!(!server.ready().await, "{makers:?} {mode:?}");
            assert!(!is_ready(thief.health).await, "{makers:?} {mode:?}");

            let good = world.token("good", AUDIENCE);
            let plan = AgentPlan::new(makers.agent, "pa", server.agents);
            let agent = plan.start(&good, &world.scratch).await;
            assert!(server.ready().await, "{makers:?} {mode:?}");
            world.ask(&server, "by token").await;
            assert!(is_ready(agent.health).await && !is_ready(thief.health).await);
        }
    })
    .await;
}

#[ignore = "needs Go"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_finds_as_many_servers_as_there_are_leases() {
    run("leases", async {
        for (makers, mode) in PAIRINGS {
            let world = World::new(mode).await;
            let lead = ["--enable-lease-controller"];
            let first = world.server(makers.server, "ps1", &lead).await;
            let second = world.server(makers.server, "ps2", &lead).await;
            eventually("two Leases", || async {
                (world.kube.leases("kube-system").len() == 2).then_some(())
            })
            .await;
            let files = AgentFiles::write(&world.authority, &world.scratch, "pa");
            let balancer = Balancer::start(&[first.agents, second.agents]).await;
            let balancer = balancer.expect("a balancer");
            let plan = AgentPlan::new(makers.agent, "pa", balancer.address());
            let count = [world.kubeconfig.as_str(), "--count-server-leases"];
            let agent = plan.flags(&count).start(&files, &world.scratch).await;
            for server in [&first, &second] {
                eventually("the agent at both servers", || async {
                    server.ready().await.then_some(())
                })
                .await;
                world.ask(server, "by lease").await;
            }
            let lists = "konnectivity_network_proxy_agent_lease_lists_total";
            let good = [("http_response_code", "200"), ("reason", "")];
            let lists = agent.metrics().await.sum(lists, &good);
            assert!(lists >= Some(1.0), "{makers:?} {mode:?}: {lists:?}");
            second.terminate();
            let held = eventually("one Lease", || async {
                let leases = world.kube.leases("kube-system");
                (leases.len() == 1).then_some(leases)
            })
            .await;
            let name = &held[0]["metadata"]["name"];
            assert_eq!(name, "konnectivity-proxy-server-ps1", "{makers:?} {mode:?}");
            world.ask(&first, "still there").await;
        }
    })
    .await;
}
