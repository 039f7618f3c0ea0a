//! The agent's own keeper (attempts, back-off, the second connection beside a silent link) on the
//! simulated network: how soon after a cut there is a link again that carries dials.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use clap::Parser;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use towline_agent::args::Args;
use towline_agent::attempt::{self, Keeping};
use towline_agent::config::{Config, OwnIdentity};
use towline_agent::connect::Network as Targets;
use towline_agent::endpoints::ServerAddresses;
use towline_agent::links::Links;
use towline_agent::metrics::Metrics;
use towline_agent::policy::Permit;
use towline_agent::reach::{Reach, Tcp};
use towline_agent::reconnect::Keeper;
use towline_agent::serve::Serve;
use towline_agent::trust::Trust as Files;
use towline_link::carrier::{Carrier, CarrierKind};
use towline_link::connect::CarrierMemory;
use towline_link::dial;
use towline_link::error::ConnectError;
use towline_link::process::drain::Drain;
use towline_link::quic::{EndpointKeys, Options, QuicEndpoint};
use towline_link::tls::{self, HttpProxy, TlsOptions};
use towline_pki::PeerVerifier;
use towline_proto::dial::DialRequest;
use towline_proto::id::Role;
use towline_proto::limits;
use towline_proto::target::{HostName, Target};
use towline_tests::scratch::Scratch;

use crate::chance::Chance;
use crate::network::{Network, Weather};
use crate::process::{Current, SERVER, ServerProcess, Trust};

/// Where the agent is.
const AGENT: ([u8; 4], u16) = ([10, 0, 0, 9], 40_000);
/// Cuts of each carrier, each at another moment of heartbeats and back-off.
const CUTS: u64 = 40;

/// TCP as a kernel makes it of the network: a SYN that is lost is sent again after 1, 2, 4 s.
struct SimulatedTcp(Network);

#[async_trait]
impl Tcp for SimulatedTcp {
    async fn connect(
        &self,
        server: &Target,
        config: Arc<rustls::ClientConfig>,
        verifier: Arc<PeerVerifier>,
        _: Option<&HttpProxy>,
    ) -> Result<Arc<dyn Carrier>, ConnectError> {
        let unreachable = |source| ConnectError::Unreachable {
            server: server.to_string(),
            source,
        };
        let connecting = async {
            let mut again = Duration::from_secs(1);
            while self.0.weather().cut {
                sleep(again).await;
                again *= 2;
            }
            self.0.connect(SERVER.into()).await
        };
        let pipe = timeout(limits::HANDSHAKE_TIMEOUT, connecting).await;
        let pipe = pipe.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let pipe = pipe.map_err(unreachable)?;
        let options = TlsOptions::agent();
        tls::connect_on(pipe, SERVER.into(), server, config, verifier, &options).await
    }
}

/// A node without targets: probes go no further than the agent.
struct NoTargets;

#[async_trait]
impl Targets for NoTargets {
    async fn resolve(&self, _: &HostName) -> io::Result<Vec<IpAddr>> {
        Err(io::ErrorKind::NotFound.into())
    }

    async fn connect(&self, _: Permit) -> io::Result<TcpStream> {
        Err(io::ErrorKind::ConnectionRefused.into())
    }

    fn is_local(&self, _: IpAddr) -> bool {
        false
    }
}

/// What the agent has from its flags and files.
fn config(kind: CarrierKind, trust: &Trust) -> Config {
    let scratch = Scratch::new().expect("a folder");
    let servers = trust.authority.issuer(Role::Server).pem();
    let servers = scratch.write("servers.ca", servers).expect("a file");
    let pair = trust.authority.leaf(Role::Agent, "n1").sign();
    let pair = pair.write(&scratch, "n1").expect("files");
    let words = [
        "towline-agent".to_owned(),
        format!("--server={}", SocketAddr::from(SERVER)),
        format!("--cert={}", pair.cert.display()),
        format!("--key={}", pair.key.display()),
        format!("--server-ca={}", servers.display()),
        format!("--carrier={kind}"),
        "--http-proxy=off".to_owned(),
    ];
    let args = Args::try_parse_from(words).expect("good flags");
    Config::from_args(args).expect("good files")
}

