//! Proof by a one-time join token, and how it is spent.
//!
//! A token is spent by a file of its id in the spent directory, made in one step that fails when
//! the file is there, and on the disk before anything is signed. Several servers that share that
//! directory share the single use; servers that do not each have their own, which SECURITY.md says.
//!
//! The file says for which key the token was spent, and when: the holder of that key, whose answer
//! was lost, may ask again within [`limits::JOIN_AGAIN`], and nobody else.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use towline_pki::join::{JoinEntry, JoinError};
use towline_pki::store::{self, Replace, StoreError};
use towline_pki::{JoinFile, JoinMark, JoinToken, date};
use towline_proto::enrol::{Refusal, Token};
use towline_proto::id::{ClusterName, Name};
use towline_proto::limits;

use super::No;

/// How long a spent mark outlives its token: for clocks, and for files that come late.
const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// The tokens that there are, and which are spent.
#[derive(Debug)]
pub struct Joins {
    path: PathBuf,
    spent: PathBuf,
    file: ArcSwap<JoinFile>,
}

impl Joins {
    /// Reads the file and makes the directory.
    pub fn open(path: &Path, spent: &Path, now: SystemTime) -> Result<Arc<Self>, JoinError> {
        let file = JoinFile::load(path)?;
        store::make_private_directory(spent)?;
        let joins = Self {
            path: path.to_owned(),
            spent: spent.to_owned(),
            file: ArcSwap::from_pointee(file),
        };
        joins.sweep(now);
        Ok(Arc::new(joins))
    }

    /// For watching.
    pub fn path(&self) -> &PathBuf {
        &self.path
    }

    /// Reads the file again; a bad one leaves the old one in force.
    pub fn reload(&self, now: SystemTime) -> Result<(), JoinError> {
        self.file.store(Arc::new(JoinFile::load(&self.path)?));
        self.sweep(now);
        Ok(())
    }

    /// The entry of a token that may be used now, for the name that is asked for.
    pub fn find(
        &self,
        token: &Token,
        asked: Option<&Name>,
        cluster: &ClusterName,
        now: SystemTime,
    ) -> Result<(JoinEntry, Name), No> {
        let unknown = || {
            let text = "the join token is not known here: it was revoked, or is another cluster's";
            No::new(Refusal::JoinUnknown, text)
        };
        let token = JoinToken::parse(token.expose()).map_err(|_| unknown())?;
        let file = self.file.load();
        let entry = file.find(&token).ok_or_else(unknown)?;
        if token.cluster != *cluster {
            return Err(unknown());
        }
        if entry.is_over(now) {
            let text = format!(
                "join token {} ended at {}; make a new one with `towline-pki token create`",
                entry.id,
                date::text(entry.until)
            );
            return Err(No::new(Refusal::JoinExpired, text));
        }
        let name = match (asked, entry.name()) {
            (Some(asked), _) => asked.clone(),
            (None, Some(name)) => name,
            (None, None) => {
                let text = format!(
                    "join token {} is for {}: say which node this is with --node-name",
                    entry.id, entry.node
                );
                return Err(No::new(Refusal::OtherName, text));
            }
        };
        if !entry.node.fits(name.as_str()) {
            let text = format!(
                "join token {} is for {}, not for {name}",
                entry.id, entry.node
            );
            return Err(No::new(Refusal::OtherName, text));
        }
        Ok((entry.clone(), name))
    }

    fn mark(&self, entry: &JoinEntry) -> PathBuf {
        self.spent.join(entry.id.to_string())
    }

    /// Spends it for this key. Blocks until that is on the disk.
    pub fn spend(
        &self,
        entry: &JoinEntry,
        name: &Name,
        key: &[u8; 32],
        now: SystemTime,
    ) -> Result<(), No> {
        let path = self.mark(entry);
        let mark = JoinMark {
            key: *key,
            name: name.clone(),
            until: entry.until,
            at: now,
        };
        match store::write_public(&path, &format!("{mark}\n"), Replace::Never) {
            Ok(()) => Ok(()),
            Err(StoreError::Exists { .. }) => match store::read(&path) {
                Ok(there) if is_lost_answer(&there, &mark) => Ok(()),
                Ok(_) => Err(No::new(
                    Refusal::JoinUsed,
                    format!(
                        "join token {} was used; make a new one with `towline-pki token create`",
                        entry.id
                    ),
                )),
                Err(error) => Err(cannot(&error)),
            },
            Err(error) => Err(cannot(&error)),
        }
    }

    /// Removes marks of tokens that ended long ago. One that the file still knows keeps its mark,
    /// whatever the clock says: it may be wrong for a moment, and the token would count again.
    fn sweep(&self, now: SystemTime) {
        let Ok(marks) = store::files_below(&self.spent) else {
            return;
        };
        let file = self.file.load();
        let known: HashSet<String> = file
            .entries()
            .iter()
            .map(|entry| entry.id.to_string())
            .collect();
        for mark in marks {
            let name = mark.file_name().and_then(|name| name.to_str());
            if name.is_some_and(|name| known.contains(name)) {
                continue;
            }
            let read = store::read(&mark).ok();
            let until = read
                .and_then(|text| JoinMark::parse(&text))
                .map(|mark| mark.until);
            if until.is_some_and(|until| until + KEPT < now) {
                let _ = store::remove(&mark);
            }
        }
    }
}

/// Whether the mark that is there is of this very use, not long ago.
fn is_lost_answer(there: &[u8], now: &JoinMark) -> bool {
    JoinMark::parse(there).is_some_and(|there| {
        let end = there.at.checked_add(limits::JOIN_AGAIN);
        let same = (&there.key, &there.name, there.until) == (&now.key, &now.name, now.until);
        same && end.is_some_and(|end| now.at <= end)
    })
}

