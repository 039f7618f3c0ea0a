//! A disk that fails: after so many changes, every further change of this thread fails, as after a
//! crash: what would have been cleaned up stays.

use std::cell::Cell;
use std::io;

thread_local! {
    static LEFT: Cell<Option<usize>> = const { Cell::new(None) };
}

/// Runs with so many changes to the disk, and says whether they were enough.
pub(crate) fn with_changes<T>(count: usize, run: impl FnOnce() -> T) -> (T, bool) {
    LEFT.set(Some(count));
    let result = run();
    let enough = LEFT.get().is_some_and(|left| left > 0);
    LEFT.set(None);
    (result, enough)
}

/// Whether this thread's disk may fail. Then nothing waits for the real one, either.
pub(super) fn are_on() -> bool {
    LEFT.get().is_some()
}

pub(super) fn step() -> io::Result<()> {
    match LEFT.get() {
        None => Ok(()),
        Some(0) => Err(io::Error::other("the disk was taken away by the test")),
        Some(left) => {
            LEFT.set(Some(left - 1));
            Ok(())
        }
    }
}
