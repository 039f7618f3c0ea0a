//! Metrics in Prometheus' classic text format, for families whose names, labels, HELP and TYPE
//! must be to the letter those of another program.
//!
//! A series that was never used is not written, and neither is a family without series: who reads
//! these compares every line. [`from_open_metrics`] brings our own families into the same page.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use towline_proto::limits;

/// What a family is.
#[derive(Clone, Copy, Debug)]
pub struct Description {
    /// Whole name.
    pub name: &'static str,
    /// HELP text.
    pub help: &'static str,
    /// Names of its labels, in the order in which values are given.
    pub labels: &'static [&'static str],
    /// Upper bounds, for histograms.
    pub buckets: &'static [f64],
}

/// One line (or, for a histogram, several) of a family.
pub trait Series: Send + Sync + 'static {
    /// The word after TYPE.
    const KIND: &'static str;
    /// A new one.
    fn new(description: &Description) -> Self;
    /// Whether it is written.
    fn is_used(&self) -> bool;
    /// Writes it; `labels` is empty or `{a="b"}`.
    fn write(&self, description: &Description, labels: &Labels<'_>, out: &mut String);
}

/// Names and values of labels.
pub struct Labels<'a> {
    names: &'a [&'static str],
    values: &'a [String],
}

impl Labels<'_> {
    /// As they stand behind a name, sorted as Go sorts them; `more` is one label at the end.
    fn text(&self, more: Option<(&str, &str)>) -> String {
        let mut pairs: Vec<(&str, &str)> = self
            .names
            .iter()
            .copied()
            .zip(self.values.iter().map(String::as_str))
            .collect();
        pairs.sort_unstable();
        pairs.extend(more);
        if pairs.is_empty() {
            return String::new();
        }
        let quoted = pairs.into_iter().map(|(name, value)| {
            let value = value
                .replace('\\', "\\\\")
                .replace('"', "\\\"")
                .replace('\n', "\\n");
            format!("{name}=\"{value}\"")
        });
        format!("{{{}}}", quoted.collect::<Vec<_>>().join(","))
    }
}

/// Counts up.
#[derive(Debug)]
pub struct Counter {
    value: AtomicU64,
    shown: AtomicBool,
}

impl Counter {
    /// One more.
    pub fn inc(&self) {
        self.value.fetch_add(1, Ordering::Relaxed);
    }

    /// From now on it is written, also when it is 0.
    pub fn show(&self) {
        self.shown.store(true, Ordering::Relaxed);
    }

    /// So far.
    pub fn get(&self) -> u64 {
        self.value.load(Ordering::Relaxed)
    }
}

impl Series for Counter {
    const KIND: &'static str = "counter";

    fn new(_: &Description) -> Self {
        Self {
            value: AtomicU64::new(0),
            shown: AtomicBool::new(false),
        }
    }

    fn is_used(&self) -> bool {
        self.get() > 0 || self.shown.load(Ordering::Relaxed)
    }

    fn write(&self, description: &Description, labels: &Labels<'_>, out: &mut String) {
        line(out, description.name, &labels.text(None), self.get() as f64);
    }
}

/// Goes up and down.
#[derive(Debug)]
pub struct Gauge {
    value: AtomicI64,
    used: AtomicBool,
}

impl Gauge {
    /// Sets it; from then on it is written, also when it is 0.
    pub fn set(&self, value: i64) {
        self.value.store(value, Ordering::Relaxed);
        self.used.store(true, Ordering::Relaxed);
    }

    /// Changes it.
    pub fn add(&self, change: i64) {
        self.value.fetch_add(change, Ordering::Relaxed);
        self.used.store(true, Ordering::Relaxed);
    }

    /// Now.
    pub fn get(&self) -> i64 {
        self.value.load(Ordering::Relaxed)
    }
}

impl Series for Gauge {
    const KIND: &'static str = "gauge";

    fn new(_: &Description) -> Self {
        Self {
            value: AtomicI64::new(0),
            used: AtomicBool::new(false),
        }
    }

    fn is_used(&self) -> bool {
        self.used.load(Ordering::Relaxed)
    }

    fn write(&self, description: &Description, labels: &Labels<'_>, out: &mut String) {
        line(out, description.name, &labels.text(None), self.get() as f64);
    }
}

/// Durations, in buckets. Nobody waits for another: every packet may be observed.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [f64],
    /// One for each bound, and one for what is above all of them.
    counts: Vec<AtomicU64>,
    nanoseconds: AtomicU64,
}

