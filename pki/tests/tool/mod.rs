//! `towline-pki` as it is run: what it prints, what it writes, and how it ends.

#![allow(dead_code, unreachable_pub)]

pub mod damage;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Output};

use crate::cluster::Scratch;

pub struct Tool {
    pub dir: Scratch,
}

pub struct Answer {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Tool {
    pub fn new() -> Self {
        Self {
            dir: Scratch::new(),
        }
    }

    /// With a cluster "prod" in ./prod.
    pub fn with_cluster() -> Self {
        let tool = Self::new();
        tool.ok("init prod --cluster prod.example");
        tool
    }

    pub fn run(&self, args: &str) -> Answer {
        let args: Vec<&str> = args.split_whitespace().collect();
        self.run_with(&args)
    }

    /// For arguments with blanks in them.
    pub fn run_with(&self, args: &[&str]) -> Answer {
        let output: Output = Command::new(env!("CARGO_BIN_EXE_towline-pki"))
            .args(args)
            .current_dir(self.dir.root())
            .env_remove("TOWLINE_PKI_DIR")
            .output()
            .unwrap();
        Answer {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    #[track_caller]
    pub fn ok(&self, args: &str) -> String {
        let answer = self.run(args);
        assert_eq!(answer.code, 0, "{args}: {}{}", answer.out, answer.err);
        assert_eq!(answer.err, "", "{args}");
        answer.out
    }

    /// It ends with this code, says all of these words, and writes nothing new.
    #[track_caller]
    pub fn refused(&self, args: &str, code: i32, words: &[&str]) {
        let before = self.files();
        let answer = self.run(args);
        assert_eq!(answer.code, code, "{args}: {}{}", answer.out, answer.err);
        for word in words {
            assert!(
                answer.err.contains(word),
                "{args}: no {word:?} in {}",
                answer.err
            );
        }
        assert_eq!(self.files(), before, "{args}");
    }

    /// Every file with its content.
    pub fn files(&self) -> Vec<(String, Vec<u8>)> {
        fn walk(dir: &Path, out: &mut Vec<(String, Vec<u8>)>) {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    walk(&path, out);
                } else {
                    out.push((path.display().to_string(), fs::read(&path).unwrap()));
                }
            }
        }
        let mut out = Vec::new();
        walk(self.dir.root(), &mut out);
        out.sort();
        out
    }

    pub fn mode(&self, name: &str) -> u32 {
        fs::metadata(self.dir.path(name)).unwrap().mode() & 0o7777
    }
}
