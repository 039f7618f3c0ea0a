//! What the kernel says about one process: CPU time used and memory held.

use std::fs;

use serde::Serialize;

use super::failure::{During, Failure, Result};

/// Processor time of a process so far (user and system, all threads), in seconds.
pub fn cpu_seconds(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).during(&path)?;
    // The second field is the program's name in parentheses and may contain anything.
    let fields = text
        .rsplit_once(')')
        .map(|(_, rest)| rest.split_ascii_whitespace().collect::<Vec<_>>());
    let ticks = |index: usize| fields.as_ref()?.get(index)?.parse::<u64>().ok();
    match (ticks(11), ticks(12)) {
        (Some(user), Some(system)) => {
            Ok((user + system) as f64 / rustix::param::clock_ticks_per_second() as f64)
        }
        _ => Err(Failure::new(format!("{path}: no processor times in it"))),
    }
}

/// Resident memory of a process, in KiB.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Memory {
    /// All resident pages, the program's own text included.
    pub rss: f64,
    /// Pages that only this process has.
    pub anonymous: f64,
}

/// Resident memory of a process now.
pub fn memory(pid: u32) -> Result<Memory> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).during(&path)?;
    let kib = |key: &str| {
        text.lines()
            .find_map(|line| {
                line.strip_prefix(key)?
                    .trim()
                    .strip_suffix(" kB")?
                    .trim()
                    .parse::<f64>()
                    .ok()
            })
            .ok_or_else(|| Failure::new(format!("{path}: no {key}")))
    };
    Ok(Memory {
        rss: kib("VmRSS:")?,
        anonymous: kib("RssAnon:")?,
    })
}

/// The three load averages.
pub fn load_average() -> Result<[f64; 3]> {
    let text = fs::read_to_string("/proc/loadavg").during("/proc/loadavg")?;
    let mut values = text
        .split_ascii_whitespace()
        .map_while(|word| word.parse().ok());
    match (values.next(), values.next(), values.next()) {
        (Some(one), Some(five), Some(fifteen)) => Ok([one, five, fifteen]),
        _ => Err(Failure::new("/proc/loadavg: not three numbers")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_process_can_be_read() {
        let pid = std::process::id();
        assert!(cpu_seconds(pid).expect("times") >= 0.0);
        assert!(memory(pid).expect("memory").rss > 100.0);
    }
}
