//! Where log lines go: through a bounded queue to one thread that writes them to stderr, so
//! that a slow reader of the log never holds up a byte. When the queue is full the new line is
//! dropped and counted (`towline_log_lines_dropped_total`).
//!
//! Each line is made safe first: control characters are escaped (a peer's text can neither
//! forge a line nor drive a terminal) and what is longer than [`limits::LOG_LINE_BYTES`] is
//! cut and marked.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Instant;

use prometheus_client::metrics::counter::Counter;
use towline_proto::limits;
use tracing_subscriber::fmt::MakeWriter;

enum Item {
    Line(String),
    Flush(SyncSender<()>),
}

/// The writing end, cheap to clone; also a `MakeWriter` for tracing.
#[derive(Clone)]
pub struct LogSink {
    queue: SyncSender<Item>,
    dropped: Counter,
}

impl LogSink {
    /// Starts the writing thread. It ends when every clone is gone.
    pub fn start(mut output: impl Write + Send + 'static) -> io::Result<Self> {
        let (queue, lines) = sync_channel(limits::LOG_QUEUE);
        std::thread::Builder::new()
            .name("towline-log".to_owned())
            .spawn(move || write_lines(&lines, &mut output))?;
        Ok(Self {
            queue,
            dropped: Counter::default(),
        })
    }

    /// Lines that were dropped because the reader is slow.
    pub fn dropped(&self) -> &Counter {
        &self.dropped
    }

    /// Waits until the lines so far are written, at most [`limits::LOG_FLUSH`].
    pub fn flush(&self) {
        let until = Instant::now() + limits::LOG_FLUSH;
        let (done, written) = sync_channel(1);
        let mut item = Item::Flush(done);
        // The queue has no timed send; a full queue is tried again until the time is over.
        while let Err(TrySendError::Full(back)) = self.queue.try_send(item) {
            if Instant::now() >= until {
                return;
            }
            item = back;
            std::thread::yield_now();
        }
        let _ = written.recv_timeout(until.saturating_duration_since(Instant::now()));
    }

    fn send(&self, line: &[u8]) {
        if let Err(TrySendError::Full(_)) = self.queue.try_send(Item::Line(safe_line(line))) {
            self.dropped.inc();
        }
    }
}

fn write_lines(lines: &Receiver<Item>, output: &mut impl Write) {
    for item in lines {
        match item {
            // A log that cannot be written has nobody to be told.
            Item::Line(line) => drop(output.write_all(line.as_bytes())),
            Item::Flush(done) => {
                let _ = output.flush();
                let _ = done.try_send(());
            }
        }
    }
}

impl<'a> MakeWriter<'a> for LogSink {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Line<'a> {
        Line {
            sink: self,
            bytes: Vec::new(),
        }
    }
}

/// One log line while it is written; sent when it is dropped.
pub struct Line<'a> {
    sink: &'a LogSink,
    bytes: Vec<u8>,
}

impl Write for Line<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.bytes.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Line<'_> {
    fn drop(&mut self) {
        if !self.bytes.is_empty() {
            self.sink.send(&self.bytes);
        }
    }
}

/// One line with its end, safe for terminals and line readers, bounded.
fn safe_line(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let text = text.trim_end_matches('\n');
    let mut line = String::with_capacity(text.len().min(limits::LOG_LINE_BYTES) + 1);
    for c in text.chars() {
        if line.len() >= limits::LOG_LINE_BYTES {
            line.push_str("...(cut)");
            break;
        }
        if is_unsafe(c) {
            let _ = write!(line, "{}", c.escape_default());
        } else {
            line.push(c);
        }
    }
    line.push('\n');
    line
}

/// Control characters, line separators and the marks that turn the direction of writing.
fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Condvar, Mutex};

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

    #[test]
    fn lines_arrive_in_order_and_are_flushed() {
        let memory = Memory::default();
        let sink = LogSink::start(memory.clone()).expect("started");
        for line in ["one\n", "two\n"] {
            sink.make_writer()
                .write_all(line.as_bytes())
                .expect("queued");
        }
        sink.flush();
        assert_eq!(
            memory.0.lock().expect("not poisoned").as_slice(),
            b"one\ntwo\n"
        );
    }

    #[test]
    fn a_stuck_reader_costs_lines_and_no_time() {
        struct Stuck(Arc<(Mutex<bool>, Condvar)>);
        impl Write for Stuck {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                let open = self.0.0.lock().expect("not poisoned");
                drop(
                    self.0
                        .1
                        .wait_while(open, |open| !*open)
                        .expect("not poisoned"),
                );
                Ok(bytes.len())
            }

            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let gate = Arc::new((Mutex::new(false), Condvar::new()));
        let sink = LogSink::start(Stuck(gate.clone())).expect("started");
        for _ in 0..limits::LOG_QUEUE + 10 {
            sink.send(b"line\n");
        }
        assert!(sink.dropped().get() >= 9, "{}", sink.dropped().get());
        *gate.0.lock().expect("not poisoned") = true;
        gate.1.notify_all();
    }

    #[test]
    fn control_characters_cannot_forge_a_line_or_drive_a_terminal() {
        assert_eq!(
            safe_line(b"a\nb\x1b[31m\r\x00\n"),
            "a\\nb\\u{1b}[31m\\r\\u{0}\n"
        );
        assert_eq!(
            safe_line("left\u{202e}right".as_bytes()),
            "left\\u{202e}right\n"
        );
        assert_eq!(
            safe_line("gr\u{fc}n \u{ff}".as_bytes()),
            "gr\u{fc}n \u{ff}\n"
        );
    }

    #[test]
    fn long_lines_are_cut_and_marked() {
        let line = safe_line("x".repeat(limits::LOG_LINE_BYTES * 2).as_bytes());
        assert!(line.len() < limits::LOG_LINE_BYTES + 16);
        assert!(line.ends_with("...(cut)\n"));
    }
}
