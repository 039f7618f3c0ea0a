//! `cargo demo`: a control plane and two nodes on loopback, made of the real daemons. Prints
//! what happens, hop by hop and with the place in the source; ends with 0 when all of it did.
//! `cargo demo -- --keep` leaves it running and prints curl lines that work.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let keep = match args
        .iter()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .as_slice()
    {
        [] => false,
        ["--keep"] => true,
        _ => {
            eprintln!("usage: towline-demo [--keep]");
            return ExitCode::from(2);
        }
    };
    match Box::pin(towline_tests::demo::run(keep)).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the demo failed: {error}");
            ExitCode::FAILURE
        }
    }
}
