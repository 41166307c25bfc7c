//! A connection: requests go out as bytes that are made once, and replies come back in their order.
//!
//! Logging in and reading replies are the client library's. Its own connection copies each value twice
//! more on its way, from a command into a pipeline and from there into the connection's buffer.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use combine::stream::Decoder;
use futures::FutureExt;
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Cmd, FromRedisValue, RedisConnectionInfo, RedisError, RedisResult,
    Value, parse_redis_value_async,
};
use tokio::io::{
    AsyncRead, AsyncWrite, AsyncWriteExt, BufReader, ReadBuf, ReadHalf, WriteHalf, split,
};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::adapter::Stream;

/// How many requests may wait to be sent. More callers wait until there is room.
const REQUESTS: usize = 64;

/// A connection that many callers share. It is closed when none of them holds it any more.
#[derive(Clone)]
pub(super) struct Connection {
    requests: mpsc::Sender<Request>,
    timeout: Duration,
    /// Closes the connection, even while the server takes no more bytes.
    _held: Arc<DropGuard>,
}

/// Commands to send together.
#[derive(Clone)]
pub(super) struct Packed {
    /// As the server reads them.
    pub(super) bytes: Bytes,
    /// How many commands they are: each has one reply.
    pub(super) commands: usize,
}

impl From<&Cmd> for Packed {
    fn from(command: &Cmd) -> Self {
        Self { bytes: command.get_packed_command().into(), commands: 1 }
    }
}

struct Request {
    bytes: Bytes,
    answer: Answer,
}

/// The replies to a request, while they arrive.
struct Answer {
    replies: Vec<RedisResult<Value>>,
    missing: usize,
    caller: oneshot::Sender<RedisResult<Vec<RedisResult<Value>>>>,
}

/// The answers that the server owes, in the order of the requests.
#[derive(Default)]
struct Owed(Mutex<VecDeque<Answer>>);

impl Connection {
    /// Logs in. Returns the connection and what drives it, which ends with it.
    pub(super) async fn log_in(
        stream: Box<dyn Stream>,
        login: &RedisConnectionInfo,
        timeout: Duration,
    ) -> RedisResult<(Self, impl Future<Output = ()> + use<>)> {
        let ours = Arc::new(Mutex::new(stream));
        let theirs = Lent(Arc::clone(&ours));
        let config = AsyncConnectionConfig::new();
        drop(MultiplexedConnection::new_with_config(login, theirs, config).await?);
        let stream = Arc::into_inner(ours).ok_or_else(closed)?;
        let stream = stream.into_inner().unwrap_or_else(PoisonError::into_inner);
        let (requests, to_send) = mpsc::channel(REQUESTS);
        let left = CancellationToken::new();
        let held = Arc::new(left.clone().drop_guard());
        let driver = async move { left.run_until_cancelled(drive(stream, to_send)).await };
        Ok((Self { requests, timeout, _held: held }, driver.map(drop)))
    }

    /// Sends commands and waits for their replies. An error says that the connection is not to be used
    /// any more.
    pub(super) async fn send(&self, packed: Packed) -> RedisResult<Vec<RedisResult<Value>>> {
        let Packed { bytes, commands } = packed;
        let (caller, replies) = oneshot::channel();
        let answer = Answer { replies: Vec::with_capacity(commands), missing: commands, caller };
        let asked = async {
            self.requests.send(Request { bytes, answer }).await.map_err(|_ended| closed())?;
            replies.await.unwrap_or_else(|_ended| Err(closed()))
        };
        let late = |_elapsed| Err(io::Error::from(io::ErrorKind::TimedOut).into());
        timeout(self.timeout, asked).await.unwrap_or_else(late)
    }

    /// Sends one command and reads its reply.
    pub(super) async fn ask<T: FromRedisValue>(&self, command: &Cmd) -> RedisResult<T> {
        let reply = self.send(command.into()).await?.pop().ok_or_else(closed)?;
        Ok(redis::from_redis_value(reply?)?)
    }
}

