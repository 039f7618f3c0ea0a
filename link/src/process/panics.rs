//! Panics are counted and logged in one line, and the process lives on: one task's panic must
//! not cut every node. The count is the only static of the process, because Rust's panic hook
//! is one for the process too.

use std::panic::PanicHookInfo;
use std::sync::LazyLock;

use prometheus_client::metrics::counter::Counter;
use prometheus_client::registry::Registry;
use tracing::error;

static PANICS: LazyLock<Counter> = LazyLock::new(Counter::default);

/// Replaces the default hook. Called once, by `main`, after the logs are set up.
pub fn install_hook() {
    std::panic::set_hook(Box::new(report));
}

/// Adds `towline_panics_total` to a registry.
pub fn register(registry: &mut Registry) {
    registry.register(
        "towline_panics",
        "Panics of tasks; each is a defect worth a report",
        PANICS.clone(),
    );
}

fn report(info: &PanicHookInfo<'_>) {
    PANICS.inc();
    let place = info.location().map(ToString::to_string).unwrap_or_default();
    let thread = std::thread::current();
    let text = info.payload_as_str().unwrap_or("no text");
    error!(
        place,
        thread = thread.name().unwrap_or("unnamed"),
        text,
        "a task panicked; the process goes on"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_counted_and_the_process_lives_on() {
        let before = PANICS.get();
        let old = std::panic::take_hook();
        install_hook();
        let result = std::thread::spawn(|| panic!("as planned")).join();
        std::panic::set_hook(old);
        assert!(result.is_err());
        assert!(PANICS.get() > before);
        let mut registry = Registry::default();
        register(&mut registry);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("encoded");
        assert!(text.contains("towline_panics_total"), "{text}");
    }
}
