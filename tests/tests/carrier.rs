//! Links find the carrier that works, move to the better one, and outlive what happens to the
//! path, with the dials on them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;
use towline_link::carrier::CarrierKind;
use towline_proto::limits;
use towline_tests::apiserver::Pipe;
use towline_tests::cluster::{Cluster, Plan};
use towline_tests::scenario::{self, NOISE, eventually, expect};
use towline_tests::scenarios;
use towline_tests::target::Behaviour;

const POD: &str = "10.244.0.5:8080";

async fn metrics(address: std::net::SocketAddr) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    stream.write_all(request).await.unwrap();
    let mut page = String::new();
    stream.read_to_string(&mut page).await.unwrap();
    page
}

async fn echoes(pipe: &mut Pipe) {
    let mut echo = [0; 4];
    pipe.write_all(b"ping").await.unwrap();
    expect("the echo", pipe.read_exact(&mut echo))
        .await
        .unwrap();
    assert_eq!(&echo, b"ping");
}

/// The carriers of the agent's links that take new dials.
fn ready_on(cluster: &Cluster) -> Vec<&'static str> {
    let servers = cluster.agent("n1").links().status();
    let links = servers.iter().flat_map(|server| &server.links);
    links
        .filter(|link| link.state == "ready")
        .map(|link| link.carrier)
        .collect()
}

