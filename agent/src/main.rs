//! `towline-agent`: flags, logs, the agent, signals, exit code.

use std::io::Write as _;
use std::num::NonZeroUsize;
use std::sync::Arc;

use clap::Parser;
use rustix::process::{Resource, getrlimit, setrlimit};
use towline_agent::args::Args;
use towline_agent::config::Config;
use towline_agent::connect::KernelNetwork;
use towline_agent::run::Agent;
use towline_link::process::exit::Exit;
use towline_link::process::runtime::{self, Workers};
use towline_link::process::signal::{ServiceManager, Signals, until_ended};
use towline_link::process::{panics, telemetry};
use tracing::{error, info, warn};

fn main() -> Exit {
    let args = Args::parse();
    let check_only = args.check_config;
    let config = match Config::from_args(args) {
        Ok(config) => config,
        Err(error) => return fail(Exit::Configuration, &error),
    };
    if check_only {
        // Nobody has to read it: the exit code says it, too.
        let _ = writeln!(
            std::io::stdout(),
            "configuration is good for {}",
            config.who()
        );
        return Exit::Success;
    }
    let logs = match telemetry::init(config.process.log_format, &config.process.log_level) {
        Ok(logs) => logs,
        Err(error) => return fail(Exit::Configuration, &error),
    };
    let manager = ServiceManager::from_environment().unwrap_or_else(|error| {
        warn!(%error, "the service manager cannot be told anything");
        ServiceManager::default()
    });
    panics::install_hook();
    raise_descriptors();
    let workers = NonZeroUsize::new(config.process.workers.into()).unwrap_or(NonZeroUsize::MIN);
    let runtime = match runtime::data(Workers::Exactly(workers)) {
        Ok(runtime) => runtime,
        Err(error) => return fail(Exit::Runtime, &error),
    };
    let exit = runtime.block_on(Box::pin(run(config, manager)));
    drop(logs);
    exit
}

async fn run(config: Config, manager: ServiceManager) -> Exit {
    let mut signals = match Signals::install() {
        Ok(signals) => signals,
        Err(error) => return fail(Exit::Runtime, &error),
    };
    for note in config.compatible.iter().flat_map(|profile| &profile.notes) {
        warn!("{note}");
    }
    info!(identity = %config.who(), reach = ?config.reach, policy = ?config.policy, "starting");
    let agent = match Agent::start(config, Arc::new(KernelNetwork::default())).await {
        Ok(agent) => agent,
        Err(error) => {
            error!(%error, "cannot start");
            return Exit::Runtime;
        }
    };
    let (daemon, readiness) = (agent.daemon(), agent.readiness());
    let ended = until_ended(
        &mut signals,
        &manager,
        daemon,
        readiness,
        agent.stage(),
        agent.wait(),
    );
    match ended.await {
        Ok(()) => {
            info!("stopped");
            Exit::Success
        }
        Err(error) => {
            error!(%error, "stopped");
            Exit::Runtime
        }
    }
}

fn fail(exit: Exit, error: &dyn std::error::Error) -> Exit {
    eprintln!("error: {error}");
    exit
}

/// Each dial needs a descriptor; the soft limit of most systems is 1,024.
fn raise_descriptors() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, limit);
}
