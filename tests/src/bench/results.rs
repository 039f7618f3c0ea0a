//! Every value of every run, by metric and peer, in the order in which they came.

use super::measures::Value;
use super::stats::Spread;

/// All values.
#[derive(Debug, Default)]
pub struct Results {
    metrics: Vec<Metric>,
}

/// One metric of all peers.
#[derive(Debug)]
pub struct Metric {
    pub name: String,
    pub unit: &'static str,
    pub peers: Vec<(&'static str, Vec<f64>)>,
}

impl Results {
    /// Takes in one value.
    pub fn add(&mut self, peer: &'static str, value: Value) {
        let at = self
            .metrics
            .iter()
            .position(|metric| metric.name == value.metric);
        let at = at.unwrap_or_else(|| {
            self.metrics.push(Metric {
                name: value.metric,
                unit: value.unit,
                peers: Vec::new(),
            });
            self.metrics.len() - 1
        });
        let peers = &mut self.metrics[at].peers;
        match peers.iter_mut().find(|(name, _)| *name == peer) {
            Some((_, values)) => values.push(value.value),
            None => peers.push((peer, vec![value.value])),
        }
    }

    /// All metrics.
    pub fn metrics(&self) -> &[Metric] {
        &self.metrics
    }

    /// Median and spread of one metric of one peer.
    pub fn spread(&self, metric: &str, peer: &str) -> Option<Spread> {
        Spread::of(self.metric(metric)?.values(peer)?)
    }

    fn metric(&self, name: &str) -> Option<&Metric> {
        self.metrics.iter().find(|metric| metric.name == name)
    }
}

impl Metric {
    /// The values of one peer.
    pub fn values(&self, peer: &str) -> Option<&[f64]> {
        self.peers
            .iter()
            .find(|(name, _)| *name == peer)
            .map(|(_, values)| values.as_slice())
    }
}
