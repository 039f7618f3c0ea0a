//! The order and the boundaries of what the gathering socket sends.

use super::*;
use std::net::Ipv4Addr;
use std::sync::atomic::Ordering::SeqCst;
use tokio::sync::oneshot;

const SIZE: usize = 1200;

/// A socket of ours, and one that hears what it sends, each datagram for itself.
async fn pair() -> (Arc<Socket>, std::net::UdpSocket, SocketAddr) {
    let ours = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    ours.set_nonblocking(true).unwrap();
    let peer = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    peer.set_nonblocking(true).unwrap();
    let to = peer.local_addr().unwrap();
    let socket = Arc::new(Socket(Arc::new(Inner::new(ours).unwrap())));
    socket.0.socket.writable().await.unwrap();
    (socket, peer, to)
}

/// So many datagrams, numbered from `first` on; the last one of this size.
fn datagrams(first: u8, count: u8, last: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    for n in first..first + count {
        let size = if n + 1 == first + count { last } else { SIZE };
        bytes.extend(std::iter::repeat_n(n, size));
    }
    bytes
}

fn transmit(to: SocketAddr, contents: &[u8]) -> Transmit<'_> {
    Transmit {
        destination: to,
        ecn: None,
        contents,
        segment_size: (contents.len() > SIZE).then_some(SIZE),
        src_ip: None,
    }
}

/// Number and size of everything that has arrived.
fn heard(peer: &std::net::UdpSocket) -> Vec<(u8, usize)> {
    let mut bytes = [0; 2 * SIZE];
    std::iter::from_fn(|| peer.recv(&mut bytes).ok().map(|size| (bytes[0], size))).collect()
}

/// Runs this as quinn's task; what it gives back is heard before the task has ended its run.
async fn in_a_run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    let (tell, told) = oneshot::channel();
    Gathering.spawn(Box::pin(async move {
        assert!(tell.send(work()).is_ok(), "nobody waits");
        // Stays: a task that ends is no run like others.
        std::future::pending::<()>().await;
    }));
    told.await.unwrap()
}

/// Loopback delivers within the call, the task's run may still go on.
async fn eventually_heard(peer: &std::net::UdpSocket, count: usize) -> Vec<(u8, usize)> {
    let mut all = Vec::new();
    while all.len() < count {
        all.extend(heard(peer));
        tokio::task::yield_now().await;
    }
    all
}

fn numbered(count: u8) -> Vec<(u8, usize)> {
    (0..count).map(|n| (n, SIZE)).collect()
}

#[tokio::test]
async fn batches_of_one_run_leave_together_when_it_ends() {
    let (socket, peer, to) = pair().await;
    let listener = peer.try_clone().unwrap();
    let early = in_a_run(move || {
        for first in [0, 10, 20, 30] {
            let bytes = datagrams(first, 10, SIZE);
            socket.try_send(&transmit(to, &bytes)).unwrap();
        }
        (
            heard(&listener),
            RUN.with_borrow(|run| run.as_ref().unwrap().bytes.len()),
        )
    })
    .await;
    assert_eq!(early, (vec![], 40 * SIZE), "all in one send, not yet made");
    assert_eq!(eventually_heard(&peer, 40).await, numbered(40));
}

#[tokio::test]
async fn what_does_not_fit_follows_in_order() {
    let (socket, peer, to) = pair().await;
    in_a_run(move || {
        for first in (0..80).step_by(10) {
            let bytes = datagrams(first, 10, SIZE);
            socket.try_send(&transmit(to, &bytes)).unwrap();
        }
    })
    .await;
    assert_eq!(eventually_heard(&peer, 80).await, numbered(80));
}

#[tokio::test]
async fn a_short_datagram_ends_a_batch_and_a_single_one_does_not_wait() {
    let (socket, peer, to) = pair().await;
    let listener = peer.try_clone().unwrap();
    let (single, ended) = in_a_run(move || {
        socket
            .try_send(&transmit(to, &datagrams(0, 1, 90)))
            .unwrap();
        let single = heard(&listener);
        socket
            .try_send(&transmit(to, &datagrams(1, 10, SIZE)))
            .unwrap();
        socket
            .try_send(&transmit(to, &datagrams(11, 2, 70)))
            .unwrap();
        (single, heard(&listener))
    })
    .await;
    assert_eq!(single, [(0, 90)]);
    let mut expected: Vec<_> = (1..12).map(|n| (n, SIZE)).collect();
    expected.push((12, 70));
    assert_eq!(ended, expected);
    assert_eq!(heard(&peer), []);
}

