//! Live revocation: how long after a new revocation list is in its place the links of those on it
//! are gone, for one agent of a thousand and for all of them.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use towline_link::process::ask;
use towline_pki::{Certificate, pem};
use towline_proto::id::Role;

use super::super::agents;
use super::super::failure::{During, Failure, Result};
use super::super::peers::{Place, Route, towline};
use super::super::process::START;
use super::{SLACK, Turn, Value};
use crate::scratch;

/// How often the server's number of links is looked at.
const LOOK: Duration = Duration::from_millis(10);
/// Nothing takes longer.
const PATIENCE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);

pub async fn run(turn: &mut Turn<'_>) -> Result<Vec<Value>> {
    let carrier = turn.peer.carrier();
    let carrier = carrier.ok_or_else(|| Failure::new("a peer without revocation"))?;
    let place = Place {
        directory: turn.directory.to_owned(),
        route: Route::Loopback,
        udp_buffer: None,
    };
    let mut chain = towline::start_listed(turn.stage, &place, carrier).await?;
    let (Some(server), Some(address)) = (&chain.front, chain.link) else {
        return Err(Failure::new("no server"));
    };
    let count = turn.times.idle_links;
    let mut idle = towline::idle_agents(turn.stage, turn.directory, carrier, address, count, None)?;
    idle.ready(SLACK + SLACK).await?;
    let serials = (0..count)
        .map(|number| serial(turn.directory, number))
        .collect::<Result<Vec<_>>>()?;
    let socket = turn.path("server-admin");
    let path = turn.path("agents.crl");
    until(&socket, count + 1).await?;

    let issuer = turn.stage.authority.issuer(Role::Agent);
    let revoke = |number: u64, serials: &[String]| {
        let serials: Vec<&str> = serials.iter().map(String::as_str).collect();
        let now = SystemTime::now();
        let list = issuer.list(number, &serials, now - HOUR, now + HOUR);
        scratch::replace(&path, list).during("agents.crl")
    };
    revoke(2, serials.get(..1).unwrap_or_default())?;
    let began = Instant::now();
    until(&socket, count).await?;
    let one = began.elapsed().as_secs_f64();

    let busy = server.cpu_seconds()?;
    revoke(3, &serials)?;
    let began = Instant::now();
    until(&socket, 1).await?;
    let all = began.elapsed().as_secs_f64();
    let busy = server.cpu_seconds()? - busy;
    // Who is on no list goes on.
    chain.wait_until_it_works(START).await?;
    idle.hang_up();
    Ok(vec![
        turn.value("one", "s", one),
        turn.value("all", "s", all),
        turn.value("cpu.front", "s", busy),
    ])
}

fn serial(directory: &Path, number: usize) -> Result<String> {
    let name = agents::name(number);
    let path = directory.join(format!("{name}.crt"));
    let text = std::fs::read(&path).during(&name)?;
    let leaf = pem::certificates(&text).during(&name)?.swap_remove(0);
    let read = Certificate::parse(&leaf).during(&name)?;
    Ok(read.serial.to_string())
}

/// Looks until the server has no more than so many links.
async fn until(socket: &Path, links: usize) -> Result<()> {
    let began = Instant::now();
    loop {
        let live = live(socket.to_owned()).await?;
        if live == links {
            return Ok(());
        }
        if began.elapsed() > PATIENCE {
            return Err(Failure::new(format!("{live} links, not {links}")));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Links of all carriers.
async fn live(socket: PathBuf) -> Result<usize> {
    let asked = tokio::task::spawn_blocking(move || ask::get(&socket, "/metrics")).await;
    let text = String::from_utf8(asked.during("metrics")?.during("metrics")?).during("metrics")?;
    let lines = text.lines();
    Ok(lines
        .filter_map(|line| {
            line.strip_prefix("towline_server_links{")?
                .rsplit(' ')
                .next()
        })
        .filter_map(|number| number.parse::<usize>().ok())
        .sum())
}
