//! The bench: Towline beside a direct connection and a plain relay, measured with real processes.
//!
//! Reading order: [`options`] (the command line), [`run`] (who is measured when), [`measures`] (what is
//! measured), [`peers`] (who), [`load`] and [`target`] (the two ends of every chain), [`targets`] and
//! [`report`] (what comes out). `tests/bench/README.md` says how to read the figures.

pub mod agents;
pub mod door;
pub mod failure;
pub mod grpc;
pub mod kubelets;
pub mod load;
pub mod measures;
pub mod options;
pub mod peers;
pub mod process;
pub mod procfs;
pub mod relay;
pub mod report;
pub mod results;
pub mod run;
pub mod stats;
pub mod target;
pub mod targets;
pub mod wire;

use clap::Parser;

use crate::emulator::line::Path;
use crate::emulator::{tun, udp};
use failure::{During, Failure, Result};
use options::{Cli, Part};

/// The whole program.
pub fn main() -> Result<()> {
    let cli = Cli::parse();
    // One thread is enough for each part: the parts are processes of their own.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = runtime.during("runtime")?;
    match cli.part {
        None => runtime.block_on(run::run(&cli.options)),
        Some(Part::Agents {
            server,
            carrier,
            roots,
            directory,
            count,
            kubelet_port: port,
        }) => runtime.block_on(agents::run(
            server, &carrier, &roots, &directory, count, port,
        )),
        Some(Part::Kubelets {
            port,
            directory,
            count,
        }) => runtime.block_on(kubelets::run(port, &directory, count)),
        Some(Part::Child { netns_of, command }) => Err(process::become_program(netns_of, &command)),
        Some(Part::Hold) => {
            process::say_ready("");
            process::wait_for_the_end()
        }
        Some(Part::Line {
            near,
            far,
            server,
            paths,
        }) => line(near, far, server, &paths),
        Some(Part::Load { door, job }) => runtime.block_on(load::run(&door, &job)),
        Some(Part::Relay { tcp, unix, to }) => {
            let listen = tcp
                .map(relay::Listen::Tcp)
                .or(unix.map(relay::Listen::Unix));
            let listen = listen.ok_or_else(|| Failure::new("relay: --tcp or --unix"))?;
            runtime.block_on(relay::run(listen, to))
        }
        Some(Part::Target { listen, cert, key }) => {
            runtime.block_on(target::run(listen, cert.zip(key)))
        }
    }
}

/// Body of the `line` subcommand: emulates a path, then says what became of the packets.
fn line(
    near: Option<u32>,
    far: Option<u32>,
    server: Option<std::net::SocketAddr>,
    paths: &str,
) -> Result<()> {
    let (outward, inward): (Path, Path) = serde_json::from_str(paths).during("line: paths")?;
    let forwarder = match (near, far, server) {
        (Some(near), Some(far), None) => {
            let forwarder = tun::start(near, far, outward, inward)?;
            process::say_ready("");
            forwarder
        }
        (None, None, Some(server)) => {
            let (address, forwarder) = udp::start(server, outward, inward).during("line")?;
            process::say_ready(&address.to_string());
            forwarder
        }
        _ => return Err(Failure::new("line: --near and --far, or --server")),
    };
    process::wait_for_the_end()?;
    let traffic = forwarder.stop().during("line")?;
    process::say(&serde_json::to_string(&traffic).during("line")?);
    Ok(())
}
