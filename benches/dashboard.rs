//! What the dashboard costs: `scripts/bench dashboard`.
//!
//! The program serves many jobs and is asked to run all of them again and again. Then the overview is read as
//! a browser reads it, one request after the other, and many streams of events are opened and left. The memory
//! of the program is read before, between and after: it should not grow with the runs and the connections.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::disallowed_methods,
    missing_docs,
    reason = "a benchmark stops where it cannot go on, reads the real clock and prints figures"
)]

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use clap::Parser;
use preheat_sandbox::{Clinic, Options, Sandbox};

/// How long the program may take to begin, or a run of all jobs to end.
const LONGEST: Duration = Duration::from_mins(5);
const TOKEN: &str = "bench";

#[derive(Parser)]
#[command(name = "scripts/bench dashboard", about = "Measures what the dashboard costs")]
struct Arguments {
    /// How many jobs there are.
    #[arg(long, default_value_t = 200)]
    jobs: usize,
    /// How many runs they have in all.
    #[arg(long, default_value_t = 10_000)]
    runs: usize,
    /// How many times the overview is read.
    #[arg(long, default_value_t = 200)]
    reads: usize,
    /// How many streams are opened and left.
    #[arg(long, default_value_t = 1_000)]
    connections: usize,
    /// Another build of the program.
    #[arg(long)]
    program: Option<PathBuf>,
    /// Given by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

#[tokio::main]
async fn main() {
    let arguments = Arguments::parse();
    let sandbox = Sandbox::start(Options::default()).await.expect("servers");
    let url = sandbox.postgres().url("postgres");
    Clinic::bench(5).load(&url).await.expect("the sample clinic");
    let folder = tempfile::tempdir().unwrap();
    write_jobs(folder.path(), arguments.jobs);
    let program = arguments.program.clone();
    let program = program.unwrap_or_else(|| env!("CARGO_BIN_EXE_preheat").into());
    let (mut worker, address) = serve(&program, &sandbox, folder.path());

    let rounds = arguments.runs.div_ceil(arguments.jobs);
    let mut memory = Vec::new();
    for round in 1..=rounds {
        let all = ask(address, "POST", "/api/v1/runs", r#"{"wait": true}"#);
        assert!(all.text.starts_with("HTTP/1.1 200"), "{}", all.text);
        if round == rounds.div_ceil(5) || round == rounds {
            memory.push((round * arguments.jobs, kilobytes(&worker)));
        }
    }
    let mut reads: Vec<_> = (0..arguments.reads).map(|_| ask(address, "GET", "/", "")).collect();
    reads.sort_by_key(|read| read.first_byte);
    let at = |share: usize| reads[(reads.len() - 1) * share / 100].first_byte.as_secs_f64() * 1e3;
    println!(
        "overview of {} jobs with {} runs: {} kB, first byte p50 {:.1} ms, p99 {:.1} ms",
        arguments.jobs,
        rounds * arguments.jobs,
        reads[0].text.len() / 1000,
        at(50),
        at(99),
    );
    let read = kilobytes(&worker);
    for _ in 0..arguments.connections {
        let mut stream = TcpStream::connect(address).unwrap();
        write!(stream, "GET /live HTTP/1.1\r\nHost: {address}\r\n\r\n").unwrap();
        let mut begin = [0; 15];
        stream.read_exact(&mut begin).unwrap();
    }
    let left = kilobytes(&worker);
    for (runs, kilobytes) in memory {
        println!("memory after {runs} runs: {} MB", kilobytes / 1000);
    }
    println!("memory after {} reads of the overview: {} MB", arguments.reads, read / 1000);
    println!("memory after {} streams: {} MB", arguments.connections, left / 1000);
    worker.kill().unwrap();
    worker.wait().unwrap();
}

fn write_jobs(folder: &Path, jobs: usize) {
    fs::create_dir(folder.join("jobs")).unwrap();
    for number in 0..jobs {
        let job = format!(
            "schedule = \"every 6h\"\nttl = \"1d\"\non_start = false\n[query]\n\
             sql = \"select tenant_id, name from services where tenant_id = any($1)\"\n\
             [[keys]]\nkey = \"bench{number}:{{tenant_id}}\"\n"
        );
        fs::write(folder.join(format!("jobs/bench_{number}.toml")), job).unwrap();
    }
}

fn serve(program: &Path, sandbox: &Sandbox, folder: &Path) -> (Child, SocketAddr) {
    let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let worker = Command::new(program)
        .arg("serve")
        .current_dir(folder)
        .env("DATABASE_URL", sandbox.postgres().url("postgres"))
        .env("REDIS_URL", sandbox.redis().url())
        .env("PREHEAT_HTTP__LISTEN", address.to_string())
        .env("PREHEAT_HTTP__TOKEN", TOKEN)
        .env("RUST_LOG", "error")
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let began = Instant::now();
    while !TcpStream::connect(address)
        .is_ok_and(|_| ask(address, "GET", "/api/v1/jobs", "").text.starts_with("HTTP/1.1 200"))
    {
        assert!(began.elapsed() < LONGEST, "the worker does not begin");
        std::thread::sleep(Duration::from_millis(50));
    }
    (worker, address)
}

struct Answer {
    first_byte: Duration,
    text: String,
}

/// Sends a request on a connection of its own.
fn ask(address: SocketAddr, method: &str, path: &str, body: &str) -> Answer {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(LONGEST)).unwrap();
    let began = Instant::now();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nAccept: text/html\r\n\
         Authorization: Bearer {TOKEN}\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .unwrap();
    let mut text = vec![0];
    stream.read_exact(&mut text).unwrap();
    let first_byte = began.elapsed();
    stream.read_to_end(&mut text).unwrap();
    Answer { first_byte, text: String::from_utf8(text).unwrap() }
}

/// The memory that a process has.
fn kilobytes(process: &Child) -> u64 {
    let status = fs::read_to_string(format!("/proc/{}/status", process.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}
