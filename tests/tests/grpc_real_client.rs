//! kube-apiserver's own dialler and konnectivity-client, old and new, at our server's gRPC door.

use std::time::Duration;

use towline_link::carrier::CarrierKind;
use towline_proto::id::Role;
use towline_tests::cluster::{Cluster, Plan};
use towline_tests::konnectivity::front_end::TlsFiles;
use towline_tests::konnectivity::{Dialler, FrontEnd, Verb};
use towline_tests::scenario::{eventually, run};
use towline_tests::target::{Behaviour, End, refusing_address};

const POD: &str = "10.244.0.5:8080";
const OTHER_POD: &str = "10.244.0.6:8080";

fn tls_files(cluster: &Cluster) -> TlsFiles {
    let pair = cluster
        .authority
        .leaf(Role::Client, "kube-apiserver")
        .sign();
    TlsFiles {
        pair: pair.write(cluster.scratch(), "front-end").unwrap(),
        ca: cluster
            .scratch()
            .write("front-end.ca", cluster.authority.issuer(Role::Server).pem())
            .unwrap(),
    }
}

fn diallers(cluster: &Cluster) -> Vec<Dialler> {
    let server = cluster.server(0);
    let socket = || server.door_unix().expect("a socket").to_owned();
    let tcp = server.door_tcp().expect("a port");
    vec![
        Dialler::ApiserverGrpc(socket()),
        Dialler::NewSingle(socket()),
        Dialler::Reusable(socket()),
        Dialler::SingleTcp(tcp, tls_files(cluster)),
        Dialler::ReusableTcp(tcp, tls_files(cluster)),
        // The same sockets still take CONNECT.
        Dialler::ApiserverConnect(socket()),
        Dialler::ApiserverConnectTcp(tcp, tls_files(cluster)),
    ]
}

#[ignore = "needs Go"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_dialler_works_on_both_carriers() {
    run(
        "diallers",
        Box::pin(async {
            for carrier in [CarrierKind::Quic, CarrierKind::Tls] {
                let cluster = Plan::on(carrier).start().await;
                let _echo = cluster.target(POD, Behaviour::Echo).await;
                for dialler in diallers(&cluster) {
                    let front_end = FrontEnd::start(&dialler, cluster.scratch()).await;
                    let ask = Verb::ask(POD, "question").times(40).workers(8);
                    assert_eq!(front_end.fine(ask).await.good, 40, "{dialler:?}");
                    let many = front_end.fine(Verb::many(POD, 30)).await;
                    assert_eq!(many.good, 30, "{dialler:?}");
                    let both = front_end.fine(Verb::both(POD, 8 << 20)).await;
                    assert_eq!(both.received, 8 << 20, "{dialler:?}");
                }
            }
        }),
    )
    .await;
}

/// kube-apiserver's own CONNECT dialler gives its callers the connection itself, which can be half closed.
#[ignore = "needs Go"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_half_of_a_connection_outlives_the_other() {
    run(
        "half close",
        Box::pin(async {
            for carrier in [CarrierKind::Quic, CarrierKind::Tls] {
                let cluster = Plan::on(carrier).start().await;
                let _answers = cluster
                    .target(POD, Behaviour::AnswersAtEnd("all of it"))
                    .await;
                let leaves = cluster
                    .target(OTHER_POD, Behaviour::HalfCloses("bye"))
                    .await;
                let server = cluster.server(0);
                let socket = server.door_unix().expect("a socket").to_owned();
                let tcp = server.door_tcp().expect("a port");
                for dialler in [
                    Dialler::ApiserverConnect(socket),
                    Dialler::ApiserverConnectTcp(tcp, tls_files(&cluster)),
                ] {
                    let front_end = FrontEnd::start(&dialler, cluster.scratch()).await;
                    let half = Verb::half(POD, "question", "all of it").times(20);
                    let answer = front_end.fine(half).await;
                    assert_eq!((answer.good, answer.end.as_str()), (20, "eof"));
                    // The target ends first, and is still spoken to.
                    front_end.fine(Verb::open("held", OTHER_POD)).await;
                    let rest = front_end.fine(Verb::rest("held")).await;
                    assert_eq!((rest.text.as_str(), rest.end.as_str()), ("bye", "eof"));
                    front_end.fine(Verb::write("held", "and you")).await;
                    front_end.fine(Verb::close_write("held")).await;
                    let outcome = leaves.outcome().await;
                    assert_eq!(outcome.check.received, 7, "{dialler:?}: {outcome:?}");
                    assert_eq!(outcome.end, End::Closed, "{dialler:?}");
                }
            }
        }),
    )
    .await;
}

