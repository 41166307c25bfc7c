//! The example service as a process of its own: this program, called with [`NAME`].

use std::net::{SocketAddr, TcpListener as StdListener};
use std::process::{Child, Command, Stdio};

use axum::Router;
use axum::routing::get;
use axum::serve::ListenerExt;
use clinic::{Service, Settings};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;

/// The word that makes a service of this program.
pub(crate) const NAME: &str = "clinic";
const COUNTS: &str = "/bench/counts";

/// Serves until standard input ends: that is when the benchmark does.
pub(crate) async fn serve() {
    let settings = Settings::from_environment().expect("settings");
    let service = Service::new(&settings).expect("the service");
    let listener = TcpListener::bind(&settings.listen).await.expect("its port");
    let listener = listener.tap_io(|stream| stream.set_nodelay(true).unwrap());
    let cache = service.cache().clone();
    let counts = move || async move { Counts::of(&cache.stats()).to_line() };
    let router: Router = service.router().route(COUNTS, get(counts));
    let (end, ended) = oneshot::channel::<()>();
    std::thread::spawn(move || {
        std::io::copy(&mut std::io::stdin(), &mut std::io::sink()).ok();
        drop(end);
    });
    tokio::select! {
        served = async { axum::serve(listener, router).await } => served.unwrap(),
        _ended = ended => {}
    }
}

/// What the clients of all services counted: values by how they were found.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) hit: u64,
    pub(crate) miss: u64,
    pub(crate) joined: u64,
    pub(crate) bypass: u64,
    pub(crate) refused: u64,
}

impl Counts {
    fn of(stats: &preheat_client::Stats) -> Self {
        let of = |count: fn(&preheat_client::Reads) -> u64| stats.reads.values().map(count).sum();
        Self {
            hit: of(|reads| reads.hit),
            miss: of(|reads| reads.miss),
            joined: of(|reads| reads.joined),
            bypass: of(|reads| reads.bypass),
            refused: of(|reads| reads.refused),
        }
    }

    fn to_line(self) -> String {
        let Self { hit, miss, joined, bypass, refused } = self;
        format!("{hit} {miss} {joined} {bypass} {refused}")
    }

    fn parse(line: &str) -> Self {
        let numbers: Vec<u64> = line.split(' ').map(|number| number.parse().unwrap()).collect();
        let [hit, miss, joined, bypass, refused] = numbers.try_into().unwrap();
        Self { hit, miss, joined, bypass, refused }
    }

    fn with(self, other: Self, combine: fn(u64, u64) -> u64) -> Self {
        Self {
            hit: combine(self.hit, other.hit),
            miss: combine(self.miss, other.miss),
            joined: combine(self.joined, other.joined),
            bypass: combine(self.bypass, other.bypass),
            refused: combine(self.refused, other.refused),
        }
    }

    pub(crate) fn plus(self, other: Self) -> Self {
        self.with(other, |one, other| one + other)
    }

    pub(crate) fn since(self, earlier: Self) -> Self {
        self.with(earlier, |now, then| now - then)
    }

    /// Of a hundred values, those that came from Redis.
    #[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
    pub(crate) fn hit_rate(self) -> f64 {
        let all = self.hit + self.miss + self.joined + self.bypass;
        self.hit as f64 / all as f64 * 100.0
    }

    /// Values that were loaded.
    pub(crate) fn loads(self) -> u64 {
        self.miss + self.bypass
    }
}

/// A child that ends when this is dropped.
pub(crate) struct Running(pub(crate) Child);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Running services that share a database and a cache.
pub(crate) struct Services {
    _processes: Vec<Running>,
    pub(crate) addresses: Vec<SocketAddr>,
}

impl Services {
    pub(crate) async fn start(number: usize, database: &str, cache: &str, has_cache: bool) -> Self {
        let (mut processes, mut addresses) = (Vec::new(), Vec::new());
        for _ in 0..number {
            let address = free_address();
            let process = Command::new(std::env::current_exe().unwrap())
                .arg(NAME)
                .env("DATABASE_URL", database)
                .env("REDIS_URL", cache)
                .env("LISTEN", address.to_string())
                .env("CACHE", if has_cache { "on" } else { "off" })
                .stdin(Stdio::piped())
                .spawn()
                .expect("the service");
            processes.push(Running(process));
            addresses.push(address);
        }
        let services = Self { _processes: processes, addresses };
        for address in &services.addresses {
            while ask(*address, COUNTS, "").await.is_none() {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        }
        services
    }

    pub(crate) async fn counts(&self) -> Counts {
        let mut sum = Counts::default();
        for address in &self.addresses {
            let (_, line) = ask(*address, COUNTS, "").await.expect("a service that answers");
            sum = sum.plus(Counts::parse(&line));
        }
        sum
    }

    /// Lets each service learn who the tenants are, which costs one query each, as sessions would know it.
    pub(crate) async fn meet<'a>(&self, tenants: impl Iterator<Item = &'a str> + Clone) {
        for address in &self.addresses {
            for tenant in tenants.clone() {
                ask(*address, "/services/none", tenant).await;
            }
        }
    }
}

pub(crate) fn free_address() -> SocketAddr {
    StdListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// The status and the body of an answer; none without an answer.
pub(crate) async fn ask(address: SocketAddr, path: &str, tenant: &str) -> Option<(u16, String)> {
    let mut stream = TcpStream::connect(address).await.ok()?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nhost: localhost\r\nx-tenant: {tenant}\r\nconnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await.ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.ok()?;
    let status = answer.split(' ').nth(1)?.parse().ok()?;
    answer.split_once("\r\n\r\n").map(|(_, body)| (status, body.to_owned()))
}
