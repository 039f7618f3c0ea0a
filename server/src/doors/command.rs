//! `towline-server dial`: goes through a door as a front end would, and says what became of it. For
//! people who want to know whether a target is reached, with which answer, and how long it took.

use std::fmt;
use std::io::{self, Read, Write};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use clap::{ArgGroup, Args};
use rustls::ClientConfig;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;
use towline_link::grpc::client::{self, Call};
use towline_link::process::exit::Exit;
use towline_link::process::runtime::{self, Workers};
use towline_link::process::values::TimeSpan;
use towline_pki::{Anchors, Credentials, DenyList, PeerVerifier, tls};
use towline_proto::id::Role;
use towline_proto::konnectivity::{PROXY_METHOD, Packet};
use towline_proto::limits;
use towline_proto::target::Target;

const EXIT_CODES: &str = "\
Exit codes:
  0  the target is reached
  1  it is not: the door refused (`refused: ...`), or could not be asked (`error: ...`)
  2  wrong command line
  3  --cert, --key or --ca cannot be used";

/// Try a door: dial a target as kube-apiserver would
#[derive(Clone, Debug, Args)]
#[command(after_help = EXIT_CODES, group = ArgGroup::new("door").required(true))]
pub struct DialArgs {
    /// What to dial: node-1:10250, 10.244.0.7:80, webhook.ns.svc:443
    #[arg(value_name = "HOST:PORT")]
    target: Target,
    /// The server's --door-unix
    #[arg(long, value_name = "PATH", group = "door")]
    socket: Option<PathBuf>,
    /// The server's --door-tcp, where it is reached
    #[arg(long, value_name = "HOST:PORT", group = "door", requires_all = ["cert", "key", "ca"])]
    connect: Option<Target>,
    /// With --connect: a client certificate that --door-allow names (PEM)
    #[arg(long, value_name = "FILE", requires = "connect")]
    cert: Option<PathBuf>,
    /// With --connect: its key (PEM, readable by its owner and at most its group)
    #[arg(long, value_name = "FILE", requires = "connect")]
    key: Option<PathBuf>,
    /// With --connect: the authority that signs servers (PEM)
    #[arg(long, value_name = "FILE", requires = "connect")]
    ca: Option<PathBuf>,
    /// Ask as kube-apiserver's GRPC mode does, instead of by HTTP CONNECT
    #[arg(long)]
    grpc: bool,
    /// Then copy standard input to the target and its answer to standard output
    #[arg(long, conflicts_with = "grpc")]
    pipe: bool,
    /// How long the whole may take until the answer
    #[arg(long, value_name = "TIME", default_value_t = TimeSpan(limits::DIAL_TIMEOUT_MAX), value_parser = TimeSpan::between(Duration::from_millis(100)..=Duration::from_secs(600)))]
    timeout: TimeSpan,
}

/// Anything that carries bytes both ways.
trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// What the door said.
enum Answer {
    /// The target is reached; what came after the answer already, and the way there.
    Open(Vec<u8>, Option<Box<dyn Io>>),
    Refused(String),
}

/// Why it could not be asked.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{0}")]
    Files(String),
    #[error("the door {door}: {cause}{hint}")]
    Door {
        door: String,
        cause: String,
        hint: &'static str,
    },
    #[error("the door {0} did not answer within {1}")]
    Late(String, TimeSpan),
}

/// Runs what was asked for.
pub fn run(args: &DialArgs) -> ExitCode {
    let tls = match args.tls(SystemTime::now()) {
        Ok(tls) => tls,
        Err(error) => return failed(Exit::Configuration, &error),
    };
    let two = NonZeroUsize::MIN.saturating_add(1);
    let runtime = match runtime::data(Workers::Exactly(two)) {
        Ok(runtime) => runtime,
        Err(error) => return failed(Exit::Runtime, &error),
    };
    let code = runtime.block_on(dial(args, tls));
    // Whoever reads standard input may wait there for ever.
    runtime.shutdown_background();
    code
}

