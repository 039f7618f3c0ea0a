//! What the audit trail counts.

use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use super::trail::Shared;

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct EventLabel {
    event: &'static str,
}

/// Counted as things happen. Clones are the same numbers.
#[derive(Clone, Debug, Default)]
pub struct AuditMetrics {
    records: Family<EventLabel, Counter>,
    /// Bytes written.
    pub bytes: Counter,
    /// Records that were not written.
    pub dropped: Counter,
    /// Dials refused for it.
    pub dials_refused: Counter,
    /// Writes and syncs that failed.
    pub write_failures: Counter,
    /// Files begun.
    pub rotations: Counter,
}

impl AuditMetrics {
    /// Counts one record.
    pub fn record(&self, event: &'static str) {
        self.records.get_or_create(&EventLabel { event }).inc();
    }

    pub(super) fn register(&self, registry: &mut Registry, shared: Arc<Shared>) {
        registry.register(
            "towline_server_audit_records",
            "Records added to the audit trail, by event",
            self.records.clone(),
        );
        registry.register(
            "towline_server_audit_bytes",
            "Bytes written to the audit trail",
            self.bytes.clone(),
        );
        registry.register(
            "towline_server_audit_dropped",
            "Records that could not be written to the audit trail",
            self.dropped.clone(),
        );
        registry.register(
            "towline_server_audit_dials_refused",
            "Dials refused because the audit trail could not be written",
            self.dials_refused.clone(),
        );
        registry.register(
            "towline_server_audit_write_failures",
            "Writes to the audit trail that failed, repeated ones too",
            self.write_failures.clone(),
        );
        registry.register(
            "towline_server_audit_rotations",
            "Files of the audit trail that were begun after the first",
            self.rotations.clone(),
        );
        registry.register_collector(Box::new(Now(shared)));
    }
}

/// What is asked for when somebody looks.
#[derive(Debug)]
struct Now(Arc<Shared>);

impl Collector for Now {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut gauge = |name: &str, help: &str, value: f64| {
            let gauge = ConstGauge::new(value);
            let metric = encoder.encode_descriptor(
                name,
                help,
                None,
                prometheus_client::metrics::MetricType::Gauge,
            )?;
            gauge.encode(metric)
        };
        let waiting = u32::try_from(self.0.waiting()).unwrap_or(u32::MAX);
        gauge(
            "towline_server_audit_queue",
            "Records that wait for the writer of the audit trail",
            f64::from(waiting),
        )?;
        gauge(
            "towline_server_audit_checkpoint_age_seconds",
            "Time since the last signed checkpoint of the audit trail was on the disk",
            self.0.checkpoint_age().as_secs_f64(),
        )?;
        gauge(
            "towline_server_audit_failing",
            "1 while the audit trail cannot be written",
            if self.0.obstacle().is_some() {
                1.0
            } else {
                0.0
            },
        )
    }
}