/// Sends requests and reads replies until the connection breaks.
async fn drive(stream: Box<dyn Stream>, requests: mpsc::Receiver<Request>) {
    let (from_server, to_server) = split(stream);
    let owed = Owed::default();
    let error = tokio::select! {
        sent = send(to_server, requests, &owed) => sent.map_or_else(RedisError::from, |()| closed()),
        error = receive(from_server, &owed) => error,
    };
    owed.fail(&error);
}

/// Sends requests until the connection breaks.
async fn send(
    mut to_server: WriteHalf<Box<dyn Stream>>,
    mut requests: mpsc::Receiver<Request>,
    owed: &Owed,
) -> io::Result<()> {
    while let Some(Request { bytes, answer }) = requests.recv().await {
        owed.queue().push_back(answer);
        to_server.write_all(&bytes).await?;
        to_server.flush().await?;
    }
    Ok(())
}

/// Reads replies until the connection breaks.
async fn receive(from_server: ReadHalf<Box<dyn Stream>>, owed: &Owed) -> RedisError {
    // The decoder alone asks the system for a few replies at a time.
    let mut from_server = BufReader::new(from_server);
    let mut decoder = Decoder::new();
    loop {
        match parse_redis_value_async(&mut decoder, &mut from_server).await {
            // It answers no command that preheat sends.
            Ok(Value::Push { .. }) => {}
            Ok(reply) => owed.settle(reply.extract_error()),
            Err(error) => return error,
        }
    }
}

impl Owed {
    /// Adds a reply to the first answer, which goes to its caller with its last one. The caller may have
    /// stopped waiting.
    fn settle(&self, reply: RedisResult<Value>) {
        let mut queue = self.queue();
        let Some(answer) = queue.front_mut() else { return };
        answer.replies.push(reply);
        answer.missing -= 1;
        if answer.missing == 0
            && let Some(Answer { replies, caller, .. }) = queue.pop_front()
        {
            let _unawaited = caller.send(Ok(replies));
        }
    }

    fn fail(&self, error: &RedisError) {
        for answer in self.queue().drain(..) {
            let _unawaited = answer.caller.send(Err(error.clone()));
        }
    }

    fn queue(&self) -> MutexGuard<'_, VecDeque<Answer>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn closed() -> RedisError {
    io::Error::from(io::ErrorKind::BrokenPipe).into()
}

/// A stream that is lent to the library while it logs in.
struct Lent(Arc<Mutex<Box<dyn Stream>>>);

impl Lent {
    fn with<T>(&self, poll: impl FnOnce(Pin<&mut dyn Stream>) -> Poll<T>) -> Poll<T> {
        let mut stream = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        poll(Pin::new(&mut **stream))
    }
}

impl AsyncRead for Lent {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.with(|stream| stream.poll_read(cx, buffer))
    }
}

impl AsyncWrite for Lent {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.with(|stream| stream.poll_write(cx, bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|stream| stream.poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|stream| stream.poll_shutdown(cx))
    }
}

#[cfg(test)]
mod tests {
    use redis::RedisConnectionInfo;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::task::JoinSet;

    use super::*;

    /// Fewer bytes than a large request has.
    const ON_THE_WAY: usize = 64;

    /// A connection, the server's end of it, and what drives it.
    async fn connected(patience: Duration) -> (Connection, DuplexStream, JoinSet<()>) {
        let (ours, mut server) = duplex(ON_THE_WAY);
        let login = RedisConnectionInfo::default();
        let logged_in = Connection::log_in(Box::new(ours), &login, patience);
        // The library tells the server its name and version.
        let (logged_in, ()) = tokio::join!(logged_in, async {
            read_until(&mut server, "LIB-VER").await;
            server.write_all(b"+OK\r\n+OK\r\n").await.unwrap();
        });
        let (connection, driver) = logged_in.unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(driver);
        // The rest of the login: the version.
        read_until(&mut server, "\r\n$").await;
        read_until(&mut server, "\r\n").await;
        read_until(&mut server, "\r\n").await;
        (connection, server, tasks)
    }