async fn dial(args: &DialArgs, tls: Option<Arc<ClientConfig>>) -> ExitCode {
    let begun = Instant::now();
    let asking = tokio::time::timeout(args.timeout.into(), async {
        let door = args.open(tls).await?;
        let open = begun.elapsed();
        let answer = match args.grpc {
            true => args.ask_grpc(door).await?,
            false => args.ask(door).await?,
        };
        Ok((open, answer))
    });
    let late = || Failure::Late(args.door(), args.timeout);
    let (open, answer) = match asking.await.unwrap_or_else(|_| Err(late())) {
        Ok(asked) => asked,
        Err(error) => return failed(Exit::Runtime, &error),
    };
    let took = format!("{} (door {})", Millis(begun.elapsed()), Millis(open));
    let (early, stream) = match answer {
        Answer::Refused(why) => {
            eprintln!("refused: {}: {why}; {took}", args.target);
            return Exit::Runtime.into();
        }
        Answer::Open(early, stream) => (early, stream),
    };
    let said = format!("open: {} in {took}", args.target);
    match stream.filter(|_| args.pipe) {
        Some(stream) => {
            eprintln!("{said}");
            match pipe(stream, &early).await {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => failed(Exit::Runtime, &error),
            }
        }
        None => match towline_link::process::ask::print(&format!("{said}\n")) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => failed(Exit::Runtime, &error),
        },
    }
}

impl DialArgs {
    fn door(&self) -> String {
        match (&self.socket, &self.connect) {
            (Some(path), _) => path.display().to_string(),
            (None, Some(target)) => target.to_string(),
            (None, None) => "?".to_owned(),
        }
    }

    fn failed(&self, cause: impl fmt::Display, hint: &'static str) -> Failure {
        Failure::Door {
            door: self.door(),
            cause: printable(&cause.to_string()),
            hint,
        }
    }

    /// What a front end shows at the TCP door, and whom it believes there.
    fn tls(&self, now: SystemTime) -> Result<Option<Arc<ClientConfig>>, Failure> {
        let (Some(cert), Some(key), Some(ca)) = (&self.cert, &self.key, &self.ca) else {
            return Ok(None);
        };
        let file = |error: &dyn fmt::Display| Failure::Files(error.to_string());
        let own = Credentials::load(cert, key, Role::Client, now).map_err(|e| file(&e))?;
        let anchors = Anchors::load_for(Role::Server, ca).map_err(|e| file(&e))?;
        let cluster = own.identity().cluster.clone();
        let servers = PeerVerifier::new(cluster, Role::Server, anchors, DenyList::default());
        let config = match self.grpc {
            true => tls::door_client_http2(&own, servers),
            false => tls::door_client(&own, servers),
        };
        config.map(Some).map_err(|error| file(&error))
    }

