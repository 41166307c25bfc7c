//! A node that answers what a test wants: what a real cluster says too rarely.

use std::sync::Mutex;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::*;
use crate::adapter::redis::CacheSettings;
use crate::domain::server_url::{CacheAddress, CacheUrl};

/// Answers a command, other than those that every node answers.
type Script = Arc<dyn Fn(&[String]) -> String + Send + Sync>;

/// A cluster of one node, which serves all slots.
struct OneNode {
    cluster: Cluster,
    /// The commands that the node was sent, without those that every node answers.
    heard: Arc<Mutex<Vec<String>>>,
    _node: JoinSet<()>,
}

async fn one_node(script: impl Fn(u16, &[String]) -> String + Send + Sync + 'static) -> OneNode {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let heard = Arc::new(Mutex::new(Vec::new()));
    let record = Arc::clone(&heard);
    let script: Script = Arc::new(move |words: &[String]| {
        record.lock().unwrap().push(words.join(" "));
        script(port, words)
    });
    let mut node = JoinSet::new();
    node.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            connections.spawn(serve(stream, port, Arc::clone(&script)));
        }
    });
    let text = format!("redis+cluster://127.0.0.1:{port}");
    let url = CacheUrl::parse(&text).unwrap();
    let settings = CacheSettings {
        url: text.into(),
        prefix: String::new(),
        timeout: Duration::from_secs(20),
        ca_file: None,
        verify: true,
    };
    let CacheAddress::Cluster { nodes, .. } = &url.address else { panic!("{url:?}") };
    let access = Access::new(&url, &settings).unwrap();
    let cluster = Cluster::new(access, nodes, "test".to_owned()).unwrap();
    OneNode { cluster, heard, _node: node }
}

async fn serve(stream: TcpStream, port: u16, script: Script) {
    let mut stream = BufReader::new(stream);
    while let Some(words) = command(&mut stream).await {
        let line = words.join(" ");
        let answer = match line.as_str() {
            "CLUSTER INFO" => "$16\r\ncluster_state:ok\r\n".to_owned(),
            "CLUSTER SLOTS" => {
                format!("*1\r\n*3\r\n:0\r\n:16383\r\n*2\r\n$9\r\n127.0.0.1\r\n:{port}\r\n")
            }
            _ if line.starts_with("CLIENT ") => "+OK\r\n".to_owned(),
            _ => script(&words),
        };
        if stream.write_all(answer.as_bytes()).await.is_err() {
            return;
        }
    }
}

/// The words of the next command.
async fn command(stream: &mut BufReader<TcpStream>) -> Option<Vec<String>> {
    let count = number(stream, '*').await?;
    let mut words = Vec::new();
    for _ in 0..count {
        let mut word = vec![0; number(stream, '$').await? + 2];
        stream.read_exact(&mut word).await.ok()?;
        word.truncate(word.len() - 2);
        words.push(String::from_utf8(word).unwrap());
    }
    Some(words)
}

async fn number(stream: &mut BufReader<TcpStream>, mark: char) -> Option<usize> {
    let mut line = String::new();
    stream.read_line(&mut line).await.ok()?;
    line.trim_end().strip_prefix(mark)?.parse().ok()
}

fn get(keys: &[&str]) -> Vec<Cmd> {
    let command = |key: &&str| {
        let mut command = redis::cmd("GET");
        command.arg(*key);
        command
    };
    keys.iter().map(command).collect()
}

async fn sent(node: &OneNode, keys: &[&str]) -> Vec<Reply> {
    node.cluster.each(Role::Values, OnBreak::Resend, &get(keys)).await
}

fn heard(node: &OneNode) -> Vec<String> {
    std::mem::take(&mut node.heard.lock().unwrap())
}

#[tokio::test]
async fn a_command_that_is_put_off_is_sent_again_and_no_other_one() {
    let put_off = AtomicU64::new(0);
    let node = one_node(move |_, words| {
        if words[1] == "b" && put_off.fetch_add(1, Ordering::Relaxed) < 3 {
            return "-TRYAGAIN Multiple keys request during rehashing of slot\r\n".to_owned();
        }
        format!("$1\r\n{}\r\n", words[1])
    });
    let node = node.await;
    let replies = sent(&node, &["a", "b", "c"]).await;
    let texts: Vec<String> = replies.into_iter().map(|reply| reply::text(reply).unwrap()).collect();
    assert_eq!(texts, ["a", "b", "c"]);
    assert_eq!(heard(&node), ["GET a", "GET b", "GET c", "GET b", "GET b", "GET b"]);
}

#[tokio::test]
async fn a_command_that_is_asked_for_goes_after_asking_and_keeps_its_place() {
    let is_moving = AtomicU64::new(1);
    let node = one_node(move |port, words| match words[0].as_str() {
        "ASKING" => {
            is_moving.store(0, Ordering::Relaxed);
            "+OK\r\n".to_owned()
        }
        _ if words[1] == "b" && is_moving.load(Ordering::Relaxed) == 1 => {
            format!("-ASK 1 127.0.0.1:{port}\r\n")
        }
        _ => format!("$1\r\n{}\r\n", words[1]),
    });
    let node = node.await;
    let replies = sent(&node, &["a", "b", "c"]).await;
    let texts: Vec<String> = replies.into_iter().map(|reply| reply::text(reply).unwrap()).collect();
    assert_eq!(texts, ["a", "b", "c"]);
    assert_eq!(heard(&node), ["GET a", "GET b", "GET c", "ASKING", "GET b"]);
    assert_eq!(node.cluster.redirections(), 1);
}

#[tokio::test]
async fn redirections_without_end_are_an_error_that_passes() {
    let node = one_node(|port, _| format!("-MOVED 1 127.0.0.1:{port}\r\n")).await;
    for reply in sent(&node, &["a"]).await {
        let error = CacheError::from(reply.unwrap_err());
        assert_eq!(error.kind, CacheErrorKind::Transient, "{error}");
        assert!(error.message.contains("redirect without end"), "{error}");
    }
    assert_eq!(heard(&node).len(), MOST_ROUNDS as usize);
}