#[tokio::test]
async fn datagrams_for_another_place_never_join() {
    let (socket, peer, to) = pair().await;
    let other = std::net::UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    other.set_nonblocking(true).unwrap();
    let elsewhere = other.local_addr().unwrap();
    in_a_run(move || {
        socket
            .try_send(&transmit(to, &datagrams(0, 10, SIZE)))
            .unwrap();
        socket
            .try_send(&transmit(elsewhere, &datagrams(50, 2, SIZE)))
            .unwrap();
        socket
            .try_send(&transmit(to, &datagrams(10, 10, SIZE)))
            .unwrap();
    })
    .await;
    assert_eq!(eventually_heard(&peer, 20).await, numbered(20));
    assert_eq!(eventually_heard(&other, 2).await, [(50, SIZE), (51, SIZE)]);
}

#[tokio::test]
async fn outside_of_a_run_nothing_is_kept() {
    let (socket, peer, to) = pair().await;
    socket.0.socket.writable().await.unwrap();
    socket
        .try_send(&transmit(to, &datagrams(0, 10, SIZE)))
        .unwrap();
    assert_eq!(heard(&peer), numbered(10));
}

#[tokio::test]
async fn what_the_kernel_did_not_take_goes_out_first_and_once() {
    let (socket, peer, to) = pair().await;
    socket.0.full.store(true, SeqCst);
    let inner = Arc::clone(&socket.0);
    let (tell, told) = oneshot::channel();
    let (resume, resumed) = oneshot::channel::<()>();
    let (end, ended) = oneshot::channel();
    Gathering.spawn(Box::pin(async move {
        socket
            .try_send(&transmit(to, &datagrams(0, 10, SIZE)))
            .unwrap();
        let refused = socket
            .try_send(&transmit(to, &datagrams(90, 1, 33)))
            .map_err(|error| error.kind());
        assert_eq!(refused, Err(io::ErrorKind::WouldBlock));
        tell.send(()).unwrap();
        resumed.await.unwrap();
        socket
            .try_send(&transmit(to, &datagrams(10, 10, SIZE)))
            .unwrap();
        end.send(()).unwrap();
        std::future::pending::<()>().await;
    }));
    told.await.unwrap();
    tokio::task::yield_now().await;
    assert_eq!(heard(&peer), []);
    inner.full.store(false, SeqCst);
    resume.send(()).unwrap();
    ended.await.unwrap();
    assert_eq!(eventually_heard(&peer, 20).await, numbered(20));
    tokio::task::yield_now().await;
    assert_eq!(heard(&peer), []);
}

#[tokio::test]
async fn a_task_that_panics_leaves_no_batch_behind() {
    let (socket, peer, to) = pair().await;
    let own = Arc::clone(&socket);
    let task = Task {
        task: Box::pin(async move {
            own.try_send(&transmit(to, &datagrams(0, 10, SIZE)))
                .unwrap();
            panic!("as quinn might");
        }),
        batch: None,
        room: None,
    };
    assert!(tokio::spawn(task).await.is_err());
    socket.0.socket.writable().await.unwrap();
    socket
        .try_send(&transmit(to, &datagrams(0, 10, SIZE)))
        .unwrap();
    assert_eq!(heard(&peer), numbered(10));
}

#[tokio::test]
async fn a_task_with_more_to_send_is_run_again_while_there_is_room() {
    let (socket, peer, to) = pair().await;
    let mut next = 0;
    let mut task = Task {
        task: Box::pin(std::future::poll_fn(move |_| {
            for _ in 0..RUN_DATAGRAMS / 10 {
                let bytes = datagrams(next, 10, SIZE);
                socket.try_send(&transmit(to, &bytes)).unwrap();
                next += 10;
            }
            Poll::Pending
        })),
        batch: None,
        room: None,
    };
    let once = Pin::new(&mut task).poll(&mut Context::from_waker(std::task::Waker::noop()));
    assert!(once.is_pending());
    // A third turn would not have fitted into the same send.
    assert_eq!(heard(&peer), numbered(40));
}
