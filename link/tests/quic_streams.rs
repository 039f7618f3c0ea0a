//! Streams of a QUIC link: bytes in order, ends that say what they are, and nobody who waits for
//! somebody else's reader.

mod pair;

use std::future::poll_fn;
use std::time::{Duration, Instant};

use bytes::Bytes;
use pair::{Pair, fill, read_all};
use towline_link::carrier::{Carrier, Stream, StreamError};
use towline_link::quic::Options;
use towline_proto::limits;
use towline_proto::reason::Reason;

#[tokio::test]
async fn bytes_arrive_once_and_in_order_on_both_ways() {
    let pair = Pair::new().await;
    let (mut ours, mut theirs) = pair.stream().await;
    let sent = fill(3 << 20, 7);
    let back = fill(2 << 20, 9);
    let (_, got, _, got_back) = tokio::join!(
        async {
            for chunk in sent.chunks(10_000) {
                ours.send.send(Bytes::copy_from_slice(chunk)).await.unwrap();
            }
            ours.send.finish();
        },
        read_all(&mut theirs.recv),
        async {
            theirs.send.send(Bytes::from(back.clone())).await.unwrap();
            theirs.send.finish();
        },
        read_all(&mut ours.recv),
    );
    assert!(got.unwrap() == sent);
    assert!(got_back.unwrap() == back);
}

#[tokio::test]
async fn half_close_leaves_the_other_way_open() {
    let pair = Pair::new().await;
    let (mut ours, mut theirs) = pair.stream().await;
    ours.send
        .send(Bytes::from_static(b"question"))
        .await
        .unwrap();
    ours.send.finish();
    assert_eq!(read_all(&mut theirs.recv).await.unwrap(), b"question");
    theirs
        .send
        .send(Bytes::from_static(b"answer"))
        .await
        .unwrap();
    theirs.send.finish();
    assert_eq!(read_all(&mut ours.recv).await.unwrap(), b"answer");
}

#[tokio::test]
async fn a_finished_stream_loses_nothing_when_its_halves_are_dropped() {
    let pair = Pair::new().await;
    let (mut ours, mut theirs) = pair.stream().await;
    let sent = fill(4 << 20, 3);
    let task = tokio::spawn({
        let sent = sent.clone();
        async move {
            ours.send.send(Bytes::from(sent)).await.unwrap();
            ours.send.finish();
            // An end that was promised is not taken back.
            ours.send.reset(Reason::Aborted);
            drop(ours.send);
            ours.recv
        }
    });
    assert!(read_all(&mut theirs.recv).await.unwrap() == sent);
    drop(task.await.unwrap());
}

#[tokio::test]
async fn an_aborted_task_is_seen_as_reset_and_never_as_end() {
    let pair = Pair::new().await;
    let (mut ours, mut theirs) = pair.stream().await;
    let task = tokio::spawn(async move {
        ours.send
            .send(Bytes::from_static(b"half of the bo"))
            .await
            .unwrap();
        std::future::pending::<()>().await;
        drop(ours);
    });
    assert_eq!(
        theirs.recv.recv(1024).await.unwrap().unwrap(),
        "half of the bo"
    );
    task.abort();
    let error = StreamError::Reset(Reason::Aborted);
    assert_eq!(theirs.recv.recv(1024).await, Err(error));
    // Whoever asks again gets the same answer, not an end.
    assert_eq!(theirs.recv.recv(1024).await, Err(error));
}

#[tokio::test]
async fn a_panicked_task_is_seen_as_reset() {
    let pair = Pair::new().await;
    let (mut ours, mut theirs) = pair.stream().await;
    let task = tokio::spawn(async move {
        ours.send.send(Bytes::from_static(b"x")).await.unwrap();
        assert!(ours.recv.recv(1).await.unwrap().is_none(), "on purpose");
    });
    theirs.send.send(Bytes::from_static(b"y")).await.unwrap();
    assert!(task.await.unwrap_err().is_panic());
    assert_eq!(
        read_all(&mut theirs.recv).await,
        Err(StreamError::Reset(Reason::Aborted))
    );
}

