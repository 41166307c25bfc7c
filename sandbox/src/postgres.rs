//! A throw-away Postgres.

use std::fmt::Write as _;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use rustix::process::Signal;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection};

use super::process::{file_error, folder, free_port, run_error};
use super::program::{self, PostgresPrograms, User};
use super::server::Server;
use super::{SandboxError, Tls};

/// The port in the socket's name if it does not listen on TCP.
const SOCKET_PORT: u16 = 5432;

/// The longest time from the start of the process to the first connection, including recovery after a kill.
const READY_WITHIN: Duration = Duration::from_mins(1);

/// The data need not survive anything, so nothing waits for a disk.
const SETTINGS: [(&str, &str); 13] = [
    ("dynamic_shared_memory_type", "mmap"), // in its folder, so that a kill leaves nothing in /dev/shm
    ("fsync", "off"),
    ("synchronous_commit", "off"),
    ("full_page_writes", "off"),
    ("wal_level", "minimal"),
    ("max_wal_senders", "0"),
    ("max_wal_size", "4GB"),
    ("max_connections", "200"),
    ("shared_buffers", "256MB"),
    ("jit", "off"),
    ("timezone", "UTC"),
    ("log_timezone", "UTC"),
    ("max_parallel_maintenance_workers", "0"),
];

/// How to start a [`Postgres`].
#[derive(Clone, Debug, Default)]
pub struct PostgresOptions {
    /// Where to look for its programs first; then come the `PATH` and the usual places.
    pub folders: Vec<PathBuf>,
    /// Whether it also listens on a free port of 127.0.0.1.
    pub tcp: bool,
    /// Offer TLS on that port.
    pub tls: Option<Tls>,
    /// Settings as in `postgresql.conf`; they override the sandbox's own.
    pub settings: Vec<(String, String)>,
    /// Lines of `pg_hba.conf`, placed before the line that trusts everybody.
    pub access: Vec<String>,
}

/// A running Postgres in a folder of its own. Its superuser is `postgres` and has no password.
#[derive(Debug)]
pub struct Postgres {
    programs: PostgresPrograms,
    user: Option<User>,
    arguments: Vec<String>,
    tcp_port: Option<u16>,
    server: Server,
}

impl Deref for Postgres {
    type Target = Server;

    fn deref(&self) -> &Server {
        &self.server
    }
}

impl Postgres {
    /// Creates a new cluster and starts it. Blocks for about a second.
    pub fn start(options: &PostgresOptions) -> Result<Self, SandboxError> {
        let user = program::postgres_user()?;
        let programs = program::postgres(&options.folders, user)?;
        let folder = folder("preheat-pg-")?;
        give(folder.path(), user)?;
        init(&programs, folder.path(), user)?;
        let tcp_port = options.tcp.then(free_port).transpose()?;
        let mut arguments = arguments(folder.path(), tcp_port);
        if let Some(tls) = &options.tls {
            arguments.extend(tls_arguments(tls, folder.path(), user)?);
        }
        arguments.extend(options.settings.iter().map(|(name, value)| setting(name, value)));
        allow(&options.access, folder.path())?;
        let server = Server::new("postgres", Signal::QUIT, folder);
        let postgres = Self { programs, user, arguments, tcp_port, server };
        postgres.restart()?;
        Ok(postgres)
    }

    /// A URL over the Unix socket, in a form that libpq, sqlx and node-postgres accept.
    pub fn url(&self, database: &str) -> String {
        let folder = self.server.folder().display();
        let port = self.tcp_port.unwrap_or(SOCKET_PORT);
        format!("postgres:///{database}?host={folder}&port={port}&user=postgres")
    }

    /// A URL over TCP, if it listens on TCP.
    pub fn tcp_url(&self, database: &str) -> Option<String> {
        self.tcp_port.map(|port| format!("postgres://postgres@127.0.0.1:{port}/{database}"))
    }

    /// Its port of 127.0.0.1, if it listens on TCP.
    pub fn tcp_port(&self) -> Option<u16> {
        self.tcp_port
    }

    /// Its Unix socket.
    pub fn socket(&self) -> PathBuf {
        let port = self.tcp_port.unwrap_or(SOCKET_PORT);
        self.server.folder().join(format!(".s.PGSQL.{port}"))
    }

    /// Shuts it down in order: clients get a message, transactions are rolled back. Its data stay.
    pub fn stop(&self) {
        self.server.stop(Signal::INT);
    }

    /// Starts it again with its data, at the same socket and port; stops it first if it runs.
    pub fn restart(&self) -> Result<(), SandboxError> {
        self.stop();
        let mut command = program::command(&self.programs.postgres, self.user);
        command.args(&self.arguments).current_dir(self.server.folder()).env("LC_ALL", "C");
        let state = self.server.folder().join("data/postmaster.pid");
        self.server.start(command, READY_WITHIN, |id| is_ready(&state, id))
    }

