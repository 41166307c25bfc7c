//! The real program, in a folder of its own.

use std::ffi::OsStr;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::Path;
use std::process::{ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

use super::{LONG, eventually};

/// A password or token of the tests. No program may print it: the output of each program is searched for it
/// when the program has ended.
pub(crate) const SECRET: &str = "hush-hush";

/// `preheat` with these arguments, without any server or job yet.
pub(crate) fn preheat<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Preheat {
    let folder = tempfile::Builder::new().prefix("preheat-it-").tempdir().unwrap();
    std::fs::create_dir(folder.path().join("jobs")).unwrap();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let address = listener.local_addr().unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_preheat"));
    command
        .args(arguments)
        .current_dir(folder.path())
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("PREHEAT_HTTP__LISTEN", address.to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true);
    Preheat { folder, address, command, typed: None }
}

/// A program that has not been started.
pub(crate) struct Preheat {
    folder: TempDir,
    address: SocketAddr,
    command: Command,
    typed: Option<String>,
}

impl Preheat {
    pub(crate) fn env(mut self, name: &str, value: impl AsRef<str>) -> Self {
        self.command.env(name, value.as_ref());
        self
    }

    pub(crate) fn argument(mut self, argument: impl AsRef<str>) -> Self {
        self.command.arg(argument.as_ref());
        self
    }

    /// `DATABASE_URL`.
    pub(crate) fn database(self, url: impl AsRef<str>) -> Self {
        self.env("DATABASE_URL", url)
    }

    /// `REDIS_URL`.
    pub(crate) fn cache(self, url: impl AsRef<str>) -> Self {
        self.env("REDIS_URL", url)
    }

    /// The text of `preheat.toml`.
    pub(crate) fn settings(self, text: &str) -> Self {
        self.file("preheat.toml", text)
    }

    /// A job file.
    pub(crate) fn job(self, name: &str, text: &str) -> Self {
        self.file(&format!("jobs/{name}.toml"), text)
    }

    /// The jobs that preheat ships, instead of those of [`Preheat::job`].
    pub(crate) fn shipped_jobs(self) -> Self {
        self.env("PREHEAT_JOBS", concat!(env!("CARGO_MANIFEST_DIR"), "/jobs"))
    }

    /// Any file, by its path in the program's working folder.
    pub(crate) fn file(self, path: &str, text: &str) -> Self {
        std::fs::write(self.folder.path().join(path), text).unwrap();
        self
    }

    /// The program's working folder.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The address of its HTTP server.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The same in another working folder, which stays when the program has ended.
    pub(crate) fn within(mut self, folder: &Path) -> Self {
        self.command.current_dir(folder);
        self
    }

    /// The same with this text on its standard input.
    pub(crate) fn typing(mut self, text: &str) -> Self {
        self.command.stdin(Stdio::piped());
        self.typed = Some(text.to_owned());
        self
    }

    /// The same, with a limit on its open files.
    pub(crate) fn files(self, most: u32) -> Self {
        let plain = self.command.as_std();
        let words = std::iter::once(plain.get_program()).chain(plain.get_args());
        let mut command = Command::new("sh");
        command.arg("-c").arg(format!("ulimit -n {most}; exec \"$0\" \"$@\"")).args(words);
        self.by(command)
    }

    /// The same, started by another command, in its folder and with its environment and its pipes.
    pub(crate) fn by(mut self, mut command: Command) -> Self {
        let environment = self.command.as_std().get_envs();
        command
            .current_dir(self.folder.path())
            .env_clear()
            .envs(environment.filter_map(|(name, value)| Some((name, value?))))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        self.command = command;
        self
    }

    /// The same on a terminal with this many columns, whose text becomes its standard output; `None` if no
    /// program here can create a terminal.
    pub(crate) fn on_terminal(self, columns: u16) -> Option<Self> {
        let plain = self.command.as_std();
        let words = std::iter::once(plain.get_program()).chain(plain.get_args());
        let quoted = |word: &OsStr| format!("'{}'", word.to_str().unwrap().replace('\'', "'\\''"));
        let line = words.map(quoted).collect::<Vec<_>>().join(" ");
        let mut command = Command::new("script");
        // `nohup` ignores SIGHUP, and the program would outlive its terminal.
        let line = format!("stty cols {columns}; exec env --default-signal=HUP {line}");
        command.args(["-qec", &line, "/dev/null"]);
        let there = std::process::Command::new("script").arg("--version").output();
        // Versions other than util-linux's take other arguments.
        let there = there.is_ok_and(|run| run.stdout.windows(10).any(|text| text == b"util-linux"));
        there.then(|| self.by(command).env("TERM", "xterm").env("SHELL", "/bin/sh"))
    }

    /// Runs it until it ends.
    pub(crate) async fn run(self) -> Output {
        self.start().ended().await
    }

    /// Starts it.
    pub(crate) fn start(mut self) -> Running {
        let mut child = self.command.spawn().unwrap();
        if let (Some(text), Some(mut stdin)) = (self.typed.take(), child.stdin.take()) {
            tokio::spawn(async move { stdin.write_all(text.as_bytes()).await });
        }
        let stdout = Captured::new(child.stdout.take().unwrap());
        let stderr = Captured::new(child.stderr.take().unwrap());
        Running { child, stdout, stderr, address: self.address, folder: self.folder }
    }
}

/// The result of a program that has ended.
#[derive(Clone, Debug)]
pub(crate) struct Output {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Output {
    /// The exit code, if no signal ended it.
    pub(crate) fn code(&self) -> Option<i32> {
        self.status.code()
    }

    /// Fails the test with all output, if the exit code differs.
    #[track_caller]
    pub(crate) fn expect_code(self, code: i32) -> Self {
        let Self { status, stdout, stderr } = &self;
        assert_eq!(
            status.code(),
            Some(code),
            "{status}\n--- stdout\n{stdout}\n--- stderr\n{stderr}"
        );
        self
    }

    /// Standard output as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }
}

/// A running program; it is killed on drop.
pub(crate) struct Running {
    child: Child,
    stdout: Captured,
    stderr: Captured,
    address: SocketAddr,
    folder: TempDir,
}

impl Running {
    /// The address of its HTTP server.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn id(&self) -> u32 {
        self.child.id().expect("the program has ended")
    }

    /// The program's working folder.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let id = Pid::from_raw(self.id().try_into().unwrap()).unwrap();
        kill_process(id, signal).unwrap();
    }

    /// Closes the reading end of its standard error.
    pub(crate) async fn log_is_closed(&mut self) {
        self.stderr.reading.abort();
        eventually("nobody reads", LONG, async || self.stderr.is_complete()).await;
    }

    /// Standard output so far.
    pub(crate) fn stdout(&self) -> String {
        self.stdout.text()
    }

    /// Standard error so far.
    pub(crate) fn stderr(&self) -> String {
        self.stderr.text()
    }

    /// Waits until standard error contains that text.
    pub(crate) async fn says(&mut self, text: &str) {
        eventually(&format!("standard error has {text:?}"), LONG, async || {
            let ended = self.child.try_wait().unwrap().is_some();
            if ended {
                self.stderr.complete().await;
            }
            let said = self.stderr().contains(text);
            assert!(said || !ended, "ended without {text:?}:\n{}", self.stderr());
            said
        })
        .await;
    }

    /// Waits until standard output contains that text.
    pub(crate) async fn prints(&self, text: &str) {
        eventually(&format!("standard output has {text:?}"), LONG, async || {
            self.stdout().contains(text)
        })
        .await;
    }

    /// Waits until the route answers with that status.
    pub(crate) async fn answers(&self, path: &str, status: u16) {
        eventually(&format!("{path} answers {status}:\n{}", self.stderr()), LONG, async || {
            assert!(!self.stderr.is_complete(), "ended:\n{}", self.stderr());
            super::http::get(self.address, path).await.is_ok_and(|answer| answer.status == status)
        })
        .await;
    }

    /// Waits until the worker has reached its servers and works.
    pub(crate) async fn works(&self) {
        eventually(&format!("the worker works:\n{}", self.stderr()), LONG, async || {
            assert!(!self.stderr.is_complete(), "ended:\n{}", self.stderr());
            let ready = super::http::get(self.address, "/readyz").await;
            ready.is_ok_and(|ready| ready.json()["status"] != "starting")
        })
        .await;
    }

    /// Waits until it ends, for at most [`LONG`].
    pub(crate) async fn ended(self) -> Output {
        self.ended_within(LONG).await
    }

    /// The same, with another limit.
    pub(crate) async fn ended_within(mut self, limit: Duration) -> Output {
        let Ok(status) = tokio::time::timeout(limit, self.child.wait()).await else {
            panic!("still runs after {limit:?}:\n{}\n{}", self.stdout(), self.stderr());
        };
        let status = status.unwrap();
        self.stdout.complete().await;
        self.stderr.complete().await;
        for said in [self.stdout(), self.stderr()] {
            assert!(!said.contains(SECRET), "hazard 32: a secret was said:\n{said}");
        }
        Output { status, stdout: self.stdout(), stderr: self.stderr() }
    }
}

/// What a program prints, while it prints it.
struct Captured {
    bytes: Arc<Mutex<Vec<u8>>>,
    reading: JoinHandle<()>,
}

impl Captured {
    fn new(mut from: impl AsyncRead + Send + Unpin + 'static) -> Self {
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let into = Arc::clone(&bytes);
        let reading = tokio::spawn(async move {
            let mut buffer = vec![0; 16 * 1024];
            while let Ok(length @ 1..) = from.read(&mut buffer).await {
                let mut into = into.lock().unwrap_or_else(PoisonError::into_inner);
                into.extend_from_slice(&buffer[..length]);
            }
        });
        Self { bytes, reading }
    }

    fn text(&self) -> String {
        let bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Whether the program has closed this output.
    fn is_complete(&self) -> bool {
        self.reading.is_finished()
    }

    /// Waits until the program has closed this output.
    async fn complete(&mut self) {
        if !self.reading.is_finished() {
            (&mut self.reading).await.unwrap();
        }
    }
}
