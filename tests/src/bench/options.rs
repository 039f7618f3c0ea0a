//! The command line of `towline-bench`, and what `--quick` shortens.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use regex::Regex;

/// Measures Towline beside a direct connection and a plain two-hop relay, interleaved, in one run.
#[derive(Debug, Parser)]
#[command(name = "towline-bench", version)]
pub struct Cli {
    #[command(subcommand)]
    pub part: Option<Part>,
    #[command(flatten)]
    pub options: Options,
}

/// What to measure and where to put it.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// One short run: shows that everything works, proves nothing.
    #[arg(long)]
    pub quick: bool,
    /// Only measures whose `measure/peer` matches this regular expression.
    #[arg(long, value_name = "REGEX")]
    pub only: Option<Regex>,
    /// Runs, each of all measures and peers [default: 5, or 1 with --quick].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub runs: Option<u32>,
    /// Write every value of every run here.
    #[arg(long, value_name = "FILE")]
    pub json: Option<PathBuf>,
    /// Write the table here, too.
    #[arg(long, value_name = "FILE")]
    pub markdown: Option<PathBuf>,
    /// Path emulator of the long-path part.
    #[arg(long, value_enum, default_value_t = Emulator::Auto)]
    pub emulator: Emulator,
    /// Bytes a second of the emulated path, each way [default: unbounded].
    #[arg(long, value_name = "BYTES")]
    pub rate: Option<u64>,
    /// Bytes that wait for that rate at most [default: unbounded].
    #[arg(long, value_name = "BYTES", requires = "rate")]
    pub queue: Option<u64>,
    /// Say what would be measured, and end.
    #[arg(long)]
    pub list: bool,
    /// Leave the directory with logs and certificates.
    #[arg(long)]
    pub keep: bool,
}

/// How the long path is made.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Emulator {
    /// `tun` as root, else `udp`.
    Auto,
    /// Two network namespaces and TUN devices: both carriers.
    Tun,
    /// A loopback port that forwards datagrams: the quic carrier only.
    Udp,
}

/// The parts of the bench that run as processes of their own. Not for people.
#[derive(Debug, Subcommand)]
pub enum Part {
    /// Many idle agents.
    #[command(hide = true)]
    Agents {
        #[arg(long)]
        server: SocketAddr,
        #[arg(long)]
        carrier: String,
        #[arg(long)]
        roots: PathBuf,
        #[arg(long)]
        directory: PathBuf,
        #[arg(long)]
        count: usize,
        #[arg(long, default_value_t = 10250)]
        kubelet_port: u16,
    },
    /// Becomes another program that dies with the bench.
    #[command(hide = true)]
    Child {
        #[arg(long)]
        netns_of: Option<u32>,
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    /// Does nothing until standard input ends.
    #[command(hide = true)]
    Hold,
    /// The kubelets of many agents, each with a certificate and an address of its own.
    #[command(hide = true)]
    Kubelets {
        #[arg(long)]
        port: u16,
        #[arg(long)]
        directory: PathBuf,
        #[arg(long)]
        count: usize,
    },
    /// Emulates a path until standard input ends.
    #[command(hide = true)]
    Line {
        #[arg(long, requires = "far", conflicts_with = "server")]
        near: Option<u32>,
        #[arg(long)]
        far: Option<u32>,
        #[arg(long)]
        server: Option<SocketAddr>,
        /// Two paths as JSON, outward and inward.
        #[arg(long)]
        paths: String,
    },
    /// Does one job of the load generator.
    #[command(hide = true)]
    Load {
        #[arg(long)]
        door: String,
        #[arg(long)]
        job: String,
    },
    /// One hop of the plain relay.
    #[command(hide = true)]
    Relay {
        #[arg(long, conflicts_with = "unix", required_unless_present = "unix")]
        tcp: Option<SocketAddr>,
        #[arg(long)]
        unix: Option<PathBuf>,
        #[arg(long)]
        to: SocketAddr,
    },
    /// The target.
    #[command(hide = true)]
    Target {
        #[arg(long)]
        listen: SocketAddr,
        /// Speaks TLS and waits for an upgrade, as a kubelet.
        #[arg(long, requires = "key")]
        cert: Option<PathBuf>,
        #[arg(long, requires = "cert")]
        key: Option<PathBuf>,
    },
}

/// How long each kind of sample takes, in seconds.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    pub bulk: f64,
    pub latency: f64,
    pub stalled: f64,
    pub long_warmup: f64,
    pub long: f64,
    /// How long a restarted server is away.
    pub away: f64,
    /// Connections on which the target speaks first.
    pub speaks_first: usize,
    /// Connections that are half-closed, or closed behind bytes.
    pub intact: usize,
    pub idle_dials: usize,
    pub idle_links: usize,
}

impl Options {
    /// Number of runs.
    #[must_use]
    pub fn runs(&self) -> u32 {
        self.runs.unwrap_or(if self.quick { 1 } else { 5 })
    }

    /// Sample lengths.
    #[must_use]
    pub fn times(&self) -> Times {
        if self.quick {
            Times {
                bulk: 0.7,
                latency: 0.5,
                stalled: 0.5,
                long_warmup: 1.0,
                long: 2.0,
                away: 0.3,
                speaks_first: 50,
                intact: 3,
                idle_dials: 200,
                idle_links: 100,
            }
        } else {
            Times {
                bulk: 3.0,
                latency: 2.0,
                stalled: 1.5,
                long_warmup: 2.0,
                long: 6.0,
                away: 1.0,
                speaks_first: 1000,
                intact: 20,
                idle_dials: 1000,
                idle_links: 1000,
            }
        }
    }

    /// Whether this measure of this peer is wanted.
    #[must_use]
    pub fn wants(&self, measure: &str, peer: &str) -> bool {
        self.only
            .as_ref()
            .is_none_or(|only| only.is_match(&format!("{measure}/{peer}")))
    }
}
