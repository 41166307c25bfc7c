//! The two servers that a run needs.

use std::fmt;

/// One of the two servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Server {
    /// The server from which rows come.
    Database,
    /// The server to which entries go.
    Cache,
}

impl Server {
    /// Both, so that each has its metrics from the start.
    pub const ALL: [Self; 2] = [Self::Database, Self::Cache];

    /// The server's name in logs and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Database => "database",
            Self::Cache => "cache",
        }
    }
}

impl fmt::Display for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