#[ignore = "needs Go"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_target_that_speaks_first_is_heard_a_thousand_times_out_of_a_thousand() {
    run(
        "speaks first",
        Box::pin(async {
            let cluster = Plan::on(CarrierKind::Tls).start().await;
            let _target = cluster.target(POD, Behaviour::SpeaksFirst("banner")).await;
            let socket = cluster.server(0).door_unix().unwrap().to_owned();
            for dialler in [
                Dialler::ApiserverGrpc(socket.clone()),
                Dialler::Reusable(socket),
            ] {
                let front_end = FrontEnd::start(&dialler, cluster.scratch()).await;
                let hear = Verb::hear(POD, "banner")
                    .times(1000)
                    .workers(8)
                    .limit(Duration::from_secs(60));
                let heard = front_end.fine(hear).await;
                assert_eq!((heard.good, heard.bad), (1000, 0), "{dialler:?}: {heard:?}");
            }
        }),
    )
    .await;
}

#[ignore = "needs Go"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_before_a_close_arrive_and_nothing_is_cut() {
    run(
        "close",
        Box::pin(async {
            let cluster = Plan::on(CarrierKind::Quic).start().await;
            let sink = cluster.target(POD, Behaviour::Sink).await;
            let _source = cluster
                .target(OTHER_POD, Behaviour::Source(100 << 20))
                .await;
            let socket = cluster.server(0).door_unix().unwrap().to_owned();
            let dialler = Dialler::ApiserverGrpc(socket);
            let front_end = FrontEnd::start(&dialler, cluster.scratch()).await;
            for _ in 0..5 {
                front_end.fine(Verb::up(POD, 8 << 20)).await;
                let outcome = sink.outcome().await;
                assert!(outcome.check.is_exactly(8 << 20), "{outcome:?}");
                assert_eq!(outcome.end, End::Closed);
            }
            let down = Verb::down(OTHER_POD).limit(Duration::from_secs(60));
            let down = front_end.fine(down).await;
            assert_eq!((down.received, down.wrong_at), (100 << 20, None));
        }),
    )
    .await;
}

#[ignore = "needs Go"]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refused_dials_say_what_callers_look_for() {
    run(
        "refused",
        Box::pin(async {
            let cluster = Plan::on(CarrierKind::Tls).start().await;
            let nobody = refusing_address().await.unwrap();
            cluster.wire.lead(POD.parse().unwrap(), nobody);
            cluster.wire.swallow(OTHER_POD.parse().unwrap());
            let socket = cluster.server(0).door_unix().unwrap().to_owned();
            for dialler in [
                Dialler::ApiserverGrpc(socket.clone()),
                Dialler::Reusable(socket),
            ] {
                let front_end = FrontEnd::start(&dialler, cluster.scratch()).await;
                for (target, words) in [
                    (POD, "connect: connection refused"),
                    ("10.0.0.99:10250", "No agent available"),
                    ("nobody.default.svc:80", "no such host"),
                    (OTHER_POD, "i/o timeout"),
                ] {
                    let error = front_end.refused(Verb::dial(target)).await;
                    assert!(error.contains(words), "{dialler:?} {target}: {error}");
                }
                let cut = Verb::dial(OTHER_POD).within(Duration::from_millis(200));
                let error = front_end.refused(cut).await;
                assert!(error.contains("dial timeout, context"), "{error}");
                eventually("the dial's end", || async {
                    let mut text = String::new();
                    cluster.server(0).counted().families().write(&mut text);
                    text.contains("_pending_backend_dials 0\n").then_some(())
                })
                .await;
            }
        }),
    )
    .await;
}
