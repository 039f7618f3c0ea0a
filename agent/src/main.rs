//! `towline-agent`: flags, logs, the agent, signals, exit code.

use std::io::Write as _;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::SystemTime;

use clap::{CommandFactory, FromArgMatches};
use rustix::process::{Resource, getrlimit, setrlimit};
use towline_agent::args::{Args, with_enrolment};
use towline_agent::config::Config;
use towline_agent::connect::KernelNetwork;
use towline_agent::enrol::waiting::Waiting;
use towline_agent::run::Agent;
use towline_agent::starting;
use towline_link::process::admin::AdminError;
use towline_link::process::exit::Exit;
use towline_link::process::runtime::{self, Workers};
use towline_link::process::signal::{ServiceManager, Signals, until_ended};
use towline_link::process::telemetry::Logs;
use towline_link::process::{panics, telemetry, usage};
use tracing::{error, info, warn};

fn main() -> Exit {
    let flags = usage::without_service_links(Args::command(), |name| std::env::var_os(name));
    let read = flags.try_get_matches();
    let args = match read.and_then(|matches| Args::from_arg_matches(&matches)) {
        Ok(args) => args,
        Err(error) => {
            let environment = std::env::var_os("TOWLINE_COMPATIBILITY");
            let words = std::env::args_os().skip(1);
            let error = with_enrolment(error);
            usage::refuse(&error, usage::is_compatible(words, environment.as_deref()))
        }
    };
    let compatible = args.konnectivity.compatibility.is_some();
    match serve(args) {
        // Konnectivity's programs know success and failure only.
        Exit::Configuration if compatible => Exit::Runtime,
        exit => exit,
    }
}

fn serve(args: Args) -> Exit {
    let check_only = args.check_config;
    let config = match Config::from_args(args) {
        Ok(config) => config,
        Err(error) => return fail(Exit::Configuration, &error),
    };
    if check_only {
        for warning in config.warnings(SystemTime::now()) {
            eprintln!("warning: {warning}");
        }
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
    runtime.block_on(Box::pin(run(config, manager, &logs)))
}

async fn run(mut config: Config, manager: ServiceManager, logs: &Logs) -> Exit {
    let mut signals = match Signals::install() {
        Ok(signals) => signals,
        Err(error) => return fail(Exit::Runtime, &error),
    };
    starting::log(&config);
    for note in config.compatible.iter().flat_map(|profile| &profile.notes) {
        warn!("{note}");
    }
    match enrolled(&mut config, &mut signals, &manager, logs).await {
        Ok(true) => {}
        Ok(false) => {
            info!("stopped before there was a certificate");
            return Exit::Success;
        }
        Err(error) => {
            error!(%error, "cannot start");
            return Exit::Runtime;
        }
    }
    // What was enrolled is known by now.
    for warning in config.warnings(SystemTime::now()) {
        warn!("{warning}");
    }
    let network = Arc::new(KernelNetwork::default());
    let starting = Agent::start_with(config, network, |registry| logs.register(registry));
    let agent = match Box::pin(starting).await {
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
    let ended = ended.await;
    agent.close().await;
    match ended {
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

/// Waits for the first certificate, where one is needed; false when we are told to stop.
async fn enrolled(
    config: &mut Config,
    signals: &mut Signals,
    manager: &ServiceManager,
    logs: &Logs,
) -> Result<bool, AdminError> {
    let Some(waiting) = Waiting::begin(config, |registry| logs.register(registry))? else {
        return Ok(true);
    };
    info!("no certificate yet, enrolling");
    let (daemon, readiness, stage) = (waiting.daemon(), waiting.readiness(), waiting.stage());
    let got = waiting.certificate();
    let got = until_ended(signals, manager, &*daemon, &readiness, stage, got);
    config.identity = got.await;
    Ok(config.identity.is_some())
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
