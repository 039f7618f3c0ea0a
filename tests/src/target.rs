//! Plain TCP targets with a behaviour each: echo, silent, slow, speaking first, half-closing,
//! resetting, a source and a sink of many bytes. Every connection reports how it ended.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_util::task::AbortOnDropHandle;

use crate::pattern::{self, Check};

/// What a target does with each connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Behaviour {
    /// Sends back what comes; ends when the other side has ended.
    Echo,
    /// Accepts and never reads or writes.
    Silent,
    /// Echoes one byte at a time with a pause before each.
    Slow(Duration),
    /// Sends this text at once, then echoes.
    SpeaksFirst(&'static str),
    /// Sends this text, ends its own direction, then reads to the end.
    HalfCloses(&'static str),
    /// Waits for a byte, sends this text, ends its own direction, then reads to the end.
    AnswersAndCloses(&'static str),
    /// Reads to the end, only then answers with this text.
    AnswersAtEnd(&'static str),
    /// Resets after this many bytes have come.
    ResetsAfter(u64),
    /// Waits for a byte, sends this many bytes of the pattern, then resets without an end.
    BreaksOffAfter(u64),
    /// Sends this many bytes of the pattern and an orderly end; checks what comes.
    Source(u64),
    /// Checks what comes against the pattern.
    Sink,
}

/// How the reading half of a connection ended at the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// End of stream.
    Closed,
    /// Reset.
    Reset,
    /// The behaviour itself broke the connection off.
    Own,
}

/// What one connection saw.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// Bytes that came, compared with the pattern.
    pub check: Check,
    /// How reading ended.
    pub end: End,
}

/// A listening target.
pub struct Target {
    address: SocketAddr,
    accepted: Arc<Semaphore>,
    outcomes: tokio::sync::Mutex<mpsc::UnboundedReceiver<Outcome>>,
    _task: AbortOnDropHandle<()>,
}

impl Target {
    /// Listens on a free loopback port.
    pub async fn start(behaviour: Behaviour) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let accepted = Arc::new(Semaphore::new(0));
        let (report, outcomes) = mpsc::unbounded_channel();
        let task = tokio::spawn(serve(listener, behaviour, Arc::clone(&accepted), report));
        Ok(Self {
            address,
            accepted,
            outcomes: tokio::sync::Mutex::new(outcomes),
            _task: AbortOnDropHandle::new(task),
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits for one accepted connection that no earlier call has waited for.
    pub async fn accepted(&self) {
        if let Ok(permit) = self.accepted.acquire().await {
            permit.forget();
        }
    }

    /// Accepted connections that nobody has waited for.
    pub fn accepted_now(&self) -> usize {
        self.accepted.available_permits()
    }

    /// How the next connection to end has ended.
    pub async fn outcome(&self) -> Outcome {
        let mut outcomes = self.outcomes.lock().await;
        outcomes
            .recv()
            .await
            .expect("the target runs as long as this value lives")
    }
}

/// A target, and its address as a dial names it.
pub async fn target(behaviour: Behaviour) -> (Target, String) {
    let target = Target::start(behaviour)
        .await
        .expect("a target on loopback");
    let address = target.address().to_string();
    (target, address)
}

async fn serve(
    listener: TcpListener,
    behaviour: Behaviour,
    accepted: Arc<Semaphore>,
    report: mpsc::UnboundedSender<Outcome>,
) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            connection = listener.accept() => {
                let Ok((stream, _)) = connection else { return };
                accepted.add_permits(1);
                let report = report.clone();
                connections.spawn(async move {
                    let outcome = attend(stream, behaviour).await;
                    // Nobody may be left to hear it.
                    let _ = report.send(outcome);
                });
            }
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

async fn attend(mut stream: TcpStream, behaviour: Behaviour) -> Outcome {
    // A failure to set the option would only make the test slower.
    let _ = stream.set_nodelay(true);
    let mut check = Check::default();
    let end = match behaviour {
        Behaviour::Echo => echo(&mut stream, &mut check, None).await,
        Behaviour::Slow(pause) => echo(&mut stream, &mut check, Some(pause)).await,
        Behaviour::SpeaksFirst(text) => match stream.write_all(text.as_bytes()).await {
            Ok(()) => echo(&mut stream, &mut check, None).await,
            Err(_) => End::Reset,
        },
        Behaviour::Silent => {
            std::future::pending::<()>().await;
            End::Own
        }
        Behaviour::HalfCloses(text) => {
            let sent = async {
                stream.write_all(text.as_bytes()).await?;
                stream.shutdown().await
            };
            match sent.await {
                Ok(()) => read_all(&mut stream, &mut check, u64::MAX).await,
                Err(_) => End::Reset,
            }
        }
        Behaviour::AnswersAndCloses(text) => {
            let answered = async {
                let first = stream.read_u8().await?;
                check.feed(&[first]);
                stream.write_all(text.as_bytes()).await?;
                stream.shutdown().await
            };
            match answered.await {
                Ok(()) => read_all(&mut stream, &mut check, u64::MAX).await,
                Err(_) => End::Reset,
            }
        }
        Behaviour::AnswersAtEnd(text) => {
            let end = read_all(&mut stream, &mut check, u64::MAX).await;
            if end == End::Closed {
                let _ = stream.write_all(text.as_bytes()).await;
                let _ = stream.shutdown().await;
            }
            end
        }
        Behaviour::ResetsAfter(count) => {
            let end = read_all(&mut stream, &mut check, count).await;
            let _ = stream.set_zero_linger();
            if check.received >= count {
                End::Own
            } else {
                end
            }
        }
        Behaviour::BreaksOffAfter(count) => {
            let begun = stream.read_u8().await;
            let sent = send_pattern(&mut stream, count)
                .await
                .and(begun.map(|_| ()));
            let _ = stream.set_zero_linger();
            if sent.is_ok() { End::Own } else { End::Reset }
        }
        Behaviour::Source(count) => {
            let (mut read, mut write) = stream.split();
            let sending = async {
                send_pattern(&mut write, count).await?;
                write.shutdown().await
            };
            let (sent, end) = tokio::join!(sending, read_all(&mut read, &mut check, u64::MAX));
            if sent.is_ok() { end } else { End::Reset }
        }
        Behaviour::Sink => read_all(&mut stream, &mut check, u64::MAX).await,
    };
    Outcome { check, end }
}

async fn echo(stream: &mut TcpStream, check: &mut Check, pause: Option<Duration>) -> End {
    let mut buffer = vec![0; if pause.is_some() { 1 } else { 64 * 1024 }];
    loop {
        match stream.read(&mut buffer).await {
            Ok(0) => {
                let _ = stream.shutdown().await;
                return End::Closed;
            }
            Ok(n) => {
                check.feed(&buffer[..n]);
                if let Some(pause) = pause {
                    tokio::time::sleep(pause).await;
                }
                if stream.write_all(&buffer[..n]).await.is_err() {
                    return End::Reset;
                }
            }
            Err(_) => return End::Reset,
        }
    }
}

/// Reads and checks until the end or until `limit` bytes have come.
pub async fn read_all(
    read: &mut (impl AsyncReadExt + Unpin),
    check: &mut Check,
    limit: u64,
) -> End {
    let mut buffer = vec![0; 256 * 1024];
    while check.received < limit {
        match read.read(&mut buffer).await {
            Ok(0) => return End::Closed,
            Ok(n) => check.feed(&buffer[..n]),
            Err(_) => return End::Reset,
        }
    }
    End::Own
}

/// Writes the first `count` bytes of the pattern.
pub async fn send_pattern(write: &mut (impl AsyncWriteExt + Unpin), count: u64) -> io::Result<()> {
    let mut sent = 0;
    while sent < count {
        let piece = pattern::bytes(sent, count - sent);
        write.write_all(piece).await?;
        sent += piece.len() as u64;
    }
    write.flush().await
}

/// A listener whose queue is full or gone: connecting to the returned address is refused.
pub async fn refusing_address() -> io::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    listener.local_addr()
}

/// An address whose listen queue is full: the kernel ignores further attempts to connect, which hang.
pub struct FullAddress {
    address: SocketAddr,
    _listener: socket2::Socket,
    _fillers: Vec<socket2::Socket>,
}

impl FullAddress {
    /// Fills one on loopback.
    pub fn start() -> io::Result<Self> {
        use socket2::{Domain, Socket, Type};
        let listener = Socket::new(Domain::IPV4, Type::STREAM, None)?;
        listener.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())?;
        listener.listen(0)?;
        let bound = listener.local_addr()?;
        let address = bound.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?;
        let mut fillers = Vec::new();
        // A queue of length 0 holds one connection; a second attempt already hangs.
        for _ in 0..2 {
            let filler = Socket::new(Domain::IPV4, Type::STREAM, None)?;
            filler.set_nonblocking(true)?;
            match filler.connect(&bound) {
                Ok(()) => {}
                Err(error) if error.raw_os_error() == Some(IN_PROGRESS) => {}
                Err(error) => return Err(error),
            }
            fillers.push(filler);
        }
        Ok(Self {
            address,
            _listener: listener,
            _fillers: fillers,
        })
    }

    /// Where nobody answers.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// EINPROGRESS of Linux.
const IN_PROGRESS: i32 = 115;