fn cannot(error: &StoreError) -> No {
    tracing::error!(%error, "a join token cannot be spent");
    No::new(
        Refusal::Unavailable,
        "the server cannot record that the token is used",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use towline_proto::pattern::Pattern;

    struct World {
        folder: PathBuf,
        joins: Arc<Joins>,
        token: JoinToken,
        now: SystemTime,
    }

    impl World {
        fn new(pattern: &str) -> Self {
            use std::sync::atomic::{AtomicU32, Ordering};
            static NEXT: AtomicU32 = AtomicU32::new(0);
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let folder =
                std::env::temp_dir().join(format!("towline-join-{}-{number}", std::process::id()));
            fs::create_dir_all(&folder).unwrap();
            let now = date::from_seconds(1_800_000_000);
            let token = JoinToken::make("c".parse().unwrap(), vec![[1; 32]]).unwrap();
            let node: Pattern = pattern.parse().unwrap();
            let entry = JoinEntry::new(&token, node, now, Vec::new()).unwrap();
            JoinFile::with(vec![entry])
                .write(&folder.join("tokens"))
                .unwrap();
            let joins = Joins::open(&folder.join("tokens"), &folder.join("spent"), now).unwrap();
            Self {
                folder,
                joins,
                token,
                now,
            }
        }

        fn find(&self, asked: Option<&str>, now: SystemTime) -> Result<(JoinEntry, Name), Refusal> {
            let text = self.token.to_text();
            let text = Token::new(std::str::from_utf8(text.expose()).unwrap()).unwrap();
            let asked = asked.map(|name| name.parse().unwrap());
            let cluster = "c".parse().unwrap();
            let found = self.joins.find(&text, asked.as_ref(), &cluster, now);
            found.map_err(|no| no.refusal)
        }
    }

    impl Drop for World {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.folder);
        }
    }

    #[test]
    fn a_token_is_for_its_node_and_its_time() {
        let world = World::new("n1");
        assert_eq!(world.find(None, world.now).unwrap().1.as_str(), "n1");
        assert_eq!(
            world.find(Some("n2"), world.now).unwrap_err(),
            Refusal::OtherName
        );
        let second = Duration::from_secs(1);
        assert!(world.find(None, world.now - second).is_ok());
        let late = world.find(None, world.now + second).unwrap_err();
        assert_eq!(late, Refusal::JoinExpired);
        let many = World::new("worker-*");
        assert_eq!(many.find(None, many.now).unwrap_err(), Refusal::OtherName);
        assert_eq!(
            many.find(Some("n1"), many.now).unwrap_err(),
            Refusal::OtherName
        );
        assert!(many.find(Some("worker-7"), many.now).is_ok());
        // Taken back.
        JoinFile::default()
            .write(&many.folder.join("tokens"))
            .unwrap();
        many.joins.reload(many.now).unwrap();
        let gone = many.find(Some("worker-7"), many.now).unwrap_err();
        assert_eq!(gone, Refusal::JoinUnknown);
    }

    #[test]
    fn it_is_spent_once_also_after_a_restart_and_beside_another_server() {
        let world = World::new("worker-*");
        let (entry, name) = world.find(Some("worker-1"), world.now).unwrap();
        let spend = |joins: &Joins, name: &Name, key: [u8; 32], now| {
            let spent = joins.spend(&entry, name, &key, now);
            spent.map_err(|no| no.refusal)
        };
        let used = Err(Refusal::JoinUsed);
        let joins = &world.joins;
        assert_eq!(spend(joins, &name, [1; 32], world.now), Ok(()));
        // The same use, whose answer was lost, for a while.
        let last = world.now + limits::JOIN_AGAIN;
        assert_eq!(spend(joins, &name, [1; 32], world.now), Ok(()));
        assert_eq!(spend(joins, &name, [1; 32], last), Ok(()));
        let late = last + Duration::from_secs(1);
        assert_eq!(spend(joins, &name, [1; 32], late), used);
        assert_eq!(spend(joins, &name, [2; 32], world.now), used);
        let other: Name = "worker-2".parse().unwrap();
        assert_eq!(spend(joins, &other, [1; 32], world.now), used);
        let (path, spent) = (world.folder.join("tokens"), world.folder.join("spent"));
        let second = Joins::open(&path, &spent, world.now).unwrap();
        assert_eq!(spend(&second, &name, [2; 32], world.now), used);
        // A clock that is wrong for a moment gives no token that is still known back.
        second.reload(world.now + KEPT * 2).unwrap();
        assert_eq!(spend(&second, &name, [2; 32], world.now), used);
        JoinFile::default().write(&path).unwrap();
        // The mark outlives the token by a week.
        let over = world.now + KEPT + Duration::from_secs(1);
        second.reload(world.now + KEPT).unwrap();
        assert_eq!(fs::read_dir(&spent).unwrap().count(), 1);
        second.reload(over).unwrap();
        assert_eq!(fs::read_dir(&spent).unwrap().count(), 0);
    }

    #[test]
    fn what_cannot_be_recorded_is_not_spent() {
        let world = World::new("n1");
        let (entry, name) = world.find(None, world.now).unwrap();
        fs::remove_dir(world.folder.join("spent")).unwrap();
        let no = world.joins.spend(&entry, &name, &[1; 32], world.now);
        assert_eq!(no.unwrap_err().refusal, Refusal::Unavailable);
    }

    #[test]
    fn a_bad_file_keeps_the_old_one() {
        let world = World::new("n1");
        fs::write(world.folder.join("tokens"), "nonsense").unwrap();
        assert!(world.joins.reload(world.now).is_err());
        assert!(world.find(None, world.now).is_ok());
    }
}
