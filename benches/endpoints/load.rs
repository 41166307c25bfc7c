//! An open-loop generator of HTTP requests.
//!
//! When each request is to be sent is fixed before the first one is. A slow answer holds nothing back, and a
//! latency counts from the moment at which the request was to be sent. So a server that stands still for a second
//! delays all requests of that second, and all of them are seen to be late.
//!
//! Two threads of its own: one waits for the next moment and hands the request over, the other sends it and reads
//! the answers. Both ask for a higher priority: on other machines, where clients are, they would not have to share
//! the processors with what is measured. How late requests were sent all the same is measured too.
#![allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    clippy::disallowed_methods,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "it reads the real clock, its numbers are small, and a benchmark stops where it cannot go on"
)]

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use hyper::body::Body as _;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rustix::process::{Resource, getrlimit, setpriority_process, setrlimit};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// What the two threads ask for; without the right to it they go on as they are.
const NICE: i32 = -15;
/// Between the start and the first arrival.
const HEAD_START: Duration = Duration::from_millis(20);
/// A request without an answer for so long has failed.
const ANSWER_WITHIN: Duration = Duration::from_secs(15);
/// A request that is sent later than this after its moment is late.
pub(crate) const LATE: Duration = Duration::from_millis(2);
/// How many failures the report describes.
const TOLD_FAILURES: usize = 5;

/// Random numbers that a seed determines: `SplitMix64`.
#[derive(Clone, Debug)]
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From 0, below 1.
    pub(crate) fn uniform(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// From 0, below `bound`.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }
}

/// Places from 0: the one at `n` is drawn in proportion to 1 / (n + 1).
#[derive(Clone, Debug)]
pub(crate) struct Zipf {
    cumulative: Vec<f64>,
}

impl Zipf {
    pub(crate) fn new(places: usize) -> Self {
        let sums = (1..=places).scan(0.0, |sum, place| {
            *sum += 1.0 / place as f64;
            Some(*sum)
        });
        Self { cumulative: sums.collect() }
    }

    pub(crate) fn draw(&self, random: &mut Random) -> usize {
        let drawn = random.uniform() * self.cumulative.last().expect("at least one place");
        self.cumulative.partition_point(|sum| *sum <= drawn)
    }
}

/// The moments of independent arrivals (Poisson) within a length of time.
pub(crate) fn arrivals(random: &mut Random, rate: f64, length: Duration) -> Vec<Duration> {
    let (mut moments, mut at) = (Vec::new(), 0.0);
    loop {
        at -= (1.0 - random.uniform()).ln() / rate;
        if at >= length.as_secs_f64() {
            return moments;
        }
        moments.push(Duration::from_secs_f64(at));
    }
}

/// A request and its moment.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Arrival {
    pub(crate) at: Duration,
    /// Which endpoint it is, by its place in the caller's list.
    pub(crate) endpoint: usize,
    pub(crate) method: &'static str,
    pub(crate) path: String,
    /// The header `x-tenant`.
    pub(crate) tenant: Arc<str>,
    pub(crate) body: String,
    /// The answer's status, if all is well.
    pub(crate) expects: u16,
}

/// What came of a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    pub(crate) at: Duration,
    pub(crate) endpoint: usize,
    /// From the moment at which it was to be sent to the end of the answer.
    pub(crate) latency: Duration,
    /// From that moment to the sending.
    pub(crate) lag: Duration,
    pub(crate) is_ok: bool,
}

/// What came of all of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    pub(crate) samples: Vec<Sample>,
    /// The first failures, in words.
    pub(crate) failures: Vec<String>,
}

impl Outcome {
    /// The latencies of some of the requests, in microseconds.
    pub(crate) fn latencies(&self, of: impl Fn(&Sample) -> bool) -> Histogram<u64> {
        histogram(self.samples.iter().filter(|sample| of(sample)).map(|sample| sample.latency))
    }

    /// How late requests were sent, in microseconds.
    pub(crate) fn lags(&self) -> Histogram<u64> {
        histogram(self.samples.iter().map(|sample| sample.lag))
    }

    pub(crate) fn late(&self) -> usize {
        self.samples.iter().filter(|sample| sample.lag > LATE).count()
    }

    pub(crate) fn failed(&self) -> usize {
        self.samples.iter().filter(|sample| !sample.is_ok).count()
    }
}

fn histogram(durations: impl Iterator<Item = Duration>) -> Histogram<u64> {
    // Three digits; it grows as it needs to.
    let mut histogram = Histogram::new(3).expect("three digits are allowed");
    for duration in durations {
        histogram.record(duration.as_micros() as u64).expect("it grows");
    }
    histogram
}

