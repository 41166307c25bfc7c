//! A server process that never outlives its owner.
//!
//! Dropping the handle ends it. If nothing drops the handle (the owner is killed, or the handle is in a
//! static), a watchdog ends the server: a shell that waits for the end of a pipe whose other end only the
//! owner holds, then ends the server and removes its folder. Linux' "signal on the parent's death" would not
//! do: the parent there is the thread that started the child.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::SandboxError;

/// How often a state is checked while waiting for it.
const POLL: Duration = Duration::from_millis(3);

/// A server that has not ended this long after it was asked is killed.
const GRACE: Duration = Duration::from_secs(10);

/// How much of the end of a log an error shows.
const LOG_TAIL: u64 = 2048;

/// The longest path of a Unix socket, by the system with the lowest limit (macOS has 104 bytes).
const MAX_SOCKET_PATH: usize = 100;

/// How many bytes of [`MAX_SOCKET_PATH`] the folder's random name and the socket's name need.
const SOCKET_NAME_ROOM: usize = 36;

/// The arguments are `$1` the server, `$2` the signal that ends it, and `$3` its folder. A line on standard
/// input means that the owner has cleaned up; the end of input without a line means that the owner is gone.
const WATCHDOG: &str = r#"
trap '' INT TERM HUP QUIT
read -r _ && exit 0
for process in $(cat "/proc/$1/task/$1/children" 2>/dev/null) "$1"; do
  kill -CONT "$process" 2>/dev/null
done
kill -"$2" "$1" 2>/dev/null
waited=0
while kill -0 "$1" 2>/dev/null && [ "$waited" -lt 50 ]; do
  sleep 0.1
  waited=$((waited + 1))
done
kill -KILL "$1" 2>/dev/null
rm -rf "$3"
"#;

/// A running server and its watchdog.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    watchdog: Child,
    end_signal: Signal,
}

impl Process {
    /// Starts the command in a process group of its own, so that a terminal's Ctrl-C reaches only the owner;
    /// its output goes into `log`.
    pub(super) fn start(
        mut command: Command,
        folder: &Path,
        log: &Path,
        end_signal: Signal,
    ) -> Result<Self, SandboxError> {
        let output =
            File::options().create(true).append(true).open(log).map_err(file_error("open", log))?;
        let errors = output.try_clone().map_err(file_error("open", log))?;
        let program = command.get_program().to_string_lossy().into_owned();
        let mut child = command
            .stdin(Stdio::null())
            .stdout(output)
            .stderr(errors)
            .process_group(0)
            .spawn()
            .map_err(run_error(&program))?;
        match watch(child.id(), end_signal, folder) {
            Ok(watchdog) => Ok(Self { child, watchdog, end_signal }),
            Err(error) => {
                // Without a watchdog the server must not run; the watchdog's error is the one to return.
                child.kill().and_then(|()| child.wait()).ok();
                Err(error)
            }
        }
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether it has ended by itself.
    pub(super) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Sends the signal to the server and to the processes it has started.
    pub(super) fn signal(&self, signal: Signal) {
        for process in self.family() {
            // A process that has ended needs no signal any more.
            kill_process(process, signal).ok();
        }
    }

    /// Asks the server with `signal` to end and waits; if it does not end, kills it and its children.
    pub(super) fn end(&mut self, signal: Signal) {
        if self.ended().is_none() {
            let family = self.family();
            if let Some(server) = pid(self.child.id()) {
                self.signal(Signal::CONT);
                kill_process(server, signal).ok();
            }
            if !wait_until(GRACE, || self.ended().is_some()) {
                for process in family {
                    kill_process(process, Signal::KILL).ok();
                }
                self.child.wait().ok();
            }
        }
        self.dismiss();
    }

    /// Kills the server and its children at once, as a crash of the machine would.
    pub(super) fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.child.wait().ok();
        self.dismiss();
    }

    /// The server and its children; only the server if there is no `/proc`.
    fn family(&self) -> Vec<Pid> {
        let id = self.child.id();
        let children =
            std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
        let children = children.split_whitespace().filter_map(|child| child.parse().ok());
        std::iter::once(id).chain(children).filter_map(pid).collect()
    }

    fn dismiss(&mut self) {
        if let Some(mut line) = self.watchdog.stdin.take() {
            line.write_all(b"done\n").ok();
        }
        self.watchdog.wait().ok();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.end(self.end_signal);
    }
}

