//! The splice at both ends of a dial: front end, server, link, agent, target.

#[path = "pair/both.rs"]
mod both;
mod pair;

use std::io;
use std::time::Duration;

use both::{Ends, tcp};
use pair::fill;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use towline_link::live::LiveDials;
use towline_link::splice::{Early, LocalEnd, LocalSide, SpliceEnd, splice};
use towline_proto::limits;
use towline_proto::reason::Reason;

on_both_carriers!(
    half_close_travels_and_bytes_are_counted,
    a_target_that_speaks_first_is_heard_and_bulk_arrives_both_ways,
    a_reset_of_the_target_resets_the_front_end,
    a_reset_of_the_front_end_resets_the_target,
    a_cancelled_splice_never_looks_like_an_end,
    a_lost_link_never_looks_like_an_end,
    a_front_end_that_leaves_a_stalled_target_ends_the_dial,
    a_front_end_that_leaves_after_its_end_of_file_ends_the_dial,
    a_target_that_breaks_while_the_front_end_stalls_ends_the_dial,
    a_stalled_reader_is_ended_for_memory_and_stops_nobody_else,
);

const SOON: Duration = Duration::from_secs(20);

/// One dial through the whole of it.
struct Chain<F> {
    front_end: F,
    target: TcpStream,
    server: JoinHandle<SpliceEnd>,
    agent: JoinHandle<SpliceEnd>,
}

async fn chain<F: LocalEnd + 'static>(
    ends: &Ends,
    dials: &LiveDials,
    door: F,
    front_end: F,
) -> Chain<F> {
    let (here, there) = ends.dial().await;
    let (connected, target) = tcp().await;
    let (at_server, at_agent) = (dials.register(), LiveDials::new(u64::MAX).register());
    Chain {
        front_end,
        target,
        server: tokio::spawn(async move {
            splice(
                door,
                here,
                LocalSide::FrontEnd,
                Early::default(),
                &at_server,
            )
            .await
        }),
        agent: tokio::spawn(async move {
            splice(
                connected,
                there,
                LocalSide::Target,
                Early::default(),
                &at_agent,
            )
            .await
        }),
    }
}

async fn over_tcp(ends: &Ends) -> Chain<TcpStream> {
    let (door, front_end) = tcp().await;
    chain(ends, &LiveDials::new(u64::MAX), door, front_end).await
}

async fn over_unix(ends: &Ends) -> Chain<UnixStream> {
    let (door, front_end) = UnixStream::pair().unwrap();
    chain(ends, &LiveDials::new(u64::MAX), door, front_end).await
}

async fn ended(splice: JoinHandle<SpliceEnd>) -> SpliceEnd {
    timeout(SOON, splice).await.expect("it ends").unwrap()
}

/// Reads until nothing more comes; the error that it ended with, if it was one.
async fn drained(stream: &mut (impl AsyncRead + Unpin)) -> Result<Vec<u8>, io::ErrorKind> {
    let mut all = Vec::new();
    let read = timeout(SOON, stream.read_to_end(&mut all)).await;
    read.expect("it ends").map(|_| all).map_err(|e| e.kind())
}

/// Writes until the other side has taken nothing for a while.
async fn fill_up(stream: &mut (impl tokio::io::AsyncWrite + Unpin)) -> u64 {
    let (chunk, mut written) = (vec![7; 64 * 1024], 0);
    while let Ok(wrote) = timeout(Duration::from_millis(500), stream.write(&chunk)).await {
        written += wrote.unwrap() as u64;
    }
    written
}

async fn half_close_travels_and_bytes_are_counted(ends: Ends) {
    let mut chain = over_tcp(&ends).await;
    chain.front_end.write_all(b"question").await.unwrap();
    chain.front_end.shutdown().await.unwrap();
    assert_eq!(drained(&mut chain.target).await.unwrap(), b"question");
    chain.target.write_all(b"answer").await.unwrap();
    chain.target.shutdown().await.unwrap();
    assert_eq!(drained(&mut chain.front_end).await.unwrap(), b"answer");
    let done = |to_peer, from_peer| SpliceEnd {
        to_peer,
        from_peer,
        reason: Reason::Done,
    };
    assert_eq!(ended(chain.server).await, done(8, 6));
    assert_eq!(ended(chain.agent).await, done(6, 8));
}

async fn a_target_that_speaks_first_is_heard_and_bulk_arrives_both_ways(ends: Ends) {
    let chain = over_unix(&ends).await;
    let (mut front_end, mut target) = (chain.front_end, chain.target);
    target.write_all(b"hello").await.unwrap();
    let mut greeting = [0; 5];
    front_end.read_exact(&mut greeting).await.unwrap();
    assert_eq!(&greeting, b"hello");
    let (up, down) = (fill(6 << 20, 1), fill(6 << 20, 2));
    let (mut read, mut write) = front_end.split();
    let (mut target_read, mut target_write) = target.split();
    let (_, _, got_down, got_up) = tokio::join!(
        async {
            write.write_all(&up).await.unwrap();
            write.shutdown().await.unwrap();
        },
        async {
            target_write.write_all(&down).await.unwrap();
            target_write.shutdown().await.unwrap();
        },
        drained(&mut read),
        drained(&mut target_read),
    );
    assert!(got_down.unwrap() == down && got_up.unwrap() == up);
    assert_eq!(ended(chain.server).await.reason, Reason::Done);
    assert_eq!(ended(chain.agent).await.reason, Reason::Done);
}

