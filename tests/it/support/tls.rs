//! Servers with TLS. Not every build of the servers supports TLS, and certificates need the program
//! `openssl`. If one of them is missing, the test is skipped.

use std::path::PathBuf;
use std::process::{Command, Stdio};

use preheat_sandbox::{Postgres, PostgresOptions, Redis, RedisOptions, SandboxError, Tls};
use tempfile::TempDir;

use super::skipped;

/// An authority for tests, and its certificate for `localhost` and 127.0.0.1.
pub(crate) struct Certificates {
    folder: TempDir,
}

/// Creates them; `None` without `openssl`.
pub(crate) fn certificates() -> Option<Certificates> {
    let folder = tempfile::Builder::new().prefix("preheat-tls-").tempdir().unwrap();
    let names = "subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\n";
    std::fs::write(folder.path().join("names"), names).unwrap();
    let openssl = |arguments: &str| {
        let run = Command::new("openssl")
            .args(arguments.split(' '))
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .output();
        match run {
            Ok(output) => {
                assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
                true
            }
            Err(error) => {
                assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{error}");
                skipped("openssl is not installed");
                false
            }
        }
    };
    let authority = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=preheat-test-ca \
                     -keyout ca.key -out ca.crt";
    let request =
        "req -newkey rsa:2048 -nodes -subj /CN=localhost -keyout server.key -out server.csr";
    let sign = "x509 -req -in server.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 \
                -extfile names -out server.crt";
    let made = [authority, request, sign].iter().all(|arguments| openssl(arguments));
    made.then_some(Certificates { folder })
}

impl Certificates {
    /// The certificate that a client must trust.
    pub(crate) fn authority(&self) -> PathBuf {
        self.folder.path().join("ca.crt")
    }

    /// The certificate and key of a server.
    pub(crate) fn server(&self) -> Tls {
        let folder = self.folder.path();
        Tls { certificate: folder.join("server.crt"), key: folder.join("server.key") }
    }

    /// A Postgres for one test with TLS on its TCP port; `None` if its build lacks TLS.
    pub(crate) fn postgres(&self) -> Option<Postgres> {
        let options = PostgresOptions { tcp: true, tls: Some(self.server()), ..Default::default() };
        supported(Postgres::start(&options), "SSL is not supported")
    }

    /// A Redis for one test with TLS; `None` if its build lacks TLS.
    pub(crate) fn redis(&self) -> Option<Redis> {
        let options = RedisOptions { tls: Some(self.server()), ..Default::default() };
        supported(Redis::start(&options), "tls-port")
    }
}

fn supported<T>(started: Result<T, SandboxError>, refusal: &str) -> Option<T> {
    match started {
        Ok(server) => Some(server),
        Err(error) if error.to_string().contains(refusal) => {
            skipped("this build of the server has no TLS");
            None
        }
        Err(error) => panic!("{error}"),
    }
}
