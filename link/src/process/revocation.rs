//! Revocation lists that are in force, for people: metrics, and a note of readiness.
//!
//! The alarm of a list has three causes: `half-life` (half of its time is over, so its renewal is
//! due), `stale` (its next update is overdue) and `refused` (a file was not taken, and an older
//! list is in force). None of them makes the daemon unready: what a stale list means for peers is
//! said by `--crl-policy`, and turning load balancers away would help nobody.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use towline_pki::crl::{CrlFault, CrlPolicy, CrlState};
use towline_pki::date;
use towline_proto::limits;

use super::ready::Condition;

/// Gives the lists that are in force and the files that are not. Called on every scrape; must not
/// wait.
pub type Source = Arc<dyn Fn() -> (Vec<CrlState>, Vec<CrlFault>) + Send + Sync>;

/// Adds the metrics to a registry.
pub fn register(registry: &mut Registry, source: Source) {
    registry.register_collector(Box::new(Lists { source }));
}

struct Lists {
    source: Source,
}

impl fmt::Debug for Lists {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lists")
    }
}

impl Collector for Lists {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let (lists, faults) = (self.source)();
        let now = SystemTime::now();
        let left = |list: &CrlState| date::seconds(list.next_update) - date::seconds(now);
        let mut gauge = |name: &str, help: &str, rows: Vec<(String, String, i64)>| {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (what, issuer, value) in rows {
                let labels = [("what", what), ("issuer", issuer)];
                ConstGauge::new(value).encode(metric.encode_family(&labels)?)?;
            }
            Ok::<(), fmt::Error>(())
        };
        let rows = |value: &dyn Fn(&CrlState) -> i64| {
            // An issuer has one list of a kind; labels must not be there twice in any case.
            let rows = lists
                .iter()
                .map(|list| ((list.what.clone(), list.issuer.clone()), value(list)));
            let rows: BTreeMap<_, _> = rows.collect();
            rows.into_iter()
                .map(|((what, issuer), value)| (what, issuer, value))
                .collect()
        };
        gauge(
            "towline_crl_next_update_seconds",
            "Seconds until a revocation list must have a successor; negative when that is overdue",
            rows(&left),
        )?;
        gauge(
            "towline_crl_revoked_certificates",
            "Certificates on a revocation list that is in force",
            rows(&|list| i64::try_from(list.revoked).unwrap_or(i64::MAX)),
        )?;
        let mut metric = encoder.encode_descriptor(
            "towline_crl_alarms",
            "What is wrong with revocation lists: half-life, stale, refused",
            None,
            MetricType::Gauge,
        )?;
        for (cause, count) in alarms(&lists, &faults, now) {
            ConstGauge::new(count).encode(metric.encode_family(&[("cause", cause)])?)?;
        }
        Ok(())
    }
}

/// How many lists there are with each cause of alarm.
fn alarms(lists: &[CrlState], faults: &[CrlFault], now: SystemTime) -> [(&'static str, i64); 3] {
    let count = |wanted: Age| {
        let found = lists.iter().filter(|list| Age::of(list, now) == wanted);
        i64::try_from(found.count()).unwrap_or(i64::MAX)
    };
    [
        ("half-life", count(Age::HalfLife)),
        ("stale", count(Age::Stale)),
        ("refused", i64::try_from(faults.len()).unwrap_or(i64::MAX)),
    ]
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Age {
    Fresh,
    HalfLife,
    Stale,
}

impl Age {
    fn of(list: &CrlState, now: SystemTime) -> Self {
        let life = list.next_update.duration_since(list.this_update);
        let half = list.this_update.checked_add(life.unwrap_or_default() / 2);
        if date::seconds(now) > date::seconds(list.next_update) {
            Age::Stale
        } else if half.is_none_or(|half| now >= half) {
            Age::HalfLife
        } else {
            Age::Fresh
        }
    }
}

/// Keeps the condition, which is met and carries a note while there is an alarm.
pub async fn keep_noted(source: Source, condition: Condition) {
    loop {
        let (lists, faults) = source();
        match note(&lists, &faults, SystemTime::now()) {
            Some(text) => condition.note(text),
            None => condition.met(),
        }
        tokio::time::sleep(limits::REVOCATION_LOOK).await;
    }
}

/// The worst, in words.
fn note(lists: &[CrlState], faults: &[CrlFault], now: SystemTime) -> Option<String> {
    if let Some(CrlFault { what, error }) = faults.first() {
        return Some(format!(
            "the new file of {what} is not in force, an older list is: {error}"
        ));
    }
    let aged = |wanted: Age| lists.iter().find(|list| Age::of(list, now) == wanted);
    if let Some(list) = aged(Age::Stale) {
        let meaning = match list.policy {
            CrlPolicy::KeepLast => "it still counts (--crl-policy keep-last)",
            CrlPolicy::FailClosed => "peers are refused (--crl-policy fail-closed)",
        };
        return Some(format!(
            "{} of {} is past its next update, {}: {meaning}; run towline-pki crl renew",
            list.what,
            list.issuer,
            date::text(list.next_update)
        ));
    }
    aged(Age::HalfLife).map(|list| {
        format!(
            "{} of {} has less than half of its life left, until {}: run towline-pki crl renew",
            list.what,
            list.issuer,
            date::text(list.next_update)
        )
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn list(policy: CrlPolicy) -> CrlState {
        let made = date::from_seconds(1_793_000_000);
        CrlState {
            what: "agent-crl".into(),
            path: "/agents.crl".into(),
            issuer: "CN=agents".into(),
            number: "4".into(),
            revoked: 2,
            this_update: made,
            next_update: made + DAY * 30,
            policy,
        }
    }

    #[test]
    fn a_list_is_a_note_from_half_of_its_life_on() {
        let lists = [list(CrlPolicy::KeepLast)];
        let at = |days: u32| lists[0].this_update + DAY * days;
        assert_eq!(note(&lists, &[], at(14)), None);
        let half = note(&lists, &[], at(15)).unwrap();
        assert!(half.contains("less than half"), "{half}");
        let stale = note(&lists, &[], at(31)).unwrap();
        assert!(stale.contains("still counts"), "{stale}");
        let closed = note(&[list(CrlPolicy::FailClosed)], &[], at(31)).unwrap();
        assert!(closed.contains("refused"), "{closed}");
        for (day, expected) in [(14, [0, 0, 0]), (15, [1, 0, 0]), (31, [0, 1, 0])] {
            let counts = alarms(&lists, &[], at(day)).map(|(_, count)| count);
            assert_eq!(counts, expected, "day {day}");
        }
    }

    #[test]
    fn a_file_that_was_not_taken_comes_first() {
        let fault = CrlFault {
            what: "agent-crl".into(),
            error: "is an older one".into(),
        };
        let lists = [list(CrlPolicy::KeepLast)];
        let text = note(&lists, std::slice::from_ref(&fault), lists[0].this_update).unwrap();
        assert!(text.contains("an older list is: is an older one"), "{text}");
    }
}
