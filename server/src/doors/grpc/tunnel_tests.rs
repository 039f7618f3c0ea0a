//! A tunnel over a real HTTP/2 stream, the front end of which is this test.

use std::future::poll_fn;

use h2::client::ResponseFuture;
use http::Request;
use towline_proto::konnectivity::frame;

use super::*;
use crate::metrics::Metrics;

/// The other end.
struct Far {
    stream: SendStream<Bytes>,
    response: ResponseFuture,
}

impl Far {
    fn say(&mut self, packet: &Packet) {
        let (head, data) = frame::put(packet);
        for part in [head, data] {
            self.stream.send_data(part, false).unwrap();
        }
    }
}

/// A tunnel whose front end has asked for a dial and was answered the headers.
async fn dialling() -> (Tunnel, Far, Arc<Counted>) {
    let (near, far) = tokio::io::duplex(1 << 20);
    let (client, server) = tokio::join!(
        h2::client::handshake(far),
        h2::server::Builder::new().handshake::<_, Piece>(near)
    );
    let (client, connection) = client.unwrap();
    tokio::spawn(connection);
    let mut server = server.unwrap();
    let request = Request::post("http://x/ProxyService/Proxy")
        .body(())
        .unwrap();
    let mut client = client.ready().await.unwrap();
    let (response, stream) = client.send_request(request, false).unwrap();
    let mut far = Far { stream, response };
    let (request, mut respond) = server.accept().await.unwrap().unwrap();
    tokio::spawn(async move { while server.accept().await.is_some() {} });
    far.say(&Packet::DialRequest {
        protocol: "tcp".to_owned(),
        address: "10.0.0.7:1".to_owned(),
        random: 5,
    });
    let metrics = Metrics::default();
    let counted = Arc::clone(metrics.counted());
    let send = respond
        .send_response(http::Response::new(()), false)
        .unwrap();
    let strays = metrics.front_end_strays();
    let mut tunnel = Tunnel::new(request.into_body(), send, Arc::clone(&counted), strays);
    let asked = tunnel.event().await;
    assert!(matches!(asked, Event::Step(Step::Dial(_))), "{asked:?}");
    (tunnel, far, counted)
}

/// The value of a series, by what follows the prefix of all.
fn value(counted: &Counted, series: &str) -> Option<String> {
    let mut page = String::new();
    counted.families().write(&mut page);
    let line = format!("konnectivity_network_proxy_server_{series} ");
    page.lines()
        .find_map(|one| one.strip_prefix(&line).map(str::to_owned))
}

const WRITES: &str = "frontend_write_duration_seconds_count";

#[tokio::test]
async fn an_answer_that_nobody_hears_is_counted() {
    let (mut tunnel, mut far, counted) = dialling().await;
    far.stream.send_reset(h2::Reason::CANCEL);
    poll_fn(|cx| tunnel.send.poll_reset(cx)).await.unwrap();
    tunnel.dialled(1);
    let failed = "dial_failure_count{reason=\"send_rsp\"}";
    let error =
        "stream_errors_total{code=\"Canceled\",packet_type=\"DIAL_RSP\",segment=\"to_client\"}";
    for series in [failed, error, WRITES] {
        assert_eq!(value(&counted, series).as_deref(), Some("1"), "{series}");
    }
}

#[tokio::test]
async fn data_is_timed_until_it_goes_and_counted_when_it_cannot() {
    let (mut tunnel, mut far, counted) = dialling().await;
    tunnel.dialled(1);
    assert_eq!(value(&counted, WRITES).as_deref(), Some("1"));
    assert_eq!(
        value(&counted, "dial_failure_count{reason=\"send_rsp\"}"),
        None
    );
    far.say(&Packet::Data {
        connect_id: 1,
        data: Bytes::from_static(b"x"),
    });
    let step = tunnel.event().await;
    assert!(matches!(step, Event::Step(Step::Bytes(_))), "{step:?}");
    // The window of the stream takes so much, and the front end reads nothing.
    let window = 65_535;
    let mut chunks = VecDeque::from([Bytes::from(vec![7; 2 * window])]);
    let mut given = 0;
    while given < window / 2 {
        given += poll_fn(|cx| tunnel.poll_give(cx, &mut chunks))
            .await
            .unwrap();
    }
    let writes: u64 = value(&counted, WRITES).unwrap().parse().unwrap();
    assert!(writes > 1, "{writes}");
    let data = "stream_packets_total{packet_type=\"DATA\",segment=\"to_client\"}";
    assert_eq!(value(&counted, data), Some((writes - 1).to_string()));
    let error = "stream_errors_total{code=\"Canceled\",packet_type=\"DATA\",segment=\"to_client\"}";
    assert_eq!(value(&counted, error), None);
    far.stream.send_reset(h2::Reason::CANCEL);
    drop(far.response);
    let lost = loop {
        match poll_fn(|cx| tunnel.poll_give(cx, &mut chunks)).await {
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert_eq!(lost.kind(), io::ErrorKind::BrokenPipe);
    assert_eq!(value(&counted, error).as_deref(), Some("1"));
}
