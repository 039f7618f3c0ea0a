//! Says when files have changed, by two ways that cover for each other.
//!
//! * File events (inotify) on the folders of the files, for speed. Where the kernel grants no
//!   watch (the limit is reached, the folder is missing) this is logged once and left out.
//! * A look every [`limits::FILE_LOOK`] at what each path resolves to now: canonical path,
//!   device, inode, size, times. It alone finds changes behind symbolic links (a Kubernetes
//!   Secret mount swaps `..data`), on file systems without events, and in folders that were
//!   replaced.
//!
//! After an event it waits until the folder was quiet for [`limits::FILE_DEBOUNCE`], because
//! writers need several steps. A file may be missing; its appearance is a change.
//! Files are never opened here: who is told reads them.

use std::collections::{BTreeSet, HashMap};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::Notify;
use tokio::time::Instant;
use towline_proto::limits;
use tracing::{debug, warn};

/// Watches a set of files.
pub struct Watch {
    paths: Arc<[PathBuf]>,
    seen: Seen,
    events: Arc<Notify>,
    folders: Arc<Mutex<Folders>>,
    look: Duration,
}

impl Watch {
    /// Changes from now on. Call it before the files are read, or use [`Watch::since`].
    pub fn new(paths: impl IntoIterator<Item = PathBuf>) -> Self {
        let paths: Arc<[PathBuf]> = paths.into_iter().collect();
        let seen = Seen::now(&paths);
        Self::since(paths, seen)
    }

    /// Changes since `seen`, which was taken of the same paths before they were read.
    pub fn since(paths: impl Into<Arc<[PathBuf]>>, seen: Seen) -> Self {
        Self::build(paths.into(), seen, limits::FILE_LOOK, true)
    }

    fn build(paths: Arc<[PathBuf]>, seen: Seen, look: Duration, with_events: bool) -> Self {
        let events = Arc::new(Notify::new());
        let mut folders = Folders::new(&paths, with_events.then(|| Arc::clone(&events)));
        folders.arm();
        Self {
            paths,
            seen,
            events,
            folders: Arc::new(Mutex::new(folders)),
            look,
        }
    }

    /// Resolves when at least one file is different from what was seen last. Cancel-safe: a
    /// change that was not reported is reported by the next call.
    pub async fn changed(&mut self) {
        loop {
            let now = self.look().await;
            if now != self.seen {
                self.seen = now;
                return;
            }
            tokio::select! {
                () = self.events.notified() => self.settle().await,
                () = tokio::time::sleep(self.look) => {}
            }
        }
    }

    /// Waits until writers are done, but not for ever: a folder may be busy with other files.
    async fn settle(&self) {
        let latest = Instant::now() + self.look;
        loop {
            let quiet = (Instant::now() + limits::FILE_DEBOUNCE).min(latest);
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(quiet) => return,
                () = self.events.notified() => {}
            }
        }
    }

    /// On a thread for blocking work: a file system may hang.
    async fn look(&self) -> Seen {
        let (paths, folders) = (Arc::clone(&self.paths), Arc::clone(&self.folders));
        let looked = tokio::task::spawn_blocking(move || {
            // First the events, so that nothing falls between them and the look.
            folders.lock().unwrap_or_else(PoisonError::into_inner).arm();
            Seen::now(&paths)
        });
        // It fails only when the runtime ends.
        looked.await.unwrap_or_else(|_| self.seen.clone())
    }
}

/// What a set of paths resolved to at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen(Vec<Option<Stamp>>);

