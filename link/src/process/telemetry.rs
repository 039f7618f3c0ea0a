//! Logs to stderr, for people or as JSON, one event one line. Level and filter come from flags
//! and never from the environment. Also the names of the fields that both daemons use, so that
//! a log query works on either.
//!
//! `main` calls [`init`] once and keeps the [`Logs`] until the end: dropping it writes what is
//! still queued.

use std::fmt;
use std::io;
use std::str::FromStr;

use prometheus_client::registry::Registry;
use tracing::Subscriber;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};

use super::logsink::LogSink;

/// Names of fields in log events.
pub mod field {
    /// Address of the other end.
    pub const ADDRESS: &str = "address";
    /// Name of an agent.
    pub const AGENT: &str = "agent";
    /// Bytes towards the target.
    pub const BYTES_IN: &str = "bytes_in";
    /// Bytes from the target.
    pub const BYTES_OUT: &str = "bytes_out";
    /// `quic` or `tls`.
    pub const CARRIER: &str = "carrier";
    /// Class of a target.
    pub const CLASS: &str = "class";
    /// Number of a dial.
    pub const DIAL: &str = "dial";
    /// `connect` or `grpc`.
    pub const DOOR: &str = "door";
    /// Text of an error, never to be matched on.
    pub const ERROR: &str = "error";
    /// Number of a link.
    pub const LINK: &str = "link";
    /// A file.
    pub const PATH: &str = "path";
    /// Identity of the other end.
    pub const PEER: &str = "peer";
    /// Why something ended.
    pub const REASON: &str = "reason";
    /// Address or name of a server.
    pub const SERVER: &str = "server";
    /// Lines kept back by a rate limit.
    pub const SUPPRESSED: &str = "suppressed";
    /// Host and port of a dial.
    pub const TARGET: &str = "target";
}

/// `--log-format`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// One line of text.
    #[default]
    Human,
    /// One JSON object.
    Json,
}

impl fmt::Display for LogFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            LogFormat::Human => "human",
            LogFormat::Json => "json",
        })
    }
}

impl FromStr for LogFormat {
    type Err = TelemetryError;

    fn from_str(text: &str) -> Result<Self, TelemetryError> {
        match text {
            "human" => Ok(LogFormat::Human),
            "json" => Ok(LogFormat::Json),
            _ => Err(TelemetryError::Format(text.to_owned())),
        }
    }
}

/// `--log-level`: a level (`info`) or directives (`info,towline_link=debug`), checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogFilter(String);

impl Default for LogFilter {
    fn default() -> Self {
        LogFilter("info".to_owned())
    }
}

impl fmt::Display for LogFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for LogFilter {
    type Err = TelemetryError;

    fn from_str(text: &str) -> Result<Self, TelemetryError> {
        // A lone unknown word would be read as the name of a module and silence everything.
        let words = text.split(',').map(str::trim);
        let known =
            |word: &str| matches!(word, "off" | "error" | "warn" | "info" | "debug" | "trace");
        if text.is_empty()
            || words
                .clone()
                .any(|word| !known(word) && !word.contains('='))
        {
            return Err(TelemetryError::Filter(text.to_owned()));
        }
        parse_filter(text).map(|_| LogFilter(text.to_owned()))
    }
}

fn parse_filter(text: &str) -> Result<EnvFilter, TelemetryError> {
    EnvFilter::builder()
        .with_regex(false)
        .parse(text)
        .map_err(|_| TelemetryError::Filter(text.to_owned()))
}