async fn until_on(cluster: &Cluster, carrier: &'static str) {
    let what = format!("a link on {carrier}");
    eventually(&what, || async {
        (ready_on(cluster) == [carrier]).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_falls_back_to_tls_within_three_seconds_when_udp_is_blocked() {
    let mut cluster = Plan::on_auto().agents(0).path_without_udp().start().await;
    let begun = Instant::now();
    cluster.start_agent("n1").await;
    cluster.linked().await;
    assert!(
        begun.elapsed() < NOISE * Duration::from_secs(3),
        "{:?}",
        begun.elapsed()
    );
    assert_eq!(ready_on(&cluster), ["tls"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_takes_quic_where_it_works() {
    let cluster = Plan::on_auto().start().await;
    assert_eq!(ready_on(&cluster), ["quic"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn new_dials_move_to_quic_when_udp_opens_and_old_ones_stay_whole() {
    let cluster = Plan::on_auto()
        .path_without_udp()
        .agent_flags(&["--carrier-probe", "300ms"])
        .start()
        .await;
    let _echo = cluster.target(POD, Behaviour::Echo).await;
    let mut old = cluster.apiserver().pipe(POD).await;
    echoes(&mut old).await;
    cluster.path().set_udp(true);
    until_on(&cluster, "quic").await;
    echoes(&mut old).await;
    let mut new = cluster.apiserver().pipe(POD).await;
    echoes(&mut new).await;
    let before = cluster.path().udp_packets();
    echoes(&mut new).await;
    assert!(
        cluster.path().udp_packets() > before,
        "the new dial does not run on quic"
    );
    echoes(&mut old).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_falls_back_to_tls_when_udp_is_closed_under_it() {
    let cluster = Plan::on_auto().path().start().await;
    let _echo = cluster.target(POD, Behaviour::Echo).await;
    assert_eq!(ready_on(&cluster), ["quic"]);
    cluster.path().set_udp(false);
    until_on(&cluster, "tls").await;
    echoes(&mut cluster.apiserver().pipe(POD).await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_survive_a_change_of_the_agents_address_on_quic() {
    let cluster = Plan::on(CarrierKind::Quic).path().start().await;
    let _echo = cluster.target(POD, Behaviour::Echo).await;
    let mut pipe = cluster.apiserver().pipe(POD).await;
    echoes(&mut pipe).await;
    let address = || cluster.server(0).status().agents[0].links[0].address;
    let (before, link) = (
        address(),
        cluster.server(0).status().agents[0].links[0].id.clone(),
    );
    for _ in 0..3 {
        cluster.path().move_clients();
        echoes(&mut pipe).await;
    }
    eventually("the new address in the status", || async {
        (address() != before).then_some(())
    })
    .await;
    assert_eq!(
        cluster.server(0).status().agents[0].links[0].id,
        link,
        "it is another link"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_with_small_udp_buffers_links_on_tls_and_stays_there() {
    let flags = ["--udp-buffer", "256KiB", "--carrier-probe", "100ms"];
    let cluster = Plan::on_auto().agent_flags(&flags).start().await;
    assert_eq!(ready_on(&cluster), ["tls"]);
    let page = metrics(cluster.agent("n1").health_address()).await;
    for direction in ["receive", "send"] {
        let name = format!("towline_udp_buffer_bytes{{direction=\"{direction}\"}} ");
        let granted = page.lines().find_map(|line| line.strip_prefix(&name));
        let granted: usize = granted.and_then(|text| text.parse().ok()).expect("a gauge");
        assert!(granted < limits::UDP_BUFFER_LOW, "{granted}");
    }
    // Where quic is wanted, this would have been time for twenty probes.
    let probes = "towline_agent_carrier_probes_total{";
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(ready_on(&cluster), ["tls"]);
    }
    let page = metrics(cluster.agent("n1").health_address()).await;
    assert!(!page.contains(probes), "{page}");
}

/// A proxy that opens tunnels, and counts them.
async fn http_proxy() -> (std::net::SocketAddr, Arc<AtomicU64>, AbortOnDropHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let tunnels = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&tunnels);
    let task = tokio::spawn(async move {
        let mut running = JoinSet::new();
        while let Ok((mut client, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::Relaxed);
            running.spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(client.read_u8().await.ok()?);
                }
                let head = String::from_utf8(head).ok()?;
                let target = head.strip_prefix("CONNECT ")?.split(' ').next()?;
                let mut server = TcpStream::connect(target).await.ok()?;
                client
                    .write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")
                    .await
                    .ok()?;
                tokio::io::copy_bidirectional(&mut client, &mut server)
                    .await
                    .ok()
            });
        }
    });
    (address, tunnels, AbortOnDropHandle::new(task))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tls_link_goes_through_the_http_proxy() {
    let (proxy, tunnels, _task) = http_proxy().await;
    let proxy = format!("http://{proxy}");
    let plan = Plan::on(CarrierKind::Tls).agent_flags(&["--http-proxy", &proxy]);
    let cluster = plan.start().await;
    let _echo = cluster.target(POD, Behaviour::Echo).await;
    echoes(&mut cluster.apiserver().pipe(POD).await).await;
    assert_eq!(tunnels.load(Ordering::Relaxed), 1);
}

scenarios! {
    async fn a_restarted_server_is_linked_again_within_two_seconds(carrier) {
        let mut cluster = Plan::on(carrier).start().await;
        let _echo = cluster.target(POD, Behaviour::Echo).await;
        cluster.kill_server(0);
        cluster.start_server(0).await;
        let begun = Instant::now();
        let front = cluster.apiserver();
        let mut pipe = eventually("a dial", || async { front.dial(POD).await.ok()?.ok() }).await;
        assert!(begun.elapsed() < NOISE * Duration::from_secs(2), "{:?}", begun.elapsed());
        echoes(&mut pipe).await;
    }

    async fn a_short_cut_is_not_noticed_by_dials(carrier) {
        let cluster = Plan::on(carrier).path().start().await;
        let _echo = cluster.target(POD, Behaviour::Echo).await;
        let mut pipe = cluster.apiserver().pipe(POD).await;
        cluster.path().cut();
        tokio::time::sleep(Duration::from_secs(4)).await;
        cluster.path().heal();
        echoes(&mut pipe).await;
    }

    async fn a_lost_server_is_noticed_and_its_dials_end(carrier) {
        let cluster = Plan::on(carrier).path().start().await;
        let target = cluster.target(POD, Behaviour::Sink).await;
        let _pipe = cluster.apiserver().pipe(POD).await;
        expect("the connection", target.accepted()).await;
        let begun = Instant::now();
        cluster.path().cut();
        let outcome = expect("the end of the dial", target.outcome()).await;
        assert_eq!(outcome.end, towline_tests::target::End::Reset);
        assert!(begun.elapsed() > Duration::from_secs(5) && begun.elapsed() < NOISE * Duration::from_secs(14), "{:?}", begun.elapsed());
    }

    async fn a_cut_of_forty_seconds_heals_soon(carrier) {
        let cluster = Plan::on(carrier).path().start().await;
        let _echo = cluster.target(POD, Behaviour::Echo).await;
        echoes(&mut cluster.apiserver().pipe(POD).await).await;
        cluster.path().cut();
        tokio::time::sleep(Duration::from_secs(40)).await;
        assert_eq!(cluster.agent("n1").links().ready(), 0);
        cluster.path().heal();
        let healed = Instant::now();
        let front = cluster.apiserver();
        let mut pipe = eventually("a dial", || async { front.dial(POD).await.ok()?.ok() }).await;
        echoes(&mut pipe).await;
        // The five seconds are proved on a paused clock, in simulation/heal.rs; here a machine's
        // noise comes on top, and everything that is not simulated.
        assert!(healed.elapsed() < Duration::from_secs(10), "{:?}", healed.elapsed());
    }
}

/// The kit's own limit must leave room for the longest scenario.
#[test]
fn the_limit_of_a_scenario_is_longer_than_a_cut() {
    assert!(scenario::SCENARIO_LIMIT > Duration::from_secs(90));
}
