//! Where the servers' programs are on this machine, and which user runs them.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::SandboxError;

/// Folders that hold one Postgres each; the last part may hold one `*` for a version.
const POSTGRES_FOLDERS: [&str; 7] = [
    "/usr/lib/postgresql/*/bin",          // Debian
    "/usr/pgsql-*/bin",                   // the project's RPMs
    "/usr/libexec/postgresql*",           // Alpine
    "/opt/homebrew/opt/postgresql@*/bin", // Homebrew
    "/usr/local/opt/postgresql@*/bin",    // Homebrew on Intel
    "/opt/local/lib/postgresql*/bin",     // MacPorts
    "/Applications/Postgres.app/Contents/Versions/*/bin",
];

/// Folders with programs that may not be on the `PATH`.
const OTHER_FOLDERS: [&str; 4] =
    ["/opt/homebrew/bin", "/usr/local/bin", "/usr/local/pgsql/bin", "/usr/sbin"];

/// A user to run a server as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct User {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// The user that Postgres must run as, since it refuses root; `None` if the user of this process
/// will do.
pub(super) fn postgres_user() -> Result<Option<User>, SandboxError> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let users = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    ["postgres", "nobody"]
        .iter()
        .find_map(|name| user(&users, name))
        .map(Some)
        .ok_or(SandboxError::NoUser)
}

fn user(passwd: &str, name: &str) -> Option<User> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let (found, _password) = (fields.next()?, fields.next()?);
        let (uid, gid) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        (found == name && uid != 0).then_some(User { uid, gid })
    })
}

/// A command as that user.
pub(super) fn command(program: impl AsRef<OsStr>, user: Option<User>) -> Command {
    let mut command = Command::new(program);
    if let Some(User { uid, gid }) = user {
        command.uid(uid).gid(gid);
    }
    command
}

/// The programs of one Postgres.
#[derive(Clone, Debug)]
pub(super) struct PostgresPrograms {
    pub(super) initdb: PathBuf,
    pub(super) postgres: PathBuf,
}

/// Looks in `folders`, on the `PATH`, and in the usual places of systems; the newest version comes
/// first.
pub(super) fn postgres(
    folders: &[PathBuf],
    user: Option<User>,
) -> Result<PostgresPrograms, SandboxError> {
    let on_path = std::iter::once(PathBuf::new()); // a bare name: the system searches its PATH
    let installed = POSTGRES_FOLDERS.iter().flat_map(|pattern| newest_first(pattern));
    folders
        .iter()
        .cloned()
        .chain(on_path)
        .chain(installed)
        .chain(pg_config_folder())
        .chain(OTHER_FOLDERS.iter().map(PathBuf::from))
        .map(|folder| PostgresPrograms {
            initdb: folder.join("initdb"),
            postgres: folder.join("postgres"),
        })
        .find(|programs| runs(&programs.initdb, user) && runs(&programs.postgres, user))
        .ok_or_else(|| missing("postgres and initdb"))
}

/// Looks for a Redis, or a Valkey, which speaks the same protocol.
pub(super) fn redis(folders: &[PathBuf]) -> Result<PathBuf, SandboxError> {
    let on_path = std::iter::once(PathBuf::new());
    folders
        .iter()
        .cloned()
        .chain(on_path)
        .chain(OTHER_FOLDERS.iter().map(PathBuf::from))
        .flat_map(|folder| [folder.join("redis-server"), folder.join("valkey-server")])
        .find(|program| runs(program, None))
        .ok_or_else(|| missing("redis-server"))
}

/// Whether the program exists and runs as that user.
fn runs(program: &Path, user: Option<User>) -> bool {
    command(program, user)
        .arg("--version")
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

fn pg_config_folder() -> Option<PathBuf> {
    let output = Command::new("pg_config").arg("--bindir").stdin(Stdio::null()).output().ok()?;
    let folder = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| PathBuf::from(folder.trim_end()))
}

/// The folders that match a pattern with one `*`, the highest version first.
fn newest_first(pattern: &str) -> Vec<PathBuf> {
    let Some((before, after)) = pattern.split_once('*') else { return vec![pattern.into()] };
    let (parent, name) = before.rsplit_once('/').unwrap_or(("", before));
    let mut found: Vec<(u32, PathBuf)> = std::fs::read_dir(parent)
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let found = entry.ok()?.file_name().into_string().ok()?;
            let version = found.strip_prefix(name)?.parse().unwrap_or(0);
            Some((version, PathBuf::from(format!("{parent}/{found}{after}"))))
        })
        .collect();
    found.sort_by(|left, right| right.cmp(left));
    found.into_iter().map(|(_, folder)| folder).collect()
}

fn missing(programs: &'static str) -> SandboxError {
    const MANAGERS: [(&str, &str); 5] = [
        ("/usr/bin/apt-get", "apt-get install --yes postgresql redis-server"),
        ("/usr/bin/dnf", "dnf install --assumeyes postgresql-server redis"),
        ("/sbin/apk", "apk add postgresql redis"),
        ("/usr/bin/pacman", "pacman -S --noconfirm postgresql redis"),
        ("/opt/homebrew/bin/brew", "brew install postgresql redis"),
    ];
    let (sudo, otherwise) = if rustix::process::geteuid().is_root() {
        ("", "")
    } else {
        ("sudo ", "; without root, `scripts/demo` fetches servers for itself")
    };
    let hint = MANAGERS.iter().find(|(manager, _)| Path::new(manager).exists()).map_or_else(
        || "install PostgreSQL and Redis, or put their programs on the `PATH`".to_owned(),
        |(manager, install)| {
            let sudo = if manager.ends_with("brew") { "" } else { sudo };
            format!("install the servers with `{sudo}{install}`")
        },
    );
    SandboxError::Missing { programs, hint: hint + otherwise }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_found_by_the_whole_name_and_is_never_root() {
        let passwd = "root:x:0:0::/root:/bin/sh\npostgres2:x:7:7::/:/bin/sh\n\
                      postgres:x:101:104:PostgreSQL:/var/lib/postgresql:/bin/bash\nbroken\n";
        assert_eq!(user(passwd, "postgres"), Some(User { uid: 101, gid: 104 }));
        assert_eq!(user(passwd, "root"), None);
        assert_eq!(user(passwd, "nobody"), None);
    }

    #[test]
    fn the_newest_version_comes_first_and_other_names_do_not_match() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["pg-9", "pg-15", "pg-100", "redis-7"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        let found = newest_first(&format!("{}/pg-*/bin", folder.path().display()));
        let expected: Vec<_> = ["pg-100/bin", "pg-15/bin", "pg-9/bin"]
            .iter()
            .map(|name| folder.path().join(name))
            .collect();
        assert_eq!(found, expected);
    }

    #[test]
    fn what_is_missing_is_named_with_a_way_to_get_it() {
        let message = missing("redis-server").to_string();
        assert!(message.starts_with("cannot find redis-server: install "), "{message}");
    }
}