    async fn open(&self, tls: Option<Arc<ClientConfig>>) -> Result<Box<dyn Io>, Failure> {
        if let Some(path) = &self.socket {
            let stream = UnixStream::connect(path).await;
            let hint = "; is the server running with this --door-unix, and may you use it \
                        (--door-unix-mode, --door-unix-uid)?";
            return match stream {
                Ok(stream) => Ok(Box::new(stream)),
                Err(error) => Err(self.failed(error, hint)),
            };
        }
        let (Some(door), Some(tls)) = (&self.connect, tls) else {
            return Err(self.failed("none was given", ""));
        };
        let hint = "; is the server running with --door-tcp, and is this where it is reached?";
        let stream = TcpStream::connect((door.host.to_string(), door.port())).await;
        let stream = stream.map_err(|error| self.failed(error, hint))?;
        let hint = "; --ca has to be the authority of this cluster's servers";
        let secured = TlsConnector::from(tls).connect(tls::server_name(), stream);
        match secured.await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(error) => Err(self.failed(error, hint)),
        }
    }

    async fn ask(&self, mut door: Box<dyn Io>) -> Result<Answer, Failure> {
        let target = &self.target;
        let request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n");
        let hint = "; does --client-ca take your certificate, and is this a door?";
        let broken = |error: io::Error| self.failed(error, hint);
        door.write_all(request.as_bytes()).await.map_err(broken)?;
        door.flush().await.map_err(broken)?;
        let mut head = Vec::new();
        loop {
            if door.read_buf(&mut head).await.map_err(broken)? == 0 {
                return Err(self.failed("it closed the connection without an answer", hint));
            }
            if let Some((status, phrase, end)) = read_head(&head) {
                return Ok(match status {
                    200 => Answer::Open(head.split_off(end), Some(door)),
                    status => Answer::Refused(format!("{status} {}", printable(&phrase))),
                });
            }
            if head.len() > limits::CONNECT_HEAD_BYTES
                || !b"HTTP/1.1".starts_with(&head[..head.len().min(8)])
            {
                return Err(self.failed("what answers there is no door", ""));
            }
        }
    }

    async fn ask_grpc(&self, door: Box<dyn Io>) -> Result<Answer, Failure> {
        let call = Call {
            authority: "localhost",
            method: PROXY_METHOD,
            metadata: Vec::new(),
            keepalive: limits::GRPC_KEEP_ALIVE,
        };
        let hint = "; is this a door, and does it speak gRPC (--mode)?";
        let mut taken = match client::call(door, call).await {
            Ok(taken) => taken,
            Err(client::CallError::Refused(status)) => {
                return Ok(Answer::Refused(printable(&status.to_string())));
            }
            Err(error) => return Err(self.failed(error, hint)),
        };
        let request = Packet::DialRequest {
            protocol: "tcp".to_owned(),
            address: self.target.to_string(),
            // One dial on a connection of its own needs no lot.
            random: 1,
        };
        let sent = taken.sink.send(&request).await;
        sent.map_err(|error| self.failed(error, hint))?;
        match taken.source.next().await {
            Ok(Some(Packet::DialResponse { error, .. })) if error.is_empty() => {
                Ok(Answer::Open(Vec::new(), None))
            }
            Ok(Some(Packet::DialResponse { error, .. })) => Ok(Answer::Refused(printable(&error))),
            Ok(Some(_)) => Err(self.failed("its first packet is no answer to a dial", "")),
            Ok(None) => match taken.source.status().await {
                Ok(status) => Ok(Answer::Refused(printable(&status.to_string()))),
                Err(error) => Err(self.failed(error, hint)),
            },
            Err(error) => Err(self.failed(error, hint)),
        }
    }
}

/// Status, phrase and length of a head, when it is whole.
fn read_head(bytes: &[u8]) -> Option<(u16, String, usize)> {
    let mut headers = [httparse::EMPTY_HEADER; 32];
    let mut head = httparse::Response::new(&mut headers);
    match head.parse(bytes) {
        Ok(httparse::Status::Complete(end)) => {
            Some((head.code?, head.reason.unwrap_or_default().to_owned(), end))
        }
        _ => None,
    }
}

/// Both directions, until the target has said everything.
async fn pipe(stream: Box<dyn Io>, early: &[u8]) -> io::Result<()> {
    let (mut from, mut to) = tokio::io::split(stream);
    let mut input = standard_input();
    // Not in this task, which standard output may block.
    let mut up = JoinSet::new();
    up.spawn(async move {
        while let Some(chunk) = input.recv().await {
            if to.write_all(&chunk).await.is_err() || to.flush().await.is_err() {
                break;
            }
        }
        // Whether it wants no more is seen by what it says, which is heard to its end.
        let _ = to.shutdown().await;
    });
    let mut out = io::stdout();
    out.write_all(early)?;
    let mut chunk = vec![0; limits::READ_CHUNK];
    loop {
        out.flush()?;
        match from.read(&mut chunk).await? {
            0 => return Ok(()),
            n => out.write_all(&chunk[..n])?,
        }
    }
}

/// What comes by standard input; the thread ends with it, or with the process.
fn standard_input() -> mpsc::Receiver<Vec<u8>> {
    let (send, receive) = mpsc::channel(1);
    let reading = move || {
        let mut chunk = vec![0; limits::READ_CHUNK];
        while let Ok(n @ 1..) = io::stdin().read(&mut chunk) {
            if send.blocking_send(chunk[..n].to_vec()).is_err() {
                return;
            }
        }
    };
    std::thread::spawn(reading);
    receive
}

/// Of another's words what a terminal may be shown.
fn printable(text: &str) -> String {
    let shown = text.chars().filter(|c| !c.is_control());
    shown.take(limits::REASON_PHRASE_BYTES).collect()
}

struct Millis(Duration);

impl fmt::Display for Millis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.1} ms", self.0.as_secs_f64() * 1000.0)
    }
}

fn failed(exit: Exit, error: &dyn fmt::Display) -> ExitCode {
    eprintln!("error: {error}");
    exit.into()
}