#[tokio::test]
async fn reset_and_stop_carry_their_reasons() {
    let pair = Pair::new().await;
    for reason in [
        Reason::TargetReset,
        Reason::MemoryBudget,
        Reason::Unknown(54_321),
    ] {
        let (mut ours, mut theirs) = pair.stream().await;
        ours.send.reset(reason);
        assert_eq!(
            read_all(&mut theirs.recv).await,
            Err(StreamError::Reset(reason))
        );

        theirs.send.send(Bytes::from_static(b"x")).await.unwrap();
        ours.recv.stop(reason);
        assert_eq!(
            ours.recv.recv(8).await,
            Err(StreamError::Reset(Reason::Aborted))
        );
        let stopped = StreamError::Stopped(reason);
        assert_eq!(poll_fn(|cx| theirs.send.poll_stopped(cx)).await, stopped);
        // And again: it is a state, not an event.
        assert_eq!(poll_fn(|cx| theirs.send.poll_stopped(cx)).await, stopped);
        assert_eq!(
            theirs.send.send(Bytes::from_static(b"x")).await,
            Err(stopped)
        );
    }
}

#[tokio::test]
async fn a_dropped_reader_stops_the_sender() {
    let pair = Pair::new().await;
    let (mut ours, theirs) = pair.stream().await;
    let waiting = tokio::spawn(async move { poll_fn(|cx| ours.send.poll_stopped(cx)).await });
    drop(theirs.recv);
    assert_eq!(
        waiting.await.unwrap(),
        StreamError::Stopped(Reason::Aborted)
    );
}

#[tokio::test]
async fn closing_the_link_ends_every_stream_with_its_reason() {
    let pair = Pair::new().await;
    let (mut ours, mut theirs) = pair.stream().await;
    pair.server.close(Reason::Superseded);
    pair.server.close(Reason::Shutdown);
    let lost = StreamError::Lost(Reason::Superseded);
    assert_eq!(pair.agent.closed().await, Reason::Superseded);
    assert_eq!(pair.server.closed().await, Reason::Superseded);
    assert_eq!(theirs.recv.recv(8).await, Err(lost));
    assert_eq!(theirs.recv.recv(8).await, Err(lost));
    assert_eq!(ours.recv.recv(8).await, Err(lost));
    assert_eq!(poll_fn(|cx| theirs.send.poll_stopped(cx)).await, lost);
    assert_eq!(ours.send.send(Bytes::from_static(b"x")).await, Err(lost));
    assert_eq!(pair.agent.open().await.err(), Some(lost));
    assert_eq!(pair.agent.accept().await.err(), Some(lost));
}

#[tokio::test]
async fn dropping_the_link_closes_it_though_streams_are_left() {
    let Pair { server, agent, .. } = Pair::new().await;
    let opened = server.open().await.unwrap();
    drop(server);
    assert_eq!(agent.closed().await, Reason::Aborted);
    drop(opened);
}

/// The stream limit of the agent holds, and can be raised.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_streams_at_once() {
    let pair = Pair::new().await;
    pair.agent.set_stream_limit(1_000);
    let mut all = Vec::new();
    for number in 0..1_000u32 {
        let (server, agent) = (pair.server.clone(), pair.agent.clone());
        all.push(tokio::spawn(async move {
            let asking = async {
                let mut stream = server.open().await.unwrap();
                stream
                    .send
                    .send(Bytes::copy_from_slice(&number.to_be_bytes()))
                    .await
                    .unwrap();
                stream.send.finish();
                assert_eq!(
                    read_all(&mut stream.recv).await.unwrap(),
                    number.to_be_bytes()
                );
            };
            let answering = async {
                let mut stream = agent.accept().await.unwrap();
                let question = read_all(&mut stream.recv).await.unwrap();
                stream.send.send(Bytes::from(question)).await.unwrap();
                stream.send.finish();
            };
            tokio::join!(asking, answering);
        }));
    }
    for one in all {
        one.await.unwrap();
    }
}