/// Why the logs were not set up.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// `--log-format`.
    #[error("log format {0:?} is not known: use human or json")]
    Format(String),
    /// `--log-level`.
    #[error(
        "log level {0:?} is not known: use error, warn, info, debug or trace, or directives such as info,towline_link=debug"
    )]
    Filter(String),
    /// No thread for the log.
    #[error("the log thread did not start: {0}")]
    Thread(#[source] io::Error),
    /// Called twice in one process.
    #[error("logs are already set up in this process: {0}")]
    Twice(#[source] TryInitError),
}

/// The items of a list as one field, and no field for none.
pub fn listed<T: fmt::Display>(items: &[T]) -> Option<String> {
    let items: Vec<String> = items.iter().map(ToString::to_string).collect();
    (!items.is_empty()).then(|| items.join(","))
}

/// The running log. Dropping it writes what is still queued.
pub struct Logs {
    sink: LogSink,
}

impl Logs {
    /// Adds `towline_log_lines_dropped_total` to a registry.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "towline_log_lines_dropped",
            "Log lines dropped because stderr was not read fast enough",
            self.sink.dropped().clone(),
        );
    }
}

impl Drop for Logs {
    fn drop(&mut self) {
        self.sink.flush();
    }
}

/// Sets the process's log up: stderr, format, filter.
pub fn init(format: LogFormat, filter: &LogFilter) -> Result<Logs, TelemetryError> {
    let sink = LogSink::start(io::stderr()).map_err(TelemetryError::Thread)?;
    subscriber(format, filter, sink.clone())?
        .try_init()
        .map_err(TelemetryError::Twice)?;
    Ok(Logs { sink })
}

fn subscriber(
    format: LogFormat,
    filter: &LogFilter,
    sink: LogSink,
) -> Result<Box<dyn Subscriber + Send + Sync>, TelemetryError> {
    let registry = tracing_subscriber::registry().with(parse_filter(&filter.0)?);
    let layer = tracing_subscriber::fmt::layer()
        .with_writer(sink)
        .with_ansi(false);
    Ok(match format {
        LogFormat::Human => Box::new(registry.with(layer)),
        LogFormat::Json => {
            Box::new(registry.with(layer.json().flatten_event(true).with_current_span(false)))
        }
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use tracing::{debug, info};

    use super::*;

    #[derive(Clone, Default)]
    struct Memory(Arc<Mutex<Vec<u8>>>);

    impl Write for Memory {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0
                .lock()
                .expect("not poisoned")
                .extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn logged(format: LogFormat, filter: &str, event: impl FnOnce()) -> String {
        let memory = Memory::default();
        let sink = LogSink::start(memory.clone()).expect("started");
        let subscriber =
            subscriber(format, &filter.parse().expect("filter"), sink.clone()).expect("built");
        tracing::subscriber::with_default(subscriber, event);
        sink.flush();
        String::from_utf8(memory.0.lock().expect("not poisoned").clone()).expect("UTF-8")
    }

    #[test]
    fn a_peers_text_stays_on_its_line_in_both_formats() {
        let evil = "x\n2026 ERROR forged \x1b[2J";
        for format in [LogFormat::Human, LogFormat::Json] {
            let text = logged(format, "info", || info!(peer = evil, "hello {evil}"));
            assert_eq!(text.lines().count(), 1, "{text}");
            assert!(!text.contains('\x1b'), "{text}");
        }
    }

    #[test]
    fn json_lines_are_json_with_the_fields_at_the_top() {
        let text = logged(LogFormat::Json, "info", || {
            info!({ field::AGENT } = "node-1", "linked")
        });
        let value: serde_json::Value = serde_json::from_str(&text).expect("JSON");
        assert_eq!(value["agent"], "node-1");
        assert_eq!(value["message"], "linked");
        assert_eq!(value["level"], "INFO");
    }

    #[test]
    fn the_filter_is_a_level_or_directives() {
        assert_eq!(logged(LogFormat::Human, "info", || debug!("quiet")), "");
        assert!(
            !logged(LogFormat::Human, "info,towline_link=debug", || debug!(
                "loud"
            ))
            .is_empty()
        );
        for wrong in ["", "loud", "info,loud", "towline_link=loud"] {
            let error = wrong.parse::<LogFilter>().expect_err(wrong);
            assert!(
                error.to_string().contains("use error, warn, info"),
                "{error}"
            );
        }
        assert_eq!(LogFilter::default().to_string(), "info");
        assert!("xml".parse::<LogFormat>().is_err());
    }
}
