//! What `kubectl` users see: pages, logs that follow, commands over WebSocket, through the door,
//! a link, and the kubelet's own TLS.

use towline_tests::cluster::{Cluster, Plan, node_ip};
use towline_tests::kubectl::Kubelet;
use towline_tests::scenario::expect;
use towline_tests::scenarios;
use towline_tests::websocket::{self, Message};

async fn connect(cluster: &Cluster, number: u8) -> Kubelet {
    let target = format!("{}:10250", node_ip(number));
    let pipe = cluster.apiserver().pipe(&target).await;
    let connecting = Kubelet::connect(pipe, node_ip(number), cluster.authority.kubelets().der());
    expect("the kubelet's handshake", connecting).await.unwrap()
}

scenarios! {
    async fn a_page_of_each_kubelet_is_read(carrier) {
        let cluster = Plan::on(carrier).agents(2).start().await;
        let _kubelets = [cluster.kubelet(1).await, cluster.kubelet(2).await];
        for number in [1, 2] {
            let mut kubelet = connect(&cluster, number).await;
            for _ in 0..2 {
                let (status, body) = expect("the page", kubelet.get("/healthz")).await.unwrap();
                assert_eq!((status.as_str(), body.as_str()), ("HTTP/1.1 200 OK", "ok"));
            }
        }
    }

    async fn logs_follow(carrier) {
        let cluster = Plan::on(carrier).start().await;
        let kubelet = cluster.kubelet(1).await;
        kubelet.log("one");
        let mut logs = connect(&cluster, 1).await.follow().await.unwrap();
        assert_eq!(expect("a line", logs.line()).await.unwrap().as_deref(), Some("one"));
        for number in 0..50 {
            kubelet.log(format!("line {number}"));
            assert_eq!(expect("a line", logs.line()).await.unwrap(), Some(format!("line {number}")));
        }
    }

    async fn a_command_talks_over_websocket(carrier) {
        let cluster = Plan::on(carrier).start().await;
        let _kubelet = cluster.kubelet(1).await;
        let mut shell = connect(&cluster, 1).await.exec("cat").await.unwrap();
        for text in ["hello", "and again"] {
            shell.send(websocket::STDIN, text.as_bytes()).await.unwrap();
            let echo = expect("the echo", shell.receive()).await.unwrap();
            assert_eq!(echo, Message::Data(websocket::STDOUT, text.into()));
        }
        shell.send(websocket::CLOSE, &[websocket::STDIN]).await.unwrap();
        let status = expect("the status", shell.receive()).await.unwrap();
        assert!(matches!(status, Message::Data(websocket::STATUS, text) if text.windows(7).any(|w| w == b"Success")));
        assert_eq!(expect("the close", shell.receive()).await.unwrap(), Message::Close);
    }

    async fn a_command_that_prints_at_once_is_heard(carrier) {
        let cluster = Plan::on(carrier).start().await;
        let _kubelet = cluster.kubelet(1).await;
        let mut shell = connect(&cluster, 1).await.exec("hostname").await.unwrap();
        let said = expect("the output", shell.receive()).await.unwrap();
        assert_eq!(said, Message::Data(websocket::STDOUT, b"n1\n".to_vec()));
    }

    async fn a_kubelet_of_another_ca_is_not_believed(carrier) {
        let cluster = Plan::on(carrier).start().await;
        let _kubelet = cluster.kubelet(1).await;
        let pipe = cluster.apiserver().pipe("10.0.0.1:10250").await;
        let connecting = Kubelet::connect(pipe, node_ip(1), cluster.stranger.kubelets().der());
        assert!(expect("the handshake", connecting).await.is_err());
    }
}
