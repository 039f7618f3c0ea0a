//! How long everything loaded still lasts: certificates, issuers, trust anchors.
//!
//! The metric `towline_certificate_expiry_seconds{what,path}` is computed when it is scraped,
//! so it is right however long ago the files were read, and negative once something has ended.
//! Of several certificates of one kind in one file the first to end is shown.
//!
//! [`warn_in_time`] writes one log line when 50 %, 25 % and 10 % of a life are left and one
//! when it is over; again after a restart, and again for a renewed certificate.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use towline_pki::Expiry;
use towline_proto::limits;
use tracing::{error, info, warn};

/// Gives everything that is loaded now. Called on every scrape; must not wait.
pub type Source = Arc<dyn Fn() -> Vec<Expiry> + Send + Sync>;

/// Adds `towline_certificate_expiry_seconds` to a registry.
pub fn register(registry: &mut Registry, source: Source) {
    registry.register_collector(Box::new(Ends { source }));
}

struct Ends {
    source: Source,
}

impl fmt::Debug for Ends {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Ends")
    }
}

impl Collector for Ends {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let now = SystemTime::now();
        let mut metric = encoder.encode_descriptor(
            "towline_certificate_expiry_seconds",
            "Seconds until what is loaded ends; negative when it has ended",
            None,
            MetricType::Gauge,
        )?;
        for ((what, path), end) in first_to_end((self.source)()) {
            let labels = [("what", what), ("path", path.display().to_string())];
            ConstGauge::new(seconds_until(end, now)).encode(metric.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

fn first_to_end(all: Vec<Expiry>) -> BTreeMap<(String, PathBuf), SystemTime> {
    let mut ends = BTreeMap::new();
    for Expiry {
        what,
        path,
        not_after,
        ..
    } in all
    {
        ends.entry((what, path))
            .and_modify(|end| *end = not_after.min(*end))
            .or_insert(not_after);
    }
    ends
}

fn seconds_until(end: SystemTime, now: SystemTime) -> i64 {
    let whole = |span: Duration| i64::try_from(span.as_secs()).unwrap_or(i64::MAX);
    match end.duration_since(now) {
        Ok(left) => whole(left),
        Err(over) => -whole(over.duration()),
    }
}

/// How much is left, as far as it is worth a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Left {
    Plenty,
    Half,
    Quarter,
    Tenth,
    Nothing,
}

impl Left {
    fn of(expiry: &Expiry, now: SystemTime) -> Self {
        let Ok(left) = expiry.not_after.duration_since(now) else {
            return Left::Nothing;
        };
        let life = expiry
            .not_after
            .duration_since(expiry.not_before)
            .unwrap_or_default();
        match () {
            () if left <= life / 10 => Left::Tenth,
            () if left <= life / 4 => Left::Quarter,
            () if left <= life / 2 => Left::Half,
            () => Left::Plenty,
        }
    }
}

/// Whether a tenth of its life is left, or less.
pub fn ends_soon(expiry: &Expiry, now: SystemTime) -> bool {
    Left::of(expiry, now) >= Left::Tenth
}

/// Logs each threshold once, until the task is dropped.
pub async fn warn_in_time(source: Source) {
    let mut said = Said::default();
    loop {
        said.look(source(), SystemTime::now());
        tokio::time::sleep(limits::EXPIRY_LOOK).await;
    }
}

/// Which line was written last for what; a renewed certificate is another one.
#[derive(Default)]
struct Said(HashMap<(String, PathBuf, SystemTime), Left>);

impl Said {
    /// Returns what it logged.
    fn look(&mut self, all: Vec<Expiry>, now: SystemTime) -> Vec<Left> {
        let mut before = std::mem::take(&mut self.0);
        let mut logged = Vec::new();
        for expiry in all {
            let left = Left::of(&expiry, now);
            let key = (expiry.what.clone(), expiry.path.clone(), expiry.not_after);
            let last = before
                .remove(&key)
                .or_else(|| self.0.get(&key).copied())
                .unwrap_or(Left::Plenty);
            if left > last {
                log(&expiry, left, now);
                logged.push(left);
            }
            self.0.insert(key, left.max(last));
        }
        logged
    }
}

fn log(expiry: &Expiry, left: Left, now: SystemTime) {
    let Expiry {
        what,
        path,
        not_after,
        ..
    } = expiry;
    let seconds_left = seconds_until(*not_after, now);
    match left {
        Left::Plenty => {}
        Left::Half => info!(
            what,
            ?path,
            seconds_left,
            "less than half of its life is left"
        ),
        Left::Quarter => warn!(
            what,
            ?path,
            seconds_left,
            "less than a quarter of its life is left: renew it"
        ),
        Left::Tenth => error!(
            what,
            ?path,
            seconds_left,
            "less than a tenth of its life is left: renew it now"
        ),
        Left::Nothing => error!(
            what,
            ?path,
            seconds_left,
            "has ended: no new handshake can use it"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn expiry(what: &str, path: &str, from: SystemTime, days: u32) -> Expiry {
        Expiry {
            what: what.to_owned(),
            path: path.into(),
            not_before: from,
            not_after: from + DAY * days,
        }
    }

    #[test]
    fn the_metric_counts_down_and_shows_the_first_to_end() {
        let from = SystemTime::now() - DAY * 10;
        let source: Source = Arc::new(move || {
            vec![
                expiry("certificate", "/a.crt", from, 90),
                expiry("agent-ca", "/ca.crt", from, 20),
                expiry("agent-ca", "/ca.crt", from, 8),
            ]
        });
        let mut registry = Registry::default();
        register(&mut registry, source);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("encoded");
        let value = |line: &str| {
            line.rsplit(' ')
                .next()
                .and_then(|n| n.parse::<i64>().ok())
                .expect("a number")
        };
        let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(lines[0].starts_with(
            "towline_certificate_expiry_seconds{what=\"agent-ca\",path=\"/ca.crt\"} -"
        ));
        let days = 86_400;
        assert!(
            (-2 * days - 5..=-2 * days).contains(&value(lines[0])),
            "{text}"
        );
        assert!(
            (80 * days - 5..=80 * days).contains(&value(lines[1])),
            "{text}"
        );
    }

    #[test]
    fn each_threshold_is_said_once_and_again_after_a_renewal() {
        let from = SystemTime::UNIX_EPOCH + DAY * 365;
        let cert = || vec![expiry("certificate", "/a.crt", from, 100)];
        let mut said = Said::default();
        let mut at = |days: u32| said.look(cert(), from + DAY * days);
        assert_eq!(at(0), []);
        assert_eq!(at(51), [Left::Half]);
        assert_eq!(at(52), []);
        assert_eq!(at(76), [Left::Quarter]);
        assert_eq!(at(91), [Left::Tenth]);
        assert_eq!(at(101), [Left::Nothing]);
        assert_eq!(at(102), []);
        let renewed = expiry("certificate", "/a.crt", from + DAY * 100, 100);
        assert_eq!(said.look(vec![renewed], from + DAY * 191), [Left::Tenth]);
        assert_eq!(said.0.len(), 1, "what is not loaded any more is forgotten");
    }
}
