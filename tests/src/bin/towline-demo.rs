//! `cargo demo`: a control plane and two nodes on loopback, made of the real daemons. Prints
//! what happens, hop by hop and with the place in the source; ends with 0 when all of it did.
//! `cargo demo -- --keep` leaves it running and prints curl lines that work.

use std::process::ExitCode;

#[tokio::main]
async fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let keep = match asked(&args) {
        Some(keep) => keep,
        None => {
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

/// Whether it is to be left running; `None` for what is no command line of ours. The alias ends
/// with `--`, so `cargo demo -- --keep` comes with one more.
fn asked(args: &[String]) -> Option<bool> {
    let args = match args {
        [dashes, rest @ ..] if dashes == "--" => rest,
        all => all,
    };
    match args {
        [] => Some(false),
        [one] if one == "--keep" => Some(true),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::asked;

    #[test]
    fn keep_is_taken_as_the_readme_writes_it() {
        let asked = |args: &[&str]| {
            let args: Vec<String> = args.iter().map(ToString::to_string).collect();
            asked(&args)
        };
        assert_eq!(asked(&[]), Some(false));
        assert_eq!(asked(&["--"]), Some(false));
        assert_eq!(asked(&["--keep"]), Some(true));
        assert_eq!(asked(&["--", "--keep"]), Some(true));
        assert_eq!(asked(&["--kept"]), None);
        assert_eq!(asked(&["--keep", "--keep"]), None);
    }
}
