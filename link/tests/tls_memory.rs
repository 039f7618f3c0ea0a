//! What idle streams of the tls carrier cost. Alone in its file: it reads the process's memory.

mod pair;

use bytes::Bytes;
use pair::{Cluster, LOOPBACK};
use tokio::net::TcpListener;
use towline_link::carrier::{Carrier, Stream};
use towline_link::tls::{self, TlsOptions};
use towline_proto::limits::DIALS_PER_LINK;

/// Resident bytes of this process.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = text.split(' ').nth(1).unwrap().parse().unwrap();
    pages * rustix::param::page_size()
}

#[tokio::test]
async fn an_idle_stream_costs_less_than_two_kibibytes_for_both_ends() {
    let cluster = Cluster::new("prod");
    let agent = cluster.agent_side(&cluster.agent("node-1"));
    let server = cluster.server_side(&cluster.server("server-1"));
    let listener = TcpListener::bind(LOOPBACK).await.unwrap();
    let address = listener.local_addr().unwrap().to_string().parse().unwrap();
    let options = TlsOptions::agent();
    let (agent, server) = tokio::join!(
        tls::connect(&address, agent.0, agent.1, None, &options),
        async {
            let (tcp, _) = listener.accept().await.unwrap();
            tls::accept(tcp, server.0, server.1, &TlsOptions::server()).await
        }
    );
    let (agent, server) = (agent.unwrap(), server.unwrap());
    agent.set_stream_limit(DIALS_PER_LINK);
    let mut kept = Vec::with_capacity(2 * DIALS_PER_LINK as usize);
    for _ in 0..16 {
        dial(&*server, &*agent, &mut kept).await;
    }
    let before = resident();
    while kept.len() < 2 * DIALS_PER_LINK as usize {
        dial(&*server, &*agent, &mut kept).await;
    }
    let each = (resident() - before) / (DIALS_PER_LINK as usize - 16);
    assert!(each < 2048, "{each} bytes");
    println!("{each} bytes for both ends of an idle stream");
}

/// A stream over which some bytes went each way and that is idle now.
async fn dial(server: &dyn Carrier, agent: &dyn Carrier, kept: &mut Vec<Stream>) {
    let mut here = server.open().await.unwrap();
    here.send.send(Bytes::from(vec![1; 3000])).await.unwrap();
    let mut there = agent.accept().await.unwrap();
    take(&mut there, 3000).await;
    there.send.send(Bytes::from(vec![2; 20_000])).await.unwrap();
    take(&mut here, 20_000).await;
    kept.extend([here, there]);
}

async fn take(stream: &mut Stream, mut bytes: usize) {
    while bytes > 0 {
        bytes -= stream.recv.recv(bytes).await.unwrap().unwrap().len();
    }
}
