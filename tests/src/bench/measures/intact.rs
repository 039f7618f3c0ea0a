//! What arrives of connections that are not plain questions and answers, in percent of all.

use std::time::Duration;

use serde_json::Value as Json;

use super::super::door::Door;
use super::super::failure::{During, Failure, Result};
use super::super::load::Job;
use super::super::load::intact::{self, Intact, What};
use super::super::process::Launch;
use super::super::wire;
use super::{SLACK, Turn, Value};
use crate::konnectivity::programs::Program;

/// The real client's turn takes no longer.
const REAL: Duration = Duration::from_secs(60);

pub async fn run(turn: &mut Turn<'_>, what: What) -> Result<Vec<Value>> {
    // What is left behind must not be in the next measure's way.
    let chain = turn.chain().await?;
    let count = match what {
        What::SpeaksFirst => turn.times.speaks_first,
        What::HalfClose | What::BytesBeforeClose => turn.times.intact,
    };
    let intact = match &chain.door {
        // The hazard is in the real client: DATA right behind DIAL_RSP.
        Door::Grpc { path, target } if what == What::SpeaksFirst => {
            intact::speak_first(&chain.door, count as u64).await?;
            real_client(turn, path, target, count).await?
        }
        _ => turn.load(&chain.door, &Job::Intact { what, count }).await?,
    };
    if let Some(fault) = &intact.fault {
        turn.notes.push(format!(
            "run {}, {}/{}: {} of {} broken, such as: {fault}",
            turn.run,
            turn.measure.name,
            turn.peer.name,
            intact.count - intact.good,
            intact.count
        ));
    }
    let percent = 100.0 * intact.good as f64 / intact.count.max(1) as f64;
    Ok(vec![turn.value("", "%", percent)])
}

/// konnectivity-client of kube-apiserver's release, a tunnel for each dial.
async fn real_client(
    turn: &Turn<'_>,
    path: &std::path::Path,
    target: &str,
    count: usize,
) -> Result<Intact> {
    let program = Program::FrontEnd.build().during("front end")?;
    let mut launch = Launch::new("front-end", &program, turn.directory);
    launch.piped = true;
    let path = path
        .to_str()
        .ok_or_else(|| Failure::new("a path that is not UTF-8"))?;
    let mut process = launch.args(["single", path]).start()?;
    process.line(REAL).await?;
    let want = String::from_utf8_lossy(&wire::reply(0)).into_owned();
    let request = serde_json::json!({
        "id": 1, "verb": "hear", "target": target, "want": want, "count": count, "workers": 4,
        "limit_ms": REAL.as_millis() as u64,
    });
    process.tell(&request.to_string()).await?;
    let line = process.line(REAL + SLACK).await?;
    let answer: Json = serde_json::from_str(&line).during("front end: answer")?;
    let fault = answer["error"].as_str().map(str::to_owned).or_else(|| {
        let errors = answer["errors"].as_object()?;
        errors.keys().next().cloned()
    });
    Ok(Intact {
        count,
        good: answer["good"].as_u64().unwrap_or(0) as usize,
        fault,
    })
}
