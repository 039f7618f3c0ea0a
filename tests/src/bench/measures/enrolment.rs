//! Enrolment: thousands of new nodes that all ask for a certificate at once, each with a key and a
//! token of its own. The nodes and the Kubernetes API live in the bench, on the same machine.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::task::JoinSet;
use towline_link::carrier::CarrierKind;
use towline_proto::enrol::EnrolReply;

use super::super::failure::{During, Failure, Result};
use super::super::peers::free_port;
use super::super::process::{Launch, START};
use super::{Turn, Value};
use crate::enrol::{EnrolWorld, Node};

/// New nodes, and in a quick run.
const NODES: (usize, usize) = (5_000, 200);
/// Who has no certificate by then has failed.
const PATIENCE: Duration = Duration::from_secs(60);

pub async fn run(turn: &mut Turn<'_>) -> Result<Vec<Value>> {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).during("descriptors")?;
    let mut world = EnrolWorld::prepared(CarrierKind::Tls, &["--node-cidr", "10.1.0.0/16"]).await;
    world.at(([127, 0, 0, 1], free_port()?).into());
    let args = world.server_args();
    let mut server = Launch::new("server", turn.stage.server()?, turn.directory)
        .args(&args[1..])
        .start()?;
    let count = if turn.options.quick { NODES.1 } else { NODES.0 };
    let mut nodes = Vec::with_capacity(count);
    for number in 0..count {
        let name = format!("node-{number}");
        // As in a cluster: the address goes into the certificate, once nobody else claims it.
        let address = format!("10.1.{}.{}", number / 250, 1 + number % 250);
        world.kube.put_node(&name, &[&address]);
        let proof = world.account_token(&format!("token-{number}"), &name);
        nodes.push((Node::new(), proof));
    }
    let began = Instant::now();
    while world.connect(None).await.is_err() {
        server.check()?;
        if began.elapsed() > START {
            return Err(server.failure("does not enrol"));
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let busy = server.cpu_seconds()?;
    let world = Arc::new(world);
    let mut asking = JoinSet::new();
    let began = Instant::now();
    for (node, proof) in nodes {
        let world = Arc::clone(&world);
        asking.spawn(async move {
            let mut again = 0_u32;
            loop {
                match world.ask(&node, proof.clone(), None, None).await {
                    Ok(EnrolReply::Issued(_)) => return (true, again, began.elapsed(), None),
                    Ok(EnrolReply::Refused { refusal, text }) if !refusal.is_temporary() => {
                        let why = format!("{refusal}: {text}");
                        return (false, again, began.elapsed(), Some(why));
                    }
                    other if began.elapsed() > PATIENCE => {
                        let why = format!("{other:?}");
                        return (false, again, began.elapsed(), Some(why));
                    }
                    _ => again += 1,
                }
                let pause = u64::from(again.min(5)) * 200;
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
        });
    }
    let (mut failed, mut again, mut last, mut why) = (0_usize, 0_u32, Duration::ZERO, None);
    while let Some(done) = asking.join_next().await {
        let (good, more, at, error) = done.map_err(|error| Failure::new(error.to_string()))?;
        failed += usize::from(!good);
        again += more;
        last = last.max(at);
        why = why.or(error);
    }
    if let Some(why) = why {
        turn.notes.push(format!("enrolment: {why}"));
    }
    let path = format!("/proc/{}/status", server.pid());
    let status = fs::read_to_string(&path).during(&path)?;
    let peak = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"))
        .and_then(|kib| kib.trim().parse::<f64>().ok())
        .ok_or_else(|| Failure::new(format!("{path}: no VmHWM")))?;
    let seconds = last.as_secs_f64();
    Ok(vec![
        turn.value("", "1/s", (count - failed) as f64 / seconds),
        turn.value("seconds", "s", seconds),
        turn.value("failed", "", failed as f64),
        turn.value("again", "", f64::from(again)),
        turn.value("cpu.front", "s", server.cpu_seconds()? - busy),
        turn.value("peak.front", "MiB", peak / 1024.0),
    ])
}
