//! How a Towline program ends: four exit codes, the same for both daemons, so that a unit file
//! or a script can tell a wrong command line (do not restart) and a wrong file (wait for somebody
//! to bring a right one) from a broken run (restart).

use std::process::{ExitCode, Termination};

/// The exit code of a daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// 0: ended as it was asked to, or `--check-config` found nothing wrong.
    Success,
    /// 1: something failed while running.
    Runtime,
    /// 2: the command line is wrong (clap ends with the same code).
    Usage,
    /// 3: a file or a combination of flags is wrong; a restart helps once that was mended.
    Configuration,
}

impl Exit {
    /// The number that the parent process sees.
    pub const fn code(self) -> u8 {
        match self {
            Exit::Success => 0,
            Exit::Runtime => 1,
            Exit::Usage => 2,
            Exit::Configuration => 3,
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        ExitCode::from(exit.code())
    }
}

impl Termination for Exit {
    fn report(self) -> ExitCode {
        self.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_the_documented_ones() {
        let codes = [
            Exit::Success,
            Exit::Runtime,
            Exit::Usage,
            Exit::Configuration,
        ]
        .map(Exit::code);
        assert_eq!(codes, [0, 1, 2, 3]);
    }
}
