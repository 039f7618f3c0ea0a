//! How the demo looks: numbered steps, aligned columns, places in the source on the right.

use std::cell::Cell;

/// Width of the text column of a hop.
const TEXT: usize = 57;
/// Width of the first column.
const WHO: usize = 10;

/// What is printed.
pub(super) struct Page {
    step: Cell<u32>,
}

impl Page {
    pub(super) fn new() -> Self {
        Self { step: Cell::new(0) }
    }

    pub(super) fn title(&self, text: &str) {
        println!("{text}");
    }

    /// A new numbered step.
    pub(super) fn step(&self, text: &str) {
        self.step.set(self.step.get() + 1);
        println!("\n{:>2}. {text}", self.step.get());
    }

    /// Something that happened, and where in the source.
    pub(super) fn hop(&self, who: &str, text: &str, file: &str, function: &str) {
        println!("    {who:<WHO$} {text:<TEXT$} {file}  {function}");
    }

    /// Something that was said.
    pub(super) fn said(&self, who: &str, text: &str) {
        println!("    {who:<WHO$} {text}");
    }

    /// What came of it.
    pub(super) fn result(&self, text: &str) {
        println!("    {:<WHO$} {text}", "->");
    }

    /// A line to be copied.
    pub(super) fn verbatim(&self, text: &str) {
        println!("\n{text}");
    }

    pub(super) fn end(&self, text: &str) {
        println!("\n{text}");
    }
}
