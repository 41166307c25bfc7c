//! `preheat demo`.

use std::path::Path;

use rustix::process::Signal;
use tempfile::TempDir;

use crate::support::program::{Output, Preheat};
use crate::support::{LONG, eventually, http, preheat, skipped};

/// A folder for temporary files that every user can reach, since root runs the servers as another
/// user.
fn temporary() -> TempDir {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::Builder::new().prefix("pd-").tempdir_in("/tmp").unwrap();
    std::fs::set_permissions(folder.path(), PermissionsExt::from_mode(0o777)).unwrap();
    folder
}

fn demo(arguments: &[&str], temporary: &TempDir) -> Preheat {
    let preheat = preheat(arguments.iter().copied());
    preheat.env("TMPDIR", temporary.path().to_str().unwrap())
}

/// No file is left, and no process that was started with one of them.
async fn nothing_is_left(folder: &Path) {
    let named = folder.to_str().unwrap();
    eventually("no server runs", LONG, async || processes_with(named).is_empty()).await;
    let left: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(left.is_empty(), "{left:?}");
}

/// The command lines that contain this text; empty without `/proc`.
fn processes_with(text: &str) -> Vec<String> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let lines = processes.filter_map(|process| std::fs::read(process.path().join("cmdline")).ok());
    let lines = lines.map(|line| String::from_utf8_lossy(&line).replace('\0', " "));
    lines.filter(|line| line.contains(text)).collect()
}

#[tokio::test]
async fn once_shows_a_table_and_three_keys_and_leaves_nothing() {
    let folder = temporary();
    // The demo ignores the servers in the settings: these do not exist.
    let demo = demo(&["demo", "--once", "--tenants", "12"], &folder)
        .database("postgres://app:hush-hush@127.0.0.1:1/shop")
        .cache("redis://:hush-hush@127.0.0.1:1/0")
        .settings(
            "[tenants]\nsql = \"select nothing\"\n[cache]\nprefix = \"mine:\"\n\
             [history]\nenabled = true\nurl = \"postgres://127.0.0.1:1/history\"\n",
        );
    let Output { stdout, stderr, .. } = demo.run().await.expect_code(0);
    let lines: Vec<&str> = stdout.lines().map(str::trim).collect();
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(words(lines[1]), ["job", "outcome", "tenants", "keys", "bytes", "time"]);
    for (line, job) in
        lines[2..8].iter().zip(["content", "pets", "products", "services", "slots", "staff"])
    {
        let words = words(line);
        assert_eq!((words[0].as_str(), words[1].as_str()), (job, "ok"));
        assert!(words[2].parse::<u32>().unwrap() > 0 && words[3].parse::<u32>().unwrap() > 0);
    }
    let keys: Vec<_> = lines[9..].chunks(2).map(|lines| (lines[0], lines[1])).collect();
    assert_eq!(keys.len(), 3, "{stdout}");
    for ((key, value), begin) in keys.iter().zip(["services:", "products:", "slots:"]) {
        assert!(key.starts_with(begin) && value.starts_with("[{\"id\":\""), "{key} {value}");
    }
    assert_eq!(
        stderr,
        "starting a private Postgres and a private Redis in a temporary folder\n\
         making a sample clinic of 12 tenants\n"
    );
    nothing_is_left(folder.path()).await;
}

#[tokio::test]
async fn a_signal_at_any_moment_removes_everything() {
    for moment in ["starting a private", "making a sample clinic of 900 tenants"] {
        let folder = temporary();
        let mut running = demo(&["demo", "--once", "--tenants", "900"], &folder).start();
        running.says(moment).await;
        running.signal(Signal::INT);
        running.ended().await.expect_code(1);
        nothing_is_left(folder.path()).await;
    }
}

