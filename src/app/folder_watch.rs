//! Notices that the job files have changed, by looking at them.
//!
//! It compares contents and asks the system for no notifications: a mounted `ConfigMap` changes by a symbolic
//! link that is exchanged, and network file systems notify of nothing.

use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use super::versions::Versions;
use crate::config::Settings;
use crate::definition::{self, Contents};
use crate::engine::ports::Clock;

/// The time between two looks at the folder.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Looks at the jobs folder.
pub(super) struct FolderWatch {
    folder: PathBuf,
    clock: Arc<dyn Clock>,
    seen: Mutex<Seen>,
}

/// What the looks have seen.
struct Seen {
    /// The contents that were read last, with success or not.
    read: Contents,
    /// Other contents, seen by the last look. They count once a second look sees the same: a program that
    /// writes several files, or one slowly, needs some time.
    fresh: Option<Contents>,
}

impl FolderWatch {
    /// Watches the folder that these versions come from, if the settings say so.
    pub(super) fn of(
        settings: &Settings,
        versions: &Versions,
        clock: &Arc<dyn Clock>,
    ) -> Option<Arc<Self>> {
        // Without contents, the jobs come from no folder.
        let read = versions.contents().filter(|_| settings.runner.watch_jobs)?;
        let (folder, clock) = (settings.jobs.clone(), Arc::clone(clock));
        Some(Arc::new(Self { folder, clock, seen: Mutex::new(Seen { read, fresh: None }) }))
    }

    /// Notifies each time that the folder has other contents than those that were read, and the same at
    /// two looks. Never returns.
    pub(super) async fn run(&self, reload: &Notify) -> Infallible {
        loop {
            self.clock.sleep(LOOK_EVERY).await;
            let folder = self.folder.clone();
            // In a blocking task: the folder may be on a disk that hangs.
            let look = tokio::task::spawn_blocking(move || definition::contents(&folder));
            if let Ok(found) = look.await
                && self.seen().are_settled(found)
            {
                reload.notify_one();
            }
        }
    }

    /// Notes that the folder is read now, whatever comes of it.
    pub(super) fn is_read(&self, contents: Contents) {
        *self.seen() = Seen { read: contents, fresh: None };
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Seen {
    /// Whether these contents are new, and a look has seen them before.
    fn are_settled(&mut self, found: Contents) -> bool {
        let fresh = (found != self.read).then_some(found);
        let is_settled = fresh.is_some() && fresh == self.fresh;
        self.fresh = fresh;
        is_settled
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    #[test]
    fn contents_count_once_they_stay_and_are_not_those_that_were_read() {
        let folder = tempfile::tempdir().unwrap();
        let look = || definition::contents(folder.path());
        let write = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        write("a.toml", "ttl = \"1h\"\n");
        let mut seen = Seen { read: look(), fresh: None };
        assert!(!seen.are_settled(look()) && !seen.are_settled(look()));
        write("a.toml", "ttl = \"2h\"\n[que");
        assert!(!seen.are_settled(look()), "the file may be half written");
        write("a.toml", "ttl = \"2h\"\n[query]\nfile = \"a.sql\"\n");
        assert!(!seen.are_settled(look()));
        assert!(seen.are_settled(look()));
        seen = Seen { read: look(), fresh: None };
        write("b.toml", "");
        assert!(!seen.are_settled(look()));
        fs::remove_file(folder.path().join("b.toml")).unwrap();
        assert!(!seen.are_settled(look()) && !seen.are_settled(look()), "it is as it was");
    }

    #[test]
    fn whatever_a_reader_of_the_folder_would_notice_changes_the_contents() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let mut before = vec![definition::contents(Path::new("/no/such/folder"))];
        let mut differs = |what: &str| {
            let now = definition::contents(folder.path());
            assert!(!before.contains(&now), "{what}");
            before.push(now);
        };
        differs("an empty folder");
        fs::write(path("a.toml"), "[query]\nfile = \"sql/a.sql\"\n").unwrap();
        differs("a file");
        fs::create_dir(path("sql")).unwrap();
        fs::write(path("sql/a.sql"), "select 1").unwrap();
        differs("its SQL");
        fs::write(path("sql/a.sql"), "select 2").unwrap();
        differs("other SQL");
        fs::write(path("b.TOML"), "").unwrap();
        differs("a file that is overlooked");
        fs::rename(path("a.toml"), path("c.toml")).unwrap();
        differs("another name");
        let now = definition::contents(folder.path());
        fs::write(path("README.md"), "for people").unwrap();
        fs::write(path(".a.toml.swp"), "an editor's").unwrap();
        assert_eq!(definition::contents(folder.path()), now, "nobody reads these");
    }
}