async fn a_reset_of_the_target_resets_the_front_end(ends: Ends) {
    let mut chain = over_tcp(&ends).await;
    chain.target.set_zero_linger().unwrap();
    drop(chain.target);
    let end = drained(&mut chain.front_end).await;
    assert_eq!(end, Err(io::ErrorKind::ConnectionReset));
    assert_eq!(ended(chain.agent).await.reason, Reason::TargetReset);
    assert_eq!(ended(chain.server).await.reason, Reason::TargetReset);
}

async fn a_reset_of_the_front_end_resets_the_target(ends: Ends) {
    let mut chain = over_tcp(&ends).await;
    chain.front_end.set_zero_linger().unwrap();
    drop(chain.front_end);
    let end = drained(&mut chain.target).await;
    assert_eq!(end, Err(io::ErrorKind::ConnectionReset));
    assert_eq!(ended(chain.server).await.reason, Reason::FrontEndGone);
    assert_eq!(ended(chain.agent).await.reason, Reason::FrontEndGone);
}

async fn a_cancelled_splice_never_looks_like_an_end(ends: Ends) {
    for server in [true, false] {
        let mut chain = over_tcp(&ends).await;
        chain.target.write_all(b"half of it").await.unwrap();
        let mut half = [0; 10];
        chain.front_end.read_exact(&mut half).await.unwrap();
        if server { &chain.server } else { &chain.agent }.abort();
        for stream in [&mut chain.front_end, &mut chain.target] {
            let end = drained(stream).await;
            assert_eq!(end, Err(io::ErrorKind::ConnectionReset), "{server}");
        }
    }
}

async fn a_lost_link_never_looks_like_an_end(ends: Ends) {
    let mut chain = over_tcp(&ends).await;
    ends.agent.close(Reason::Shutdown);
    for stream in [&mut chain.front_end, &mut chain.target] {
        let end = drained(stream).await;
        assert_eq!(end, Err(io::ErrorKind::ConnectionReset));
    }
    assert_eq!(ended(chain.server).await.reason, Reason::Shutdown);
    assert_eq!(ended(chain.agent).await.reason, Reason::Shutdown);
}

async fn a_front_end_that_leaves_a_stalled_target_ends_the_dial(ends: Ends) {
    // On TCP it leaves with a reset; on Unix the kernel says so when something is unread.
    let mut chain = over_tcp(&ends).await;
    assert!(fill_up(&mut chain.front_end).await > u64::from(limits::STREAM_WINDOW));
    chain.front_end.set_zero_linger().unwrap();
    drop(chain.front_end);
    assert_eq!(ended(chain.server).await.reason, Reason::FrontEndGone);
    assert_eq!(ended(chain.agent).await.reason, Reason::FrontEndGone);

    let mut chain = over_unix(&ends).await;
    chain.target.write_all(b"unread").await.unwrap();
    let mut first = [0];
    chain.front_end.read_exact(&mut first).await.unwrap();
    fill_up(&mut chain.front_end).await;
    drop(chain.front_end);
    assert_eq!(ended(chain.server).await.reason, Reason::FrontEndGone);
    assert_eq!(ended(chain.agent).await.reason, Reason::FrontEndGone);
}

async fn a_front_end_that_leaves_after_its_end_of_file_ends_the_dial(ends: Ends) {
    let mut chain = over_unix(&ends).await;
    chain.front_end.write_all(b"last words").await.unwrap();
    drop(chain.front_end);
    // The target has them all, although it says nothing itself.
    let mut words = [0; 10];
    chain.target.read_exact(&mut words).await.unwrap();
    assert_eq!(&words, b"last words");
    assert_eq!(ended(chain.server).await.reason, Reason::FrontEndGone);
    assert_eq!(ended(chain.agent).await.reason, Reason::ReaderGone);
}

async fn a_target_that_breaks_while_the_front_end_stalls_ends_the_dial(ends: Ends) {
    let mut chain = over_tcp(&ends).await;
    assert!(fill_up(&mut chain.target).await > u64::from(limits::STREAM_WINDOW));
    chain.target.set_zero_linger().unwrap();
    drop(chain.target);
    assert_eq!(ended(chain.agent).await.reason, Reason::TargetReset);
    assert_eq!(ended(chain.server).await.reason, Reason::TargetReset);
}

async fn a_stalled_reader_is_ended_for_memory_and_stops_nobody_else(ends: Ends) {
    let dials = LiveDials::new(0);
    let (door, front_end) = tcp().await;
    let mut stalled = chain(&ends, &dials, door, front_end).await;
    let mut other = over_tcp(&ends).await;
    fill_up(&mut stalled.target).await;
    other.front_end.write_all(b"ping").await.unwrap();
    let mut ping = [0; 4];
    timeout(SOON, other.target.read_exact(&mut ping))
        .await
        .expect("it passes")
        .unwrap();
    let budget = tokio::spawn(dials.clone().keep_budget());
    assert_eq!(ended(stalled.server).await.reason, Reason::MemoryBudget);
    assert_eq!(dials.ended_for_memory(), 1);
    assert_eq!(ended(stalled.agent).await.reason, Reason::MemoryBudget);
    other.target.write_all(b"pong").await.unwrap();
    other.front_end.read_exact(&mut ping).await.unwrap();
    budget.abort();
}