fn watch(server: u32, end_signal: Signal, folder: &Path) -> Result<Child, SandboxError> {
    Command::new("/bin/sh")
        .args(["-c", WATCHDOG, "preheat-watchdog"])
        .arg(server.to_string())
        .arg(end_signal.as_raw().to_string())
        .arg(folder)
        .current_dir("/")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn()
        .map_err(run_error("/bin/sh"))
}

fn pid(raw: u32) -> Option<Pid> {
    i32::try_from(raw).ok().and_then(Pid::from_raw)
}

/// Waits for a state of another process; answers whether it came in time.
#[expect(
    clippy::disallowed_methods,
    reason = "the state of another process does not move with a virtual clock"
)]
pub(super) fn wait_until(limit: Duration, mut reached: impl FnMut() -> bool) -> bool {
    let start = Instant::now();
    while !reached() {
        if start.elapsed() > limit {
            return false;
        }
        std::thread::sleep(POLL);
    }
    true
}

/// A new folder whose path is short enough for a socket and which every user can reach.
pub(super) fn folder(prefix: &str) -> Result<TempDir, SandboxError> {
    let usual = std::env::temp_dir();
    let base = if fits_sockets(&usual) && open_to_all(&usual) { usual } else { "/tmp".into() };
    tempfile::Builder::new()
        .prefix(prefix)
        .tempdir_in(&base)
        .map_err(file_error("make a temporary folder in", &base))
}

fn fits_sockets(base: &Path) -> bool {
    base.as_os_str().len() + SOCKET_NAME_ROOM <= MAX_SOCKET_PATH
}

/// Whether a user who owns none of the folders on the path can pass through them. Only root needs this, since
/// root runs the server as another user.
fn open_to_all(base: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    !rustix::process::geteuid().is_root()
        || base.ancestors().all(|folder| {
            folder.metadata().is_ok_and(|metadata| metadata.permissions().mode() & 0o001 != 0)
        })
}

/// The end of a log, or the reason why it cannot be read.
pub(super) fn log_tail(log: &Path) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL)))?;
        let mut tail = Vec::new();
        file.read_to_end(&mut tail)?;
        Ok(String::from_utf8_lossy(&tail).trim_end().to_owned())
    };
    read().unwrap_or_else(|error| format!("(no log: {error})"))
}

/// A port of 127.0.0.1 that was free a moment ago.
pub(super) fn free_port() -> Result<u16, SandboxError> {
    std::net::TcpListener::bind(("127.0.0.1", 0))
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .map_err(file_error("find a free port of", Path::new("127.0.0.1")))
}

pub(super) fn file_error(
    doing: &'static str,
    path: &Path,
) -> impl FnOnce(std::io::Error) -> SandboxError {
    let path = PathBuf::from(path);
    move |source| SandboxError::File { doing, path, source }
}

pub(super) fn run_error(program: &str) -> impl FnOnce(std::io::Error) -> SandboxError {
    let program = program.to_owned();
    move |source| SandboxError::Run { program, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper(folder: &Path) -> Process {
        let mut command = Command::new("sleep");
        command.arg("60");
        Process::start(command, folder, &folder.join("log"), Signal::TERM).unwrap()
    }

    fn alive(id: u32) -> bool {
        rustix::process::test_kill_process(pid(id).unwrap()).is_ok()
    }

    #[test]
    fn a_dropped_process_is_gone() {
        let folder = folder("preheat-test-").unwrap();
        let process = sleeper(folder.path());
        let id = process.id();
        assert!(alive(id));
        drop(process);
        assert!(!alive(id));
    }

    #[test]
    fn a_frozen_process_can_be_ended() {
        let folder = folder("preheat-test-").unwrap();
        let process = sleeper(folder.path());
        let id = process.id();
        process.signal(Signal::STOP);
        drop(process);
        assert!(!alive(id));
    }

    #[test]
    fn the_watchdog_ends_the_process_and_removes_its_folder_when_the_owner_is_gone() {
        let folder = folder("preheat-test-").unwrap();
        let mut process = sleeper(folder.path());
        drop(process.watchdog.stdin.take());
        assert!(wait_until(Duration::from_secs(10), || process.ended().is_some()));
        assert!(wait_until(Duration::from_secs(10), || !folder.path().exists()));
    }
}