impl Histogram {
    /// One more of this length.
    pub fn observe(&self, length: Duration) {
        let seconds = length.as_secs_f64();
        let place = self.bounds.iter().position(|bound| seconds <= *bound);
        if let Some(count) = self.counts.get(place.unwrap_or(self.bounds.len())) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let nanoseconds = u64::try_from(length.as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    fn counts(&self) -> impl Iterator<Item = u64> {
        self.counts
            .iter()
            .map(|count| count.load(Ordering::Relaxed))
    }
}

impl Series for Histogram {
    const KIND: &'static str = "histogram";

    fn new(description: &Description) -> Self {
        let all = 0..=description.buckets.len();
        Self {
            bounds: description.buckets,
            counts: all.map(|_| AtomicU64::new(0)).collect(),
            nanoseconds: AtomicU64::new(0),
        }
    }

    fn is_used(&self) -> bool {
        self.counts().any(|count| count > 0)
    }

    fn write(&self, description: &Description, labels: &Labels<'_>, out: &mut String) {
        let name = description.name;
        let mut below = 0;
        let bounds = self.bounds.iter().copied().chain([f64::INFINITY]);
        for (bound, count) in bounds.zip(self.counts()) {
            below += count;
            let labels = labels.text(Some(("le", &number(bound))));
            line(out, &format!("{name}_bucket"), &labels, below as f64);
        }
        let labels = labels.text(None);
        let sum = Duration::from_nanos(self.nanoseconds.load(Ordering::Relaxed));
        line(out, &format!("{name}_sum"), &labels, sum.as_secs_f64());
        line(out, &format!("{name}_count"), &labels, below as f64);
    }
}

/// All series of one family.
#[derive(Debug)]
pub struct Family<S> {
    description: Description,
    series: Mutex<BTreeMap<Vec<String>, Arc<S>>>,
}

impl<S: Series> Family<S> {
    /// The series with these values of the labels. Beyond [`limits::METRIC_SERIES`] all further
    /// ones are one, with `other` in every label.
    pub fn with(&self, values: &[&str]) -> Arc<S> {
        let mut series = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        let mut key: Vec<String> = values.iter().map(|value| (*value).to_owned()).collect();
        if series.len() >= limits::METRIC_SERIES && !series.contains_key(&key) {
            key = vec!["other".to_owned(); values.len()];
        }
        let new = || Arc::new(S::new(&self.description));
        Arc::clone(series.entry(key).or_insert_with(new))
    }
}

trait Written: Send + Sync {
    fn name(&self) -> &'static str;
    fn write(&self, out: &mut String);
}

impl<S: Series> Written for Family<S> {
    fn name(&self) -> &'static str {
        self.description.name
    }

    fn write(&self, out: &mut String) {
        let series = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        let mut used = series.iter().filter(|(_, one)| one.is_used()).peekable();
        if used.peek().is_none() {
            return;
        }
        let Description { name, help, .. } = self.description;
        let help = help.replace('\\', "\\\\").replace('\n', "\\n");
        let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {}", S::KIND);
        for (values, one) in used {
            let labels = Labels {
                names: self.description.labels,
                values,
            };
            one.write(&self.description, &labels, out);
        }
    }
}

/// The families of a process.
#[derive(Clone, Default)]
pub struct Families(Vec<Arc<dyn Written>>);

impl Families {
    /// A new family.
    pub fn family<S: Series>(&mut self, description: Description) -> Arc<Family<S>> {
        let family = Arc::new(Family {
            description,
            series: Mutex::default(),
        });
        self.0.push(family.clone());
        family
    }