    /// Creates a database, empty or as a copy of another one that has no connections.
    pub async fn create_database(
        &self,
        name: &str,
        template: Option<&str>,
    ) -> Result<(), SandboxError> {
        let template = template.unwrap_or("template0");
        self.execute("postgres", &format!("create database {name:?} template {template:?}")).await
    }

    /// Drops a database, and every connection to it.
    pub async fn drop_database(&self, name: &str) -> Result<(), SandboxError> {
        self.execute("postgres", &format!("drop database if exists {name:?} with (force)")).await
    }

    /// Runs statements in a database; they are one transaction unless they say otherwise.
    pub async fn execute(&self, database: &str, sql: &str) -> Result<(), SandboxError> {
        execute(&self.url(database), sql).await
    }
}

/// Runs statements over a connection of their own.
pub(super) async fn execute(url: &str, sql: &str) -> Result<(), SandboxError> {
    let doing = || {
        let line = sql.trim_start().lines().next().unwrap_or_default();
        format!("run `{}`", line.chars().take(80).collect::<String>())
    };
    let run = async {
        let options: PgConnectOptions = url.parse()?;
        // The statement that creates a clinic is long; a log of it would contain its whole text.
        let options = options.disable_statement_logging();
        let mut connection = PgConnection::connect_with(&options).await?;
        sqlx::raw_sql(AssertSqlSafe(sql)).execute(&mut connection).await?;
        connection.close().await
    };
    run.await.map_err(|source| SandboxError::Sql { doing: doing(), source })
}

fn init(
    programs: &PostgresPrograms,
    folder: &Path,
    user: Option<User>,
) -> Result<(), SandboxError> {
    let output = program::command(&programs.initdb, user)
        .args(["--no-sync", "--auth=trust", "--encoding=UTF8", "--locale=C"])
        .args(["--username=postgres", "--pgdata"])
        .arg(folder.join("data"))
        .current_dir(folder)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(run_error("initdb"))?;
    if output.status.success() {
        return Ok(());
    }
    let log = String::from_utf8_lossy(&output.stderr).trim_end().to_owned();
    Err(SandboxError::NotReady { server: "initdb", what: "failed", log })
}

fn arguments(folder: &Path, tcp_port: Option<u16>) -> Vec<String> {
    let listen = if tcp_port.is_some() { "127.0.0.1" } else { "" };
    let port = tcp_port.unwrap_or(SOCKET_PORT);
    let mut arguments = vec![
        "-D".to_owned(),
        folder.join("data").display().to_string(),
        setting("listen_addresses", listen),
        setting("port", &port.to_string()),
        setting("unix_socket_directories", &folder.display().to_string()),
    ];
    arguments.extend(SETTINGS.iter().map(|(name, value)| setting(name, value)));
    arguments
}

fn setting(name: &str, value: &str) -> String {
    format!("--{name}={value}")
}

/// Postgres accepts a key only if no other user can read it, so it gets its own copy.
fn tls_arguments(
    tls: &Tls,
    folder: &Path,
    user: Option<User>,
) -> Result<[String; 3], SandboxError> {
    use std::os::unix::fs::PermissionsExt;
    let copy = |from: &Path, name: &str| {
        let to = folder.join(name);
        std::fs::copy(from, &to).map_err(file_error("copy", from))?;
        std::fs::set_permissions(&to, PermissionsExt::from_mode(0o600))
            .map_err(file_error("protect", &to))?;
        give(&to, user)?;
        Ok(to.display().to_string())
    };
    let certificate = copy(&tls.certificate, "server.crt")?;
    let key = copy(&tls.key, "server.key")?;
    Ok([
        setting("ssl", "on"),
        setting("ssl_cert_file", &certificate),
        setting("ssl_key_file", &key),
    ])
}

/// The first matching line decides about a connection, so the given lines come first.
fn allow(lines: &[String], folder: &Path) -> Result<(), SandboxError> {
    if lines.is_empty() {
        return Ok(());
    }
    let path = folder.join("data/pg_hba.conf");
    let trusting = std::fs::read_to_string(&path).map_err(file_error("read", &path))?;
    let mut text = String::new();
    for line in lines {
        // Writing to a String cannot fail.
        writeln!(text, "{line}").ok();
    }
    std::fs::write(&path, text + &trusting).map_err(file_error("write", &path))
}

fn give(path: &Path, user: Option<User>) -> Result<(), SandboxError> {
    user.map_or(Ok(()), |User { uid, gid }| {
        std::os::unix::fs::chown(path, Some(uid), Some(gid)).map_err(file_error("give away", path))
    })
}

/// The server writes its process id on the first line and its state on the eighth.
fn is_ready(state: &Path, id: u32) -> bool {
    let state = std::fs::read_to_string(state).unwrap_or_default();
    let mut lines = state.lines().map(str::trim);
    lines.next() == Some(id.to_string().as_str()) && lines.nth(6) == Some("ready")
}
