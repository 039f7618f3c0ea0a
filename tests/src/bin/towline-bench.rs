//! `towline-bench`: see `tests/bench/README.md`.

use std::process::ExitCode;

fn main() -> ExitCode {
    match towline_tests::bench::main() {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("towline-bench: {failure}");
            ExitCode::FAILURE
        }
    }
}