    /// All of them, by name.
    pub fn write(&self, out: &mut String) {
        let mut sorted: Vec<_> = self.0.iter().collect();
        sorted.sort_by_key(|family| family.name());
        for family in sorted {
            family.write(out);
        }
    }
}

fn line(out: &mut String, name: &str, labels: &str, value: f64) {
    let _ = writeln!(out, "{name}{labels} {}", number(value));
}

/// As Go writes a float: `0.005`, `1e-06`, `43200`, `+Inf`.
fn number(value: f64) -> String {
    if value.is_infinite() {
        return if value > 0.0 { "+Inf" } else { "-Inf" }.to_owned();
    }
    let size = value.abs();
    if size == 0.0 || (1e-4..1e21).contains(&size) || value.is_nan() {
        return format!("{value}");
    }
    let text = format!("{value:e}");
    match text.split_once('e') {
        Some((digits, exponent)) => {
            let (sign, exponent) = match exponent.strip_prefix('-') {
                Some(exponent) => ('-', exponent),
                None => ('+', exponent),
            };
            format!("{digits}e{sign}{exponent:0>2}")
        }
        None => text,
    }
}

/// The same metrics in the classic format: a counter's name has its `_total` in HELP and TYPE
/// too, and there is no end mark.
pub fn from_open_metrics(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut help = None;
    for text in text.lines() {
        let mut words = text.splitn(4, ' ');
        match (words.next(), words.next(), words.next()) {
            (Some("#"), Some("HELP"), Some(name)) => {
                help = Some((name, words.next().unwrap_or_default()));
            }
            (Some("#"), Some("TYPE"), Some(name)) => {
                let (suffix, kind) = match words.next().unwrap_or_default() {
                    "counter" => ("_total", "counter"),
                    "info" => ("_info", "gauge"),
                    "unknown" => ("", "untyped"),
                    other => ("", other),
                };
                if let Some((of, help)) = help.take()
                    && of == name
                {
                    let _ = writeln!(out, "# HELP {name}{suffix} {help}");
                }
                let _ = writeln!(out, "# TYPE {name}{suffix} {kind}");
            }
            (Some("#"), ..) => {}
            _ => {
                out.push_str(text);
                out.push('\n');
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUCKETS: &[f64] = &[1e-6, 0.005, 2.5, 43_200.0];

    fn description(name: &'static str, labels: &'static [&'static str]) -> Description {
        Description {
            name,
            help: "What it is.",
            labels,
            buckets: BUCKETS,
        }
    }

    fn page(families: &Families) -> String {
        let mut out = String::new();
        families.write(&mut out);
        out
    }

    #[test]
    fn what_was_never_used_is_not_there() {
        let mut families = Families::default();
        let counters = families.family::<Counter>(description("b_count", &["reason"]));
        let gauges = families.family::<Gauge>(description("a", &[]));
        let (one, _two) = (counters.with(&["x\"y"]), counters.with(&["z"]));
        gauges.with(&[]);
        assert_eq!(page(&families), "");
        one.inc();
        gauges.with(&[]).set(0);
        assert_eq!(
            page(&families),
            "# HELP a What it is.\n# TYPE a gauge\na 0\n# HELP b_count What it is.\n# TYPE b_count \
             counter\nb_count{reason=\"x\\\"y\"} 1\n"
        );
    }

    #[test]
    fn labels_are_sorted_and_numbers_are_gos() {
        let mut families = Families::default();
        let family = families.family::<Histogram>(description("h", &["z", "a"]));
        let one = family.with(&["1", "2"]);
        one.observe(Duration::from_millis(1));
        one.observe(Duration::from_secs(50_000));
        assert_eq!(
            page(&families),
            "# HELP h What it is.\n# TYPE h histogram\n\
             h_bucket{a=\"2\",z=\"1\",le=\"1e-06\"} 0\n\
             h_bucket{a=\"2\",z=\"1\",le=\"0.005\"} 1\n\
             h_bucket{a=\"2\",z=\"1\",le=\"2.5\"} 1\n\
             h_bucket{a=\"2\",z=\"1\",le=\"43200\"} 1\n\
             h_bucket{a=\"2\",z=\"1\",le=\"+Inf\"} 2\n\
             h_sum{a=\"2\",z=\"1\"} 50000.001\nh_count{a=\"2\",z=\"1\"} 2\n"
        );
    }

    #[test]
    fn series_are_bounded() {
        let mut families = Families::default();
        let family = families.family::<Counter>(description("c", &["x"]));
        for number in 0..limits::METRIC_SERIES + 10 {
            family.with(&[&number.to_string()]).inc();
        }
        assert!(page(&families).contains("c{x=\"other\"} 10\n"));
    }

    #[test]
    fn open_metrics_become_classic() {
        let open = "# HELP a_b Text of it.\n# TYPE a_b counter\na_b_total{x=\"1\"} 3\n# HELP g \
                    G.\n# TYPE g gauge\n# UNIT g bytes\ng 1\n# EOF\n";
        assert_eq!(
            from_open_metrics(open),
            "# HELP a_b_total Text of it.\n# TYPE a_b_total counter\na_b_total{x=\"1\"} 3\n# HELP \
             g G.\n# TYPE g gauge\ng 1\n"
        );
    }
}
