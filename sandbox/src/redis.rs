//! A throw-away Redis.

use std::fmt::Write as _;
use std::io::{Read, Write as _};
use std::ops::Deref;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use super::process::{file_error, folder, free_port};
use super::program;
use super::server::Server;
use super::{SandboxError, Tls};

/// From the start of the process to the first answer.
const READY_WITHIN: Duration = Duration::from_secs(20);

/// How long a server that is up may take to answer a `PING`.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);

/// How to start a [`Redis`].
#[derive(Clone, Debug, Default)]
pub struct RedisOptions {
    /// Where to look for its program first; then come the `PATH` and the usual places.
    pub folders: Vec<PathBuf>,
    /// Whether it also listens on a free port of 127.0.0.1.
    pub tcp: bool,
    /// Listen with TLS, on another free port of 127.0.0.1. Clients need no certificate.
    pub tls: Option<Tls>,
    /// Whether it is a Sentinel. It takes the settings of `sentinel.conf`, and keeps across a restart what it
    /// has learned of the servers that it watches.
    pub sentinel: bool,
    /// Settings as in `redis.conf`: `("maxmemory", "10mb")`, `("user", "app on >secret ~* +@all")`. A name
    /// may occur more than once.
    pub settings: Vec<(String, String)>,
}

/// A running Redis in a folder of its own. Unless its settings say otherwise, it saves nothing and is empty
/// after a restart.
#[derive(Debug)]
pub struct Redis {
    program: PathBuf,
    is_sentinel: bool,
    tcp_port: Option<u16>,
    tls_port: Option<u16>,
    server: Server,
}

impl Deref for Redis {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}

impl Redis {
    /// Starts a server. Blocks for some milliseconds.
    pub fn start(options: &RedisOptions) -> Result<Self, SandboxError> {
        let program = program::redis(&options.folders)?;
        let folder = folder("preheat-redis-")?;
        let tcp_port = options.tcp.then(free_port).transpose()?;
        let tls_port = options.tls.as_ref().map(|_| free_port()).transpose()?;
        let config = config(options, folder.path(), tcp_port, tls_port);
        let path = folder.path().join("redis.conf");
        std::fs::write(&path, config).map_err(file_error("write", &path))?;
        let server = Server::new("redis", Signal::KILL, folder);
        let redis = Self { program, is_sentinel: options.sentinel, tcp_port, tls_port, server };
        redis.restart()?;
        Ok(redis)
    }

    /// A URL over the Unix socket.
    pub fn url(&self) -> String {
        format!("redis+unix://{}", self.socket().display())
    }

    /// A URL over TCP, if it listens on TCP.
    pub fn tcp_url(&self) -> Option<String> {
        self.tcp_port.map(|port| format!("redis://127.0.0.1:{port}"))
    }

    /// A URL over TLS, if it listens with TLS.
    pub fn tls_url(&self) -> Option<String> {
        self.tls_port.map(|port| format!("rediss://localhost:{port}"))
    }

    /// Its port of 127.0.0.1, if it listens on TCP.
    pub fn tcp_port(&self) -> Option<u16> {
        self.tcp_port
    }

    /// Its port for TLS, if it listens with TLS.
    pub fn tls_port(&self) -> Option<u16> {
        self.tls_port
    }

    /// Its Unix socket.
    pub fn socket(&self) -> PathBuf {
        self.server.folder().join("redis.sock")
    }

    /// Shuts it down in order.
    pub fn stop(&self) {
        self.server.stop(Signal::TERM);
    }

    /// Starts it again, empty, at the same socket and ports; stops it first if it runs.
    pub fn restart(&self) -> Result<(), SandboxError> {
        self.stop();
        let mut command = Command::new(&self.program);
        command.arg(self.server.folder().join("redis.conf")).current_dir(self.server.folder());
        if self.is_sentinel {
            command.arg("--sentinel");
        }
        let socket = self.socket();
        self.server.start(command, READY_WITHIN, |_id| is_ready(&socket))
    }
}

fn config(
    options: &RedisOptions,
    folder: &Path,
    tcp_port: Option<u16>,
    tls_port: Option<u16>,
) -> String {
    let folder = folder.display();
    let mut config = format!(
        "bind 127.0.0.1\nport {}\nunixsocket {folder}/redis.sock\nunixsocketperm 700\n\
         dir {folder}\nsave \"\"\nappendonly no\n",
        tcp_port.unwrap_or(0),
    );
    // Writing to a String cannot fail.
    if let (Some(Tls { certificate, key }), Some(port)) = (&options.tls, tls_port) {
        let (certificate, key) = (certificate.display(), key.display());
        writeln!(
            config,
            "tls-port {port}\ntls-cert-file {certificate}\ntls-key-file {key}\n\
             tls-ca-cert-file {certificate}\ntls-auth-clients no"
        )
        .ok();
    }
    for (name, value) in &options.settings {
        writeln!(config, "{name} {value}").ok();
    }
    config
}

/// Any answer except "still loading" will do: a server that asks for a password is ready as well.
fn is_ready(socket: &Path) -> bool {
    let answer = || -> std::io::Result<String> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(ANSWER_WITHIN))?;
        stream.write_all(b"PING\r\n")?;
        let mut answer = [0; 64];
        let length = stream.read(&mut answer)?;
        Ok(String::from_utf8_lossy(answer.get(..length).unwrap_or_default()).into_owned())
    };
    answer().is_ok_and(|answer| !answer.is_empty() && !answer.starts_with("-LOADING"))
}