/// A percentile in milliseconds.
pub(crate) fn milliseconds(histogram: &Histogram<u64>, percentile: f64) -> f64 {
    histogram.value_at_percentile(percentile) as f64 / 1e3
}

/// Sends the requests, each at its moment, to the addresses in turn, and waits for all answers.
pub(crate) async fn run(addresses: Vec<SocketAddr>, arrivals: Vec<Arrival>) -> Outcome {
    let (tell, told) = oneshot::channel();
    thread::spawn(move || tell.send(pace(&addresses, arrivals)));
    told.await.expect("the generator ended")
}

fn pace(addresses: &[SocketAddr], arrivals: Vec<Arrival>) -> Outcome {
    open_many_files();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let handle = runtime.handle().clone();
    let (end, ended) = oneshot::channel::<()>();
    let sender = thread::spawn(move || {
        hurry();
        runtime.block_on(ended).ok();
    });
    hurry();
    let clients: Vec<_> = addresses.iter().map(|address| Arc::new(Client::new(*address))).collect();
    let start = Instant::now() + HEAD_START;
    let mut sent = Vec::with_capacity(arrivals.len());
    for (number, arrival) in arrivals.into_iter().enumerate() {
        let moment = start + arrival.at;
        thread::sleep(moment.saturating_duration_since(Instant::now()));
        let client = Arc::clone(&clients[number % clients.len()]);
        sent.push(handle.spawn(send(client, arrival, moment)));
    }
    let outcome = collect(&handle, sent);
    drop(end);
    sender.join().expect("the sender ended");
    outcome
}

fn collect(
    handle: &Handle,
    sent: Vec<tokio::task::JoinHandle<(Sample, Option<String>)>>,
) -> Outcome {
    let mut outcome = Outcome::default();
    for request in sent {
        let (sample, failure) = handle.block_on(request).expect("a request ended");
        outcome.samples.push(sample);
        outcome.failures.extend(failure.filter(|_| outcome.failures.len() < TOLD_FAILURES));
    }
    outcome
}

/// A higher priority for this thread alone.
fn hurry() {
    setpriority_process(None, NICE).ok();
}

/// Without back-pressure, a slow server means many connections.
fn open_many_files() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).ok();
}

async fn send(client: Arc<Client>, arrival: Arrival, moment: Instant) -> (Sample, Option<String>) {
    let lag = moment.elapsed();
    let answer = tokio::time::timeout(ANSWER_WITHIN, client.exchange(&arrival)).await;
    let latency = moment.elapsed();
    let failure = match answer {
        Ok(Ok(status)) if status == arrival.expects => None,
        Ok(Ok(status)) => Some(format!("status {status} instead of {}", arrival.expects)),
        Ok(Err(error)) => Some(error.to_string()),
        Err(_elapsed) => Some("no answer".to_owned()),
    };
    let Arrival { at, endpoint, method, path, .. } = arrival;
    let sample = Sample { at, endpoint, latency, lag, is_ok: failure.is_none() };
    (sample, failure.map(|failure| format!("{method} {path}: {failure}")))
}

/// Keep-alive connections to one server: as many as there are requests at a time.
struct Client {
    address: SocketAddr,
    idle: Mutex<Vec<SendRequest<String>>>,
}

type Failure = Box<dyn std::error::Error + Send + Sync>;

impl Client {
    fn new(address: SocketAddr) -> Self {
        Self { address, idle: Mutex::default() }
    }

    async fn exchange(&self, arrival: &Arrival) -> Result<u16, Failure> {
        let mut connection = self.connection().await?;
        let request = hyper::Request::builder()
            .method(arrival.method)
            .uri(&arrival.path)
            .header("host", "clinic")
            .header("content-type", "application/json")
            .header("x-tenant", &*arrival.tenant)
            .body(arrival.body.clone())?;
        let answer = connection.send_request(request).await?;
        let status = answer.status().as_u16();
        let mut body = answer.into_body();
        while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
            frame?;
        }
        self.idle.lock().unwrap().push(connection);
        Ok(status)
    }

    async fn connection(&self) -> Result<SendRequest<String>, Failure> {
        loop {
            let Some(mut idle) = self.idle.lock().unwrap().pop() else { break };
            if idle.ready().await.is_ok() {
                return Ok(idle);
            }
        }
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        let (connection, driver) = handshake(TokioIo::new(stream)).await?;
        tokio::spawn(driver);
        Ok(connection)
    }
}