fn keeping(kind: CarrierKind, network: &Network, config: Config, seed: [u8; 32]) -> Arc<Keeping> {
    let Config {
        identity,
        reach,
        policy,
        serve,
        drain_timeout,
        ..
    } = config;
    let OwnIdentity { files, trust, .. } = identity.expect("an identity");
    let quic = (kind == CarrierKind::Quic).then(|| {
        let options = Options {
            seed: Some(seed),
            ..Options::default()
        };
        let socket = network.socket(AGENT.into());
        Arc::new(QuicEndpoint::with_socket(socket, options).expect("an endpoint"))
    });
    let policy = policy.policy(Some(&trust), None, None);
    let metrics = Metrics::default();
    let reach = Arc::new(Reach {
        mode: reach.carrier,
        quic,
        tcp: Arc::new(SimulatedTcp(network.clone())),
        proxy: None,
        memory: CarrierMemory::default(),
        addresses: ServerAddresses::new(&reach.servers),
    });
    let serving = (Arc::clone(&reach), metrics.clone());
    let serve = Serve::new(serve, Arc::new(NoTargets), policy, serving.0, serving.1);
    Arc::new(Keeping {
        reach,
        trust: Arc::new(Files::new(files, trust)),
        serve: Arc::new(serve),
        metrics,
        instance: attempt::instance(),
        drain_timeout,
        carrier_probe: limits::CARRIER_PROBE,
    })
}

/// Until the server has a link on which a dial comes back.
async fn carries(current: &Current) {
    let mut seen = current.subscribe();
    loop {
        let link = seen.wait_for(Option::is_some).await;
        let link = link.expect("the sender lives").clone().expect("checked");
        let deadline = Instant::now() + limits::PROBE_TIMEOUT;
        let probed = dial::open(&**link.carrier(), &DialRequest::Probe, deadline).await;
        if probed.is_ok() {
            return;
        }
        let _ = seen.changed().await;
    }
}

/// How long it takes after a cut of this length, at a moment that the seed decides.
fn healed(kind: CarrierKind, seed: u64, cut: Duration, trust: &Arc<Trust>) -> Duration {
    let runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = { runtime }.enable_time().start_paused(true).build();
    let runtime = runtime.expect("a runtime");
    let took = runtime.block_on(Box::pin(async {
        let mut chance = Chance::new(seed);
        let network = Network::new(chance.split());
        let keys = EndpointKeys::ephemeral().expect("keys");
        let current: Arc<Current> = Arc::new(watch::Sender::new(None));
        let server = chance.bytes();
        let _server = ServerProcess::start(kind, &network, trust, &keys, server, &current);
        let keeping = keeping(kind, &network, config(kind, trust), chance.bytes());
        let links = Links::new(&[SocketAddr::from(SERVER)
            .to_string()
            .parse()
            .expect("a target")]);
        let drain = Drain::new();
        let keeper = Keeper::new(keeping, links.slot(0), drain.watch());
        let keeper = tokio::spawn(keeper.run());
        carries(&current).await;
        sleep(chance.time(4 * limits::HEARTBEAT)).await;
        let fair = network.weather();
        network.set(Weather { cut: true, ..fair });
        sleep(cut).await;
        assert_eq!(links.ready(), 0, "seed {seed}: the cut was not noticed");
        network.set(fair);
        let begun = Instant::now();
        carries(&current).await;
        let took = begun.elapsed();
        keeper.abort();
        took
    }));
    runtime.shutdown_background();
    took
}

fn heals_within_five_seconds(kind: CarrierKind) {
    let trust = Arc::new(Trust::new());
    let cut = Duration::from_secs(40);
    for seed in 0..CUTS {
        let took = healed(kind, seed, cut, &trust);
        assert!(
            took <= Duration::from_secs(5),
            "seed {seed} on {kind}: {took:?} from the end of the cut to a link"
        );
    }
}

#[test]
fn a_cut_of_forty_seconds_heals_within_five_on_quic() {
    heals_within_five_seconds(CarrierKind::Quic);
}

#[test]
fn a_cut_of_forty_seconds_heals_within_five_on_tls() {
    heals_within_five_seconds(CarrierKind::Tls);
}
