//! A run that is cut off before each single change to the disk: what is there is old or new, and the
//! next run finishes it.

use std::fs;
use std::path::{Path, PathBuf};

use super::tests::{apply, files, now, planned, wanted};
use super::*;
use crate::store::faults;
use crate::store::tests::Scratch;

const TEXT: &str = "\
version: 1
cluster: prod.example
controlPlanes:
  - {name: cp-1, addresses: [10.0.0.1]}
nodes:
  - {name: node-1, addresses: [10.0.1.1]}
authorities:
  leaveOut: [etcd, frontProxy, gateway]
";

/// Cuts a run off everywhere. `start` fills the directory; returns how many places there were.
pub(super) fn everywhere(start: &dyn Fn(&Path), wanted: &Wanted, prune: bool) -> usize {
    let expected = {
        let scratch = Scratch::new();
        let dir = scratch.path("prod");
        start(&dir);
        apply(&dir, wanted, prune, now()).unwrap();
        names(&dir)
    };
    for count in 0.. {
        let scratch = Scratch::new();
        let dir = scratch.path("prod");
        start(&dir);
        let (result, enough) = faults::with_changes(count, || apply(&dir, wanted, prune, now()));
        // The run may have failed to clean up only, and then does not know.
        assert!(!enough || result.is_ok(), "{count}: {result:?}");
        // Nothing is damaged: every certificate that is there has its key.
        let present = Present::read(&dir, wanted, now());
        if let Err(error) = present {
            panic!("{count}: {error}");
        }
        let (result, _) = faults::with_changes(usize::MAX, || apply(&dir, wanted, prune, now()));
        assert!(result.is_ok(), "{count}: {result:?}");
        assert_eq!(planned(&dir, wanted, prune, now()).changes, [], "{count}");
        assert_eq!(names(&dir), expected, "{count}");
        if enough {
            return count;
        }
    }
    unreachable!("a run ends")
}

/// Every name, temporary ones included.
fn names(dir: &Path) -> Vec<PathBuf> {
    let mut names = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            names.push(path.strip_prefix(dir).unwrap().to_owned());
            if path.is_dir() {
                folders.push(path);
            }
        }
    }
    names.sort();
    names
}

pub(super) fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for name in names(from) {
        let (from, to) = (from.join(&name), to.join(&name));
        if from.is_dir() {
            fs::create_dir_all(to).unwrap();
        } else {
            // With its mode.
            fs::copy(from, to).unwrap();
        }
    }
}

#[test]
fn a_first_run_that_is_cut_off_is_finished_by_the_next() {
    let places = everywhere(&|_| {}, &wanted(TEXT), false);
    assert!(places > 200, "{places}");
}

#[test]
fn a_change_that_is_cut_off_leaves_old_or_new_and_is_finished_by_the_next() {
    let scratch = Scratch::new();
    let base = scratch.path("base");
    apply(&base, &wanted(TEXT), false, now()).unwrap();
    // New addresses, a machine that goes, one that comes, another place of kube-apiserver.
    let text = TEXT.replace("[10.0.0.1]", "[10.0.0.1, 10.0.0.2]").replace(
        "node-1, addresses: [10.0.1.1]",
        "node-2, addresses: [10.0.1.2]",
    );
    let text = format!("{text}kubernetes: {{endpoint: cp.example}}\n");
    let changed = wanted(&text);
    let start = |dir: &Path| copy(&base, dir);
    assert!(everywhere(&start, &changed, true) > 60);

    // Whoever reads meanwhile finds each file as it was or as it will be.
    let old = files(&base);
    for count in (0..).step_by(7) {
        let scratch = Scratch::new();
        let dir = scratch.path("prod");
        start(&dir);
        let (_, enough) = faults::with_changes(count, || apply(&dir, &changed, false, now()));
        for (name, bytes) in files(&dir) {
            let hidden = |part: &std::ffi::OsStr| part.as_encoded_bytes().starts_with(b".");
            if name.iter().any(hidden) {
                continue;
            }
            let before = old.iter().find(|(old, _)| *old == name);
            if before.is_none_or(|(_, old)| *old != bytes) {
                let whole = name
                    .extension()
                    .is_some_and(|end| end == "conf" || end == "jsonl")
                    || bytes.ends_with(b"-----\n");
                assert!(whole, "{count}: {} is half", name.display());
            }
        }
        // No certificate is in a file before it is in the ledger.
        let ledger = fs::read_to_string(dir.join("issued.jsonl")).unwrap();
        for seen in Present::read(&dir, &changed, now()).unwrap().leaves {
            if let Some((certificate, _)) = seen.certificate {
                assert!(
                    ledger.contains(&certificate.fingerprint.to_string()),
                    "{count}"
                );
            }
        }
        if enough {
            break;
        }
    }
}
