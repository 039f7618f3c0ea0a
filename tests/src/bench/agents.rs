//! Many idle agents in one process, each with its own certificate and link: load for the server.
//!
//! They are whole agents (heartbeats, probes and all), so that the server's memory for a link is
//! what it is in a cluster.

use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use towline_agent::args::Args;
use towline_agent::config::Config;
use towline_agent::connect::KernelNetwork;
use towline_agent::run::Agent;
use towline_proto::id::Role;

use super::failure::{During, Failure, Result};
use super::process;
use crate::authority::Authority;
use crate::scratch;

/// Agents that are started before those started earlier must have their links: a server bounds
/// its handshakes.
const BATCH: usize = 32;
/// One batch takes no longer.
const PATIENCE: Duration = Duration::from_secs(15);

/// The address of a node's kubelet, on this machine.
pub fn kubelet_address(number: usize) -> Result<IpAddr> {
    let [high, low] = u16::try_from(number)
        .during("number of agents")?
        .to_be_bytes();
    Ok(Ipv4Addr::new(127, 99, high, low).into())
}

/// An agent's name, which is that of its node.
pub fn name(number: usize) -> String {
    format!("idle-{number}")
}

/// Makes certificates for so many agents, each with an address of its own: that of its kubelet, or
/// one where nothing is.
pub fn mint(
    authority: &Authority,
    directory: &Path,
    count: usize,
    with_kubelets: bool,
) -> Result<()> {
    for number in 0..count {
        let low = u16::try_from(number).during("number of agents")?;
        let [high, low] = low.to_be_bytes();
        let address = match with_kubelets {
            true => kubelet_address(number)?,
            false => Ipv4Addr::new(10, 99, high, low).into(),
        };
        let name = name(number);
        let pair = authority.leaf(Role::Agent, &name).ips(&[address]).sign();
        let write = |ending: &str, pem: &str| {
            scratch::replace(&directory.join(format!("{name}.{ending}")), pem).during(&name)
        };
        write("crt", &pair.cert_pem)?;
        write("key", &pair.key_pem)?;
    }
    Ok(())
}

/// Starts the agents, says `ready` when all have a link, and ends with standard input.
pub async fn run(
    server: SocketAddr,
    carrier: &str,
    roots: &Path,
    directory: &Path,
    count: usize,
    kubelet_port: u16,
) -> Result<()> {
    let mut agents = Vec::with_capacity(count);
    for number in 0..count {
        let name = name(number);
        let config = config(server, carrier, roots, directory, &name, kubelet_port);
        let config = config.during(&name)?;
        let agent = Agent::start(config, Arc::new(KernelNetwork::default())).await;
        agents.push(agent.during(&name)?);
        if agents.len().is_multiple_of(BATCH) || agents.len() == count {
            linked(&agents[agents.len().saturating_sub(BATCH)..]).await?;
        }
    }
    linked(&agents).await?;
    process::say_ready(&count.to_string());
    let end = tokio::task::spawn_blocking(process::wait_for_the_end).await;
    end.during("agents: standard input")?
}

/// Waits until each of them has its link.
async fn linked(agents: &[Agent]) -> Result<()> {
    for agent in agents {
        let mut changes = agent.links().watch();
        let up = async {
            while agent.links().ready() == 0 {
                if changes.changed().await.is_err() {
                    return;
                }
            }
        };
        if tokio::time::timeout(PATIENCE, up).await.is_err() {
            let worst = agent.links().worst().unwrap_or_default();
            return Err(Failure::new(format!("agents: {worst}")));
        }
    }
    Ok(())
}

fn config(
    server: SocketAddr,
    carrier: &str,
    roots: &Path,
    directory: &Path,
    name: &str,
    kubelet_port: u16,
) -> Result<Config> {
    let file = |ending: &str| directory.join(format!("{name}.{ending}")).into_os_string();
    let arguments: [OsString; 17] = [
        "towline-agent".into(),
        "--server".into(),
        server.to_string().into(),
        "--cert".into(),
        file("crt"),
        "--key".into(),
        file("key"),
        "--server-ca".into(),
        roots.into(),
        "--carrier".into(),
        carrier.into(),
        "--http-proxy".into(),
        "off".into(),
        "--health-bind".into(),
        "127.0.0.1:0".into(),
        "--kubelet-port".into(),
        kubelet_port.to_string().into(),
    ];
    let args = Args::try_parse_from(arguments).during("flags")?;
    Config::from_args(args).during("configuration")
}