/// 64 readers that never read, each with a full window, and the 65th dial is quick.
#[tokio::test]
async fn stalled_readers_stop_nobody_else() {
    let pair = Pair::new().await;
    let mut stalled = Vec::new();
    let endless = Bytes::from(vec![1; 8 << 20]);
    for _ in 0..64 {
        let (mut ours, theirs) = pair.stream().await;
        let endless = endless.clone();
        let writing = tokio::spawn(async move {
            let _ = ours.send.send(endless).await;
        });
        stalled.push((writing, theirs));
    }
    // Every window is full when no more bytes flow.
    let window = 64 * u64::from(limits::STREAM_WINDOW);
    pair.until(|pair| pair.agent.stats().received_bytes > window)
        .await;

    let small = Bytes::from(vec![2; 100_000]);
    for _ in 0..100 {
        let (mut ours, mut theirs) = pair.stream().await;
        let begin = Instant::now();
        ours.send.send(small.clone()).await.unwrap();
        ours.send.finish();
        assert_eq!(read_all(&mut theirs.recv).await.unwrap().len(), 100_000);
        assert!(
            begin.elapsed() < Duration::from_secs(1),
            "waited {:?}",
            begin.elapsed()
        );
    }
    assert!(stalled.iter().all(|(writing, _)| !writing.is_finished()));
    for (writing, theirs) in stalled {
        drop(theirs);
        writing.await.unwrap();
    }
}

/// The bytes of abandoned streams give their room in the connection's window back.
#[tokio::test]
async fn abandoned_streams_do_not_use_the_link_up() {
    let pair = Pair::new().await;
    let chunk = Bytes::from(vec![4; 1 << 20]);
    for round in 0..200 {
        let (mut ours, theirs) = pair.stream().await;
        ours.send.send(chunk.clone()).await.unwrap();
        match round % 3 {
            0 => drop(theirs),
            1 => drop(ours),
            _ => Stream::abort(theirs, Reason::TargetReset),
        }
    }
    let (mut ours, mut theirs) = pair.stream().await;
    let sent = fill(16 << 20, 5);
    let (_, got) = tokio::join!(
        async {
            ours.send.send(Bytes::from(sent.clone())).await.unwrap();
            ours.send.finish();
        },
        read_all(&mut theirs.recv)
    );
    assert!(got.unwrap() == sent);
}

/// quinn-proto 0.11.17 lost data here.
#[tokio::test]
async fn a_slow_reader_gets_more_than_a_hundred_megabytes_intact() {
    const TOTAL: usize = 120 << 20;
    let pair = Pair::with(Options::jumbo()).await;
    let (mut ours, mut theirs) = pair.stream().await;
    let block = Bytes::from(fill(1 << 20, 6));
    let writing = tokio::spawn({
        let block = block.clone();
        async move {
            for _ in 0..TOTAL / block.len() {
                ours.send.send(block.clone()).await.unwrap();
            }
            ours.send.finish();
            ours
        }
    });
    let mut position = 0;
    let mut pause = 0;
    while let Some(chunk) = theirs.recv.recv(64 * 1024).await.unwrap() {
        for part in chunk.chunks(block.len() - position % block.len()).take(1) {
            let at = position % block.len();
            assert!(
                block[at..at + part.len()] == *part,
                "wrong bytes at {position}"
            );
        }
        position += chunk.len();
        pause += chunk.len();
        if pause > 3 << 20 {
            // Lets the window fill up: the reader is slower than the writer.
            pause = 0;
            for _ in 0..200 {
                tokio::task::yield_now().await;
            }
        }
    }
    assert_eq!(position, TOTAL);
    drop(writing.await.unwrap());
}

#[tokio::test]
async fn large_datagrams_are_found_where_the_path_takes_them() {
    let without_batches = Options {
        segmentation_offload: false,
        ..Options::jumbo()
    };
    for (options, expected) in [
        (Options::default(), 1400..=1452),
        (Options::jumbo(), 6000..=6500),
        (without_batches, 6000..=6500),
    ] {
        let pair = Pair::with(options).await;
        let (mut ours, theirs) = pair.stream().await;
        let mut reading = theirs;
        tokio::spawn(async move { while let Ok(Some(_)) = reading.recv.recv(1 << 16).await {} });
        for _ in 0..16 {
            ours.send.send(Bytes::from(fill(1 << 20, 8))).await.unwrap();
        }
        pair.until(|pair| {
            pair.server
                .stats()
                .mtu
                .is_some_and(|mtu| expected.contains(&mtu))
        })
        .await;
        assert_eq!(pair.server.stats().black_holes, 0);
    }
}