    async fn read_until(server: &mut DuplexStream, end: &str) {
        let mut seen = Vec::new();
        while !seen.ends_with(end.as_bytes()) {
            seen.push(server.read_u8().await.unwrap());
        }
    }

    fn request(text: &str, commands: usize) -> Packed {
        Packed { bytes: text.to_owned().into(), commands }
    }

    fn patient() -> Duration {
        Duration::from_mins(1)
    }

    #[tokio::test]
    async fn each_caller_gets_the_replies_to_its_own_commands() {
        let (connection, mut server, _driver) = connected(patient()).await;
        let first = connection.send(request("one two ", 2));
        let second = connection.send(request("three ", 1));
        let (first, second, ()) = tokio::join!(biased; first, second, async {
            read_until(&mut server, "one two three ").await;
            server.write_all(b":1\r\n-ERR no\r\n>2\r\n+news\r\n:0\r\n$5\r\nthree\r\n").await.unwrap();
        });
        let first = first.unwrap();
        assert_eq!(first[0], Ok(Value::Int(1)));
        assert_eq!(first[1].as_ref().unwrap_err().code(), Some("ERR"));
        assert_eq!(second.unwrap(), [Ok(Value::BulkString(b"three".to_vec()))]);
    }

    #[tokio::test]
    async fn a_reply_is_the_same_however_it_is_cut() {
        let (connection, mut server, _driver) = connected(patient()).await;
        let replies = b"+OK\r\n+OK\r\n:7\r\n+OK\r\n+Other\r\n+OK\r\n";
        for cut in 1..replies.len() {
            let asked = connection.send(request("six ", 6));
            let (asked, ()) = tokio::join!(biased; asked, async {
                read_until(&mut server, "six ").await;
                for part in [&replies[..cut], &replies[cut..]] {
                    server.write_all(part).await.unwrap();
                    tokio::task::yield_now().await;
                }
            });
            let other = Value::SimpleString("Other".to_owned());
            let expected =
                [Value::Okay, Value::Okay, Value::Int(7), Value::Okay, other, Value::Okay];
            assert_eq!(asked.unwrap(), expected.map(Ok), "{cut}");
        }
    }

    #[tokio::test]
    async fn when_the_connection_breaks_every_caller_hears_of_it() {
        let (connection, mut server, mut driver) = connected(patient()).await;
        let large = "x".repeat(2 * ON_THE_WAY);
        let asked = connection.send(request("one ", 1));
        let large = connection.send(request(&large, 1));
        let (asked, large, ()) = tokio::join!(biased; asked, large, async {
            read_until(&mut server, "one ").await;
            drop(server);
        });
        assert!(asked.unwrap_err().is_connection_dropped());
        assert!(large.unwrap_err().is_connection_dropped());
        driver.join_next().await.unwrap().unwrap();
        let later = connection.send(request("two", 1)).await;
        assert!(later.unwrap_err().is_connection_dropped());
    }

    #[tokio::test]
    async fn a_server_that_reads_nothing_is_left_when_nobody_holds_its_connection() {
        let (connection, mut server, mut driver) = connected(Duration::from_millis(50)).await;
        let large = "x".repeat(2 * ON_THE_WAY);
        let late = connection.send(request(&large, 1)).await;
        assert!(late.unwrap_err().is_timeout());
        let another = connection.clone();
        drop(connection);
        assert!(driver.try_join_next().is_none());
        drop(another);
        let ended = timeout(patient(), driver.join_next()).await;
        ended.expect("the connection is closed").unwrap().unwrap();
        let mut left = Vec::new();
        server.read_to_end(&mut left).await.unwrap();
        assert_eq!(left.len(), ON_THE_WAY);
    }
}