impl Seen {
    /// Now.
    pub fn now(paths: &[PathBuf]) -> Self {
        Seen(paths.iter().map(|path| Stamp::of(path)).collect())
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Stamp {
    resolved: PathBuf,
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// `None` when there is no such file, or none that we may see.
    fn of(path: &Path) -> Option<Self> {
        let resolved = std::fs::canonicalize(path).ok()?;
        let found = std::fs::metadata(&resolved).ok()?;
        Some(Self {
            resolved,
            device: found.dev(),
            inode: found.ino(),
            size: found.size(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        })
    }
}

/// The folders of the files, with an inotify watch on each that has one.
struct Folders {
    wanted: BTreeSet<PathBuf>,
    armed: HashMap<PathBuf, (u64, u64)>,
    watcher: Option<RecommendedWatcher>,
}

impl Folders {
    fn new(paths: &[PathBuf], events: Option<Arc<Notify>>) -> Self {
        let folder = |path: &PathBuf| match path.parent() {
            Some(parent) if parent.as_os_str().is_empty() => PathBuf::from("."),
            Some(parent) => parent.to_owned(),
            None => PathBuf::from("/"),
        };
        let watcher = events.and_then(|events| {
            let tell = move |event: notify::Result<notify::Event>| {
                if event.is_ok_and(|event| event.kind.is_access()) {
                    return;
                }
                events.notify_one();
            };
            notify::recommended_watcher(tell)
                .inspect_err(|error| without_events(None, error))
                .ok()
        });
        Self {
            wanted: paths.iter().map(folder).collect(),
            armed: HashMap::new(),
            watcher,
        }
    }

    /// Watches each folder that is there and not watched yet, also when it was replaced.
    fn arm(&mut self) {
        let Some(watcher) = &mut self.watcher else {
            return;
        };
        for folder in &self.wanted {
            let Ok(found) = std::fs::metadata(folder) else {
                self.armed.remove(folder);
                continue;
            };
            let id = (found.dev(), found.ino());
            if self.armed.get(folder) == Some(&id) {
                continue;
            }
            // A watch on the folder that was there before; often gone with it.
            let _ = watcher.unwatch(folder);
            match watcher.watch(folder, RecursiveMode::NonRecursive) {
                Ok(()) => {
                    debug!(path = ?folder, "watching");
                    self.armed.insert(folder.clone(), id);
                }
                Err(error) => {
                    without_events(Some(folder), &error);
                    self.watcher = None;
                    return;
                }
            }
        }
    }
}

fn without_events(folder: Option<&Path>, error: &notify::Error) {
    warn!(
        path = ?folder,
        %error,
        look_seconds = limits::FILE_LOOK.as_secs(),
        "no file events (is fs.inotify.max_user_watches or max_user_instances reached?); \
         changed files are found by looking"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEVER: Duration = Duration::from_secs(3600);
    const PATIENCE: Duration = Duration::from_secs(20);

    fn by_events(path: &Path) -> Watch {
        let paths: Arc<[PathBuf]> = [path.to_owned()].into();
        let seen = Seen::now(&paths);
        Watch::build(paths, seen, NEVER, true)
    }

    fn by_looking(path: &Path) -> Watch {
        let paths: Arc<[PathBuf]> = [path.to_owned()].into();
        let seen = Seen::now(&paths);
        Watch::build(paths, seen, limits::FILE_LOOK, false)
    }

    /// As the kubelet writes a Secret: a folder per version, `..data` swapped by rename.
    fn publish(mount: &Path, version: &str, text: &str) {
        let folder = mount.join(version);
        std::fs::create_dir(&folder).expect("folder");
        std::fs::write(folder.join("tls.crt"), text).expect("written");
        let next = mount.join("..data_tmp");
        std::os::unix::fs::symlink(version, &next).expect("linked");
        std::fs::rename(&next, mount.join("..data")).expect("swapped");
        let name = mount.join("tls.crt");
        if !name.exists() {
            std::os::unix::fs::symlink("..data/tls.crt", name).expect("linked");
        }
    }

    /// Resolves when the kernel has told of something.
    async fn told(watch: &Watch, what: &str) {
        tokio::time::timeout(PATIENCE, watch.events.notified())
            .await
            .expect(what);
    }

    #[tokio::test]
    async fn the_kernel_tells_of_a_file_that_appears_changes_and_goes() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("tls.crt");
        let mut watch = by_events(&path);
        for step in ["one", "two", ""] {
            match step {
                "" => std::fs::remove_file(&path).expect("removed"),
                text => std::fs::write(&path, text).expect("written"),
            }
            told(&watch, step).await;
            watch.changed().await;
        }
    }

    #[tokio::test]
    async fn the_kernel_tells_of_a_swapped_secret_mount() {
        let mount = tempfile::tempdir().expect("folder");
        publish(mount.path(), "..1", "one");
        let mut watch = by_events(&mount.path().join("tls.crt"));
        publish(mount.path(), "..2", "two");
        told(&watch, "swapped").await;
        watch.changed().await;
    }

    #[tokio::test(start_paused = true)]
    async fn an_event_is_followed_up_after_a_short_quiet_time() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("tls.crt");
        let mut watch = by_looking(&path);
        let events = Arc::clone(&watch.events);
        let begun = Instant::now();
        let writer = async {
            for step in ["one", "two", "three"] {
                tokio::time::sleep(limits::FILE_DEBOUNCE / 2).await;
                std::fs::write(&path, step).expect("written");
                events.notify_one();
            }
        };
        tokio::join!(watch.changed(), writer);
        assert_eq!(begun.elapsed(), limits::FILE_DEBOUNCE / 2 * 5);
        assert_eq!(watch.seen, Seen::now(&watch.paths));
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_sees_every_change_without_events() {
        let mount = tempfile::tempdir().expect("folder");
        let path = mount.path().join("tls.crt");
        let mut watch = by_looking(&path);
        publish(mount.path(), "..1", "one");
        watch.changed().await;
        publish(mount.path(), "..2", "one");
        watch.changed().await;
        std::fs::write(mount.path().join("..2/tls.crt"), "two").expect("written");
        watch.changed().await;
        std::fs::remove_dir_all(mount.path()).expect("removed");
        watch.changed().await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_did_not_change_is_not_reported() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("tls.crt");
        std::fs::write(&path, "one").expect("written");
        let mut watch = by_looking(&path);
        let quiet = tokio::time::timeout(limits::FILE_LOOK * 5, watch.changed()).await;
        assert!(quiet.is_err());
        std::fs::write(folder.path().join("other"), "x").expect("written");
        assert!(
            tokio::time::timeout(limits::FILE_LOOK * 5, watch.changed())
                .await
                .is_err()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_before_the_watch_is_seen_when_it_was_looked_at_earlier() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("tls.crt");
        let paths = [path.clone()];
        let seen = Seen::now(&paths);
        std::fs::write(&path, "one").expect("written");
        Watch::since(paths, seen).changed().await;
    }

    #[tokio::test]
    async fn a_folder_that_was_replaced_is_watched_again() {
        let root = tempfile::tempdir().expect("folder");
        let folder = root.path().join("certs");
        let path = folder.join("tls.crt");
        let mut watch = by_events(&path);
        assert!(watch.folders.lock().expect("not poisoned").armed.is_empty());
        for _ in 0..2 {
            std::fs::create_dir(&folder).expect("folder");
            watch.look().await;
            std::fs::write(&path, "one").expect("written");
            told(&watch, "in the new folder").await;
            tokio::time::timeout(PATIENCE, watch.changed())
                .await
                .expect("seen");
            std::fs::remove_dir_all(&folder).expect("removed");
            tokio::time::timeout(PATIENCE, watch.changed())
                .await
                .expect("seen");
        }
    }
}