#[tokio::test]
async fn the_worker_serves_until_it_is_told_to_stop() {
    let folder = temporary();
    let demo = demo(&["demo", "--tenants", "5"], &folder);
    let running = demo.env("PREHEAT_HTTP__LISTEN", "127.0.0.1:0").start();
    eventually("it says that Ctrl-C ends it", LONG, async || running.stdout().contains("Ctrl-C"))
        .await;
    let said = running.stdout();
    let address = said.split_once("the worker runs: http://").unwrap().1.lines().next().unwrap();
    let address = address.parse().unwrap();
    let token = [("authorization", "Bearer demo")];
    let path = "/api/v1/jobs/services/runs";
    let post = async || http::post(address, path, &token, "{\"wait\": true}").await;
    let has_started = async || post().await.is_ok_and(|answer| answer.status != 503);
    eventually("it works", LONG, has_started).await;
    let answer = post().await.unwrap();
    assert_eq!((answer.status, &answer.json()["outcome"]), (200, &"ok".into()), "{answer:?}");
    running.signal(Signal::INT);
    let output = running.ended().await.expect_code(0);
    assert!(output.stderr.contains("the worker has stopped"), "{}", output.stderr);
    nothing_is_left(folder.path()).await;
}

#[tokio::test]
async fn on_eighty_columns_a_run_takes_two_rows_and_what_there_is_to_try_is_shown_last() {
    let folder = temporary();
    let demo =
        demo(&["demo", "--tenants", "5"], &folder).env("PREHEAT_HTTP__LISTEN", "127.0.0.1:0");
    let Some(demo) = demo.on_terminal(80) else {
        return skipped("no `script` makes a terminal");
    };
    let running = demo.start();
    let invitation = "the worker runs: http://";
    eventually("what there is to try is shown twice, to its last line", LONG, async || {
        let shown = running.stdout();
        let last = shown.split(invitation).nth(2);
        last.is_some_and(|last| last.contains("Ctrl-C"))
    })
    .await;
    let screen = running.stdout();
    let runs: Vec<_> = screen.lines().filter(|line| line.contains(" ended ok after ")).collect();
    assert!(runs.len() >= 6, "{screen}");
    for run in runs {
        assert!(!run.contains("run="), "{run}");
        let mut colour = false;
        let shown = run.trim_end().chars().filter(|char| {
            let was_colour = colour;
            colour = *char == '\u{1b}' || (colour && *char != 'm');
            !colour && !was_colour
        });
        assert!(shown.count() <= 160, "{run}");
    }
    let (_, last) = screen.rsplit_once(invitation).unwrap();
    assert!(!last.contains(" ended ok after ") && last.contains("Ctrl-C"), "{last}");
    let is_wide = |line: &str| line.chars().count() > 80 && !line.contains("psql '");
    assert!(!last.lines().any(is_wide), "{last}");
    drop(running);
    nothing_is_left(folder.path()).await;
}

#[tokio::test]
async fn servers_that_are_not_installed_are_named_with_the_command_that_installs_them() {
    let usual = ["/usr/local/bin", "/usr/sbin", "/opt/homebrew/bin"];
    if usual.iter().any(|folder| Path::new(folder).join("redis-server").exists()) {
        return skipped("a Redis is found without the PATH");
    }
    let folder = temporary();
    let demo = demo(&["demo", "--once"], &folder);
    let nothing = demo.folder().display().to_string();
    let said = demo.env("PATH", nothing).run().await.expect_code(3).stderr;
    assert!(said.contains("error: cannot find "), "{said}");
    assert!(said.contains("install"), "{said}");
    nothing_is_left(folder.path()).await;
}

#[tokio::test]
async fn a_port_that_is_taken_is_told_before_anything_starts() {
    let folder = temporary();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let demo = demo(&["demo"], &folder).env("PREHEAT_HTTP__LISTEN", &address);
    let said = demo.run().await.expect_code(1).stderr.replace(&address, "[address]");
    insta::assert_snapshot!(said, @r"
    error: could not listen on `[address]`: Address already in use (os error 98)
      hint: set `PREHEAT_HTTP__LISTEN`, for example to `127.0.0.1:0` for any free port
    ");
}

#[tokio::test]
async fn no_tenants_and_too_many_are_bad_usage() {
    for tenants in ["0", "100001", "some"] {
        preheat(["demo", "--once", "--tenants", tenants]).run().await.expect_code(2);
    }
}
