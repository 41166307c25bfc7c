//! A throw-away Redis Cluster.

use std::io::{BufRead, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use super::process::{file_error, free_port, wait_until};
use super::{Redis, RedisOptions, SandboxError};

/// How many slots every cluster has.
const SLOTS: usize = 16_384;

/// From the first command to the moment when all nodes know all slots and all replicas have their
/// primary's data.
const READY_WITHIN: Duration = Duration::from_mins(1);

/// How long a node may take to answer.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// A running Redis Cluster: primaries that share the slots evenly, and one replica of each, if it
/// is to have replicas. Each node is a [`Redis`] on a free port of 127.0.0.1.
#[derive(Debug)]
pub struct RedisCluster {
    nodes: Vec<Redis>,
    /// The ports at which the nodes speak to each other.
    buses: Vec<u16>,
    primaries: usize,
}

impl RedisCluster {
    /// Starts a cluster of this many primaries. `options` are those of every node. Blocks for some
    /// seconds.
    pub fn start(
        primaries: usize,
        has_replicas: bool,
        options: &RedisOptions,
    ) -> Result<Self, SandboxError> {
        let count = if has_replicas { 2 * primaries } else { primaries };
        let buses = (0..count).map(|_| free_port()).collect::<Result<Vec<u16>, _>>()?;
        let nodes = buses.iter().map(|bus| start_node(options, *bus)).collect::<Result<_, _>>()?;
        let cluster = Self { nodes, buses, primaries };
        cluster.join()?;
        Ok(cluster)
    }

    /// The nodes: the primaries as they were at the start, then the replica of each.
    pub fn nodes(&self) -> &[Redis] {
        &self.nodes
    }

    /// A URL that names all nodes.
    pub fn url(&self) -> String {
        let ports = self.nodes.iter().filter_map(Redis::tcp_port);
        let hosts: Vec<String> = ports.map(|port| format!("127.0.0.1:{port}")).collect();
        format!("redis+cluster://{}", hosts.join(","))
    }

    /// A URL over TLS that names all nodes, if they listen with TLS.
    pub fn tls_url(&self) -> String {
        let ports = self.nodes.iter().filter_map(Redis::tls_port);
        let hosts: Vec<String> = ports.map(|port| format!("localhost:{port}")).collect();
        format!("rediss+cluster://{}", hosts.join(","))
    }

    /// Makes the nodes one cluster.
    fn join(&self) -> Result<(), SandboxError> {
        let (primaries, replicas) = self.nodes.split_at(self.primaries);
        for (index, node) in primaries.iter().enumerate() {
            let first = index * SLOTS / self.primaries;
            let last = (index + 1) * SLOTS / self.primaries - 1;
            ask(node, &format!("CLUSTER ADDSLOTSRANGE {first} {last}"))?;
        }
        let Some((first, others)) = self.nodes.split_first() else { return Ok(()) };
        for (node, bus) in others.iter().zip(self.buses.iter().skip(1)) {
            let port = node.tls_port().or(node.tcp_port()).unwrap_or_default();
            ask(first, &format!("CLUSTER MEET 127.0.0.1 {port} {bus}"))?;
        }
        let known = format!("cluster_known_nodes:{}\r", self.nodes.len());
        self.all(|node| info(node, "CLUSTER INFO").is_ok_and(|text| text.contains(&known)))?;
        for (replica, primary) in replicas.iter().zip(primaries) {
            let id = info(primary, "CLUSTER MYID")?;
            // The replica refuses until it has heard of its primary.
            let command = format!("CLUSTER REPLICATE {id}");
            self.eventually(|| ask(replica, &command).is_ok())?;
        }
        let ok = "cluster_state:ok\r";
        self.all(|node| info(node, "CLUSTER INFO").is_ok_and(|text| text.contains(ok)))?;
        let in_step = |node: &Redis| {
            let text = info(node, "INFO replication").unwrap_or_default();
            let has_replica =
                text.contains("connected_slaves:1\r") && text.contains("state=online");
            has_replica || text.contains("master_link_status:up\r") || replicas.is_empty()
        };
        self.all(in_step)?;
        // Every node's own word on who serves which slots.
        let view = |node: &Redis| {
            let text = info(node, "CLUSTER NODES").unwrap_or_default();
            text.matches(" slave ").count() + text.matches(",slave ").count()
        };
        self.all(|node| view(node) == replicas.len())
    }

    fn all(&self, is_so: impl Fn(&Redis) -> bool) -> Result<(), SandboxError> {
        self.eventually(|| self.nodes.iter().all(&is_so))
    }

    fn eventually(&self, is_so: impl FnMut() -> bool) -> Result<(), SandboxError> {
        if wait_until(READY_WITHIN, is_so) {
            return Ok(());
        }
        let log = self.nodes.first().map(|node| node.log_tail()).unwrap_or_default();
        Err(SandboxError::NotReady { server: "redis cluster", what: "was not ready in time", log })
    }
}

fn start_node(options: &RedisOptions, bus: u16) -> Result<Redis, SandboxError> {
    // Long enough for a busy machine, and short enough for tests that wait for a failover.
    let timeout = "2000";
    let mut settings = vec![
        ("cluster-enabled".to_owned(), "yes".to_owned()),
        ("cluster-port".to_owned(), bus.to_string()),
        ("cluster-node-timeout".to_owned(), timeout.to_owned()),
        ("cluster-replica-validity-factor".to_owned(), "0".to_owned()),
        ("cluster-allow-replica-migration".to_owned(), "no".to_owned()),
        ("repl-diskless-sync-delay".to_owned(), "0".to_owned()),
    ];
    if options.tls.is_some() {
        // A node names its port for TLS only if the nodes speak TLS to each other.
        let tls =
            ["tls-cluster", "tls-replication"].map(|name| (name.to_owned(), "yes".to_owned()));
        settings.extend(tls);
    }
    settings.extend(options.settings.iter().cloned());
    Redis::start(&RedisOptions { tcp: true, settings, ..options.clone() })
}

/// Sends a command that answers `+OK`.
fn ask(node: &Redis, command: &str) -> Result<(), SandboxError> {
    let answer = info(node, command)?;
    if answer == "OK" {
        return Ok(());
    }
    Err(SandboxError::NotReady { server: "redis cluster", what: "refused a command", log: answer })
}

/// Sends a command and reads its answer as text; the parts of a list come one a line.
fn info(node: &Redis, command: &str) -> Result<String, SandboxError> {
    let socket: PathBuf = node.socket();
    let answer = || -> std::io::Result<String> {
        let mut stream = UnixStream::connect(&socket)?;
        stream.set_read_timeout(Some(ANSWER_WITHIN))?;
        stream.write_all(format!("{command}\r\n").as_bytes())?;
        read(&mut BufReader::new(stream))
    };
    answer().map_err(file_error("ask the server at", &socket))
}

fn read(stream: &mut impl BufRead) -> std::io::Result<String> {
    let mut line = String::new();
    stream.read_line(&mut line)?;
    let line = line.trim_end();
    let number = |text: &str| text.parse::<usize>().unwrap_or_default();
    if let Some(length) = line.strip_prefix('$') {
        let mut text = vec![0; number(length) + 2];
        stream.read_exact(&mut text)?;
        let text = String::from_utf8_lossy(&text).into_owned();
        return Ok(text.strip_suffix("\r\n").unwrap_or(&text).to_owned());
    }
    if let Some(count) = line.strip_prefix('*') {
        let parts: std::io::Result<Vec<String>> =
            (0..number(count)).map(|_| read(stream)).collect();
        return Ok(parts?.join("\n"));
    }
    Ok(line.strip_prefix('+').unwrap_or(line).to_owned())
}
