//! Flags of Kubernetes' logging library and boolean values as Go writes them, accepted so that
//! manifests of Konnectivity's programs start ours. Only `--v` has a meaning here: logs go to
//! standard error, and rotation is the container runtime's.

/// Logging flags of Kubernetes programs.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args)]
pub struct KlogFlags {
    /// Verbosity: 5 and more is debug, 8 and more is trace
    #[arg(
        short = 'v',
        long = "v",
        env = "TOWLINE_V",
        hide = true,
        allow_negative_numbers = true
    )]
    pub v: Option<i32>,
    /// Accepted, without effect
    #[arg(long, env = "TOWLINE_VMODULE", hide = true)]
    pub vmodule: Option<String>,
    /// Accepted, without effect
    #[arg(long, env = "TOWLINE_LOGTOSTDERR", hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool)]
    pub logtostderr: Option<bool>,
    /// Accepted, without effect
    #[arg(long, env = "TOWLINE_ALSOLOGTOSTDERR", hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool)]
    pub alsologtostderr: Option<bool>,
    /// Accepted, without effect
    #[arg(long, env = "TOWLINE_ALSOLOGTOSTDERRTHRESHOLD", hide = true)]
    pub alsologtostderrthreshold: Option<String>,
    /// Accepted, without effect
    #[arg(long, env = "TOWLINE_STDERRTHRESHOLD", hide = true)]
    pub stderrthreshold: Option<String>,
    /// Accepted, without effect
    #[arg(long, env = "TOWLINE_LEGACY_STDERR_THRESHOLD_BEHAVIOR", hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool)]
    pub legacy_stderr_threshold_behavior: Option<bool>,
    /// Accepted, without effect
    #[arg(long, env = "TOWLINE_LOG_DIR", hide = true, alias = "log_dir")]
    pub log_dir: Option<String>,
    /// Accepted, without effect
    #[arg(long, env = "TOWLINE_LOG_FILE", hide = true, alias = "log_file")]
    pub log_file: Option<String>,
    /// Accepted, without effect
    #[arg(
        long,
        env = "TOWLINE_LOG_FILE_MAX_SIZE",
        hide = true,
        alias = "log_file_max_size"
    )]
    pub log_file_max_size: Option<u64>,
    /// Accepted, without effect
    #[arg(
        long,
        env = "TOWLINE_LOG_BACKTRACE_AT",
        hide = true,
        alias = "log_backtrace_at"
    )]
    pub log_backtrace_at: Option<String>,
    /// Accepted, without effect
    #[arg(long, env = "TOWLINE_SKIP_HEADERS", hide = true, alias = "skip_headers", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool)]
    pub skip_headers: Option<bool>,
    /// Accepted, without effect
    #[arg(long, env = "TOWLINE_SKIP_LOG_HEADERS", hide = true, alias = "skip_log_headers", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool)]
    pub skip_log_headers: Option<bool>,
    /// Accepted, without effect
    #[arg(long, env = "TOWLINE_ADD_DIR_HEADER", hide = true, alias = "add_dir_header", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool)]
    pub add_dir_header: Option<bool>,
    /// Accepted, without effect
    #[arg(long, env = "TOWLINE_ONE_OUTPUT", hide = true, alias = "one_output", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool)]
    pub one_output: Option<bool>,
}

impl KlogFlags {
    /// The given flags, with or without effect.
    pub fn given(&self) -> Vec<&'static str> {
        let mut given = self.without_effect();
        if self.v.is_some() {
            given.push("--v");
        }
        given
    }

    /// The given flags that change nothing.
    pub fn without_effect(&self) -> Vec<&'static str> {
        [
            ("--vmodule", self.vmodule.is_some()),
            ("--logtostderr", self.logtostderr.is_some()),
            ("--alsologtostderr", self.alsologtostderr.is_some()),
            (
                "--alsologtostderrthreshold",
                self.alsologtostderrthreshold.is_some(),
            ),
            ("--stderrthreshold", self.stderrthreshold.is_some()),
            (
                "--legacy-stderr-threshold-behavior",
                self.legacy_stderr_threshold_behavior.is_some(),
            ),
            ("--log-dir", self.log_dir.is_some()),
            ("--log-file", self.log_file.is_some()),
            ("--log-file-max-size", self.log_file_max_size.is_some()),
            ("--log-backtrace-at", self.log_backtrace_at.is_some()),
            ("--skip-headers", self.skip_headers.is_some()),
            ("--skip-log-headers", self.skip_log_headers.is_some()),
            ("--add-dir-header", self.add_dir_header.is_some()),
            ("--one-output", self.one_output.is_some()),
        ]
        .into_iter()
        .filter_map(|(name, given)| given.then_some(name))
        .collect()
    }

    /// The level that `--v` asks for; Konnectivity's default of 4 is what we log anyway.
    pub fn level(&self) -> Option<&'static str> {
        match self.v? {
            8.. => Some("trace"),
            5..=7 => Some("debug"),
            _ => None,
        }
    }
}

/// A boolean as Go reads it.
pub fn go_bool(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("use true or false".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;

    #[derive(Parser)]
    struct Program {
        #[command(flatten)]
        klog: KlogFlags,
    }

    #[test]
    fn forms_of_the_field_are_accepted() {
        for (line, given) in [
            ("p --logtostderr=true --v=2", &["--logtostderr", "--v"][..]),
            (
                "p -v 5 --log-file /x --log_file_max_size=0",
                &["--log-file", "--log-file-max-size", "--v"],
            ),
            (
                "p -v=5 --logtostderr --one-output=F",
                &["--logtostderr", "--one-output", "--v"],
            ),
        ] {
            let program = Program::try_parse_from(line.split(' ')).expect(line);
            assert_eq!(program.klog.given(), given, "{line}");
        }
        assert!(Program::try_parse_from(["p", "--logtostderr=maybe"]).is_err());
    }

    #[test]
    fn verbosity_becomes_a_level() {
        let level = |v| {
            KlogFlags {
                v: Some(v),
                ..KlogFlags::default()
            }
            .level()
        };
        assert_eq!(
            [level(0), level(4), level(5), level(9)],
            [None, None, Some("debug"), Some("trace")]
        );
    }
}
