//! `towline-server`: flags, logs, the server, signals, exit code.

use std::io::Write as _;
use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::SystemTime;

use rustix::process::{Resource, getrlimit, setrlimit};
use towline_link::process::exit::Exit;
use towline_link::process::runtime::{self, Workers};
use towline_link::process::signal::{ServiceManager, Signals, until_ended};
use towline_link::process::telemetry::Logs;
use towline_link::process::{panics, telemetry};
use towline_server::args::Args;
use towline_server::config::Config;
use towline_server::run::Server;
use towline_server::starting;
use towline_server::verb::{self, Asked};
use tracing::{error, info, warn};

fn main() -> ExitCode {
    match verb::ask(|name| std::env::var_os(name)) {
        Asked::Daemon(args) => {
            let compatible = args.konnectivity.compatibility.is_some();
            match serve(*args) {
                // Konnectivity's programs know success and failure only.
                Exit::Configuration if compatible => Exit::Runtime.into(),
                exit => exit.into(),
            }
        }
        Asked::Answered(code) => code,
    }
}

fn serve(args: Args) -> Exit {
    let check_only = args.check_config;
    let manager = ServiceManager::from_environment();
    let config = match Config::from_args(args) {
        Ok(config) => config,
        Err(error) => return fail(Exit::Configuration, &error),
    };
    if check_only {
        for warning in config.warnings(SystemTime::now()) {
            eprintln!("warning: {warning}");
        }
        let who = match &config.own {
            Some(own) => own.trust.identity().to_string(),
            None => "a server without an identity of its own".to_owned(),
        };
        // Nobody has to read it: the exit code says it, too.
        let _ = writeln!(std::io::stdout(), "configuration is good for {who}");
        return Exit::Success;
    }
    let manager = match manager {
        Ok(manager) => manager,
        Err(error) => return fail(Exit::Configuration, &error),
    };
    let logs = match telemetry::init(config.process.log_format, &config.process.log_level) {
        Ok(logs) => logs,
        Err(error) => return fail(Exit::Configuration, &error),
    };
    panics::install_hook();
    raise_descriptors();
    let workers = match NonZeroUsize::new(config.process.workers.into()) {
        Some(count) => Workers::Exactly(count),
        None => Workers::PerProcessor,
    };
    let runtime = match runtime::data(workers) {
        Ok(runtime) => runtime,
        Err(error) => return fail(Exit::Runtime, &error),
    };
    runtime.block_on(Box::pin(run(config, manager, &logs)))
}

async fn run(config: Config, manager: ServiceManager, logs: &Logs) -> Exit {
    let mut signals = match Signals::install() {
        Ok(signals) => signals,
        Err(error) => {
            error!(%error, "cannot take signals over");
            return Exit::Runtime;
        }
    };
    starting::log(&config);
    for warning in config.warnings(SystemTime::now()) {
        warn!("{warning}");
    }
    let server = match Server::start_with(config, |registry| logs.register(registry)).await {
        Ok(server) => server,
        Err(error) => {
            error!(%error, "cannot start");
            return Exit::Runtime;
        }
    };
    info!(
        links = %server.link_address(),
        door_unix = ?server.door_unix(),
        door_tcp = ?server.door_tcp(),
        health = %server.health_address(),
        "listening"
    );
    let daemon = Arc::clone(server.control());
    let ended = until_ended(
        &mut signals,
        &manager,
        &*daemon,
        server.readiness(),
        server.stage(),
        server.wait(),
    );
    let ended = ended.await;
    server.close().await;
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
