//! A certificate authority for one test, made with the openssl program.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use preheat_sandbox::Tls;
use tempfile::TempDir;

/// An authority, and a certificate for `localhost` that it has signed.
pub(crate) struct Certificates {
    folder: TempDir,
}

impl Certificates {
    pub(crate) fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("preheat-tls-").tempdir().unwrap();
        // The server, another user, reads the authority's certificate.
        std::fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        let this = Self { folder };
        this.openssl(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 \
             -subj /CN=ca -keyout ca.key -out ca.pem",
        );
        this.openssl(
            "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes \
             -subj /CN=localhost -keyout server.key -out server.csr",
        );
        std::fs::write(this.path("names"), "subjectAltName=DNS:localhost\n").unwrap();
        this.openssl(
            "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 \
             -extfile names -out server.pem",
        );
        this
    }

    /// The authority's certificate.
    pub(crate) fn ca(&self) -> PathBuf {
        self.path("ca.pem")
    }

    /// A self-signed certificate for a host name that does not exist.
    pub(crate) fn self_signed(&self) -> Tls {
        self.openssl(
            "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 \
             -subj /CN=nobody.invalid -keyout own.key -out own.pem",
        );
        Tls { certificate: self.path("own.pem"), key: self.path("own.key") }
    }

    /// The server's certificate and key.
    pub(crate) fn server(&self) -> Tls {
        Tls { certificate: self.path("server.pem"), key: self.path("server.key") }
    }

    /// A certificate and its key for a client of this name, signed by the authority.
    pub(crate) fn client(&self, name: &str) -> Tls {
        std::fs::write(self.path("use"), "extendedKeyUsage=clientAuth\n").unwrap();
        self.signed(name, "-extfile use")
    }

    /// The same without extensions, which makes it one of version 1.
    pub(crate) fn old_client(&self, name: &str) -> Tls {
        self.signed(name, "")
    }

    fn signed(&self, name: &str, extensions: &str) -> Tls {
        self.openssl(&format!(
            "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes \
             -subj /CN={name} -keyout client.key -out client.csr"
        ));
        self.openssl(&format!(
            "x509 -req -in client.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 \
             {extensions} -out client.pem"
        ));
        Tls { certificate: self.path("client.pem"), key: self.path("client.key") }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn openssl(&self, arguments: &str) {
        let output = Command::new("openssl")
            .args(arguments.split_whitespace())
            .current_dir(self.folder.path())
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}
