//! Settings, from the environment.

use std::env;
use std::fmt;
use std::time::Duration;

/// What the service needs to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// `DATABASE_URL`
    pub database_url: String,
    /// `REDIS_URL`, by default `redis://localhost`
    pub redis_url: String,
    /// `LISTEN`, by default `127.0.0.1:8080`
    pub listen: String,
    /// `CACHE`: `on`, or `off` to see what it is worth
    pub has_cache: bool,
    /// `CACHE_DEADLINE_MS`: how long a read waits for Redis before it asks the database, by default 50
    pub cache_deadline: Duration,
}

impl Settings {
    /// Reads them.
    pub fn from_environment() -> Result<Self, WrongSetting> {
        let or = |name, default: &str| env::var(name).unwrap_or_else(|_unset| default.to_owned());
        let database_url =
            env::var("DATABASE_URL").map_err(|_unset| WrongSetting("DATABASE_URL"))?;
        let has_cache = match or("CACHE", "on").as_str() {
            "on" => true,
            "off" => false,
            _ => return Err(WrongSetting("CACHE")),
        };
        let deadline = or("CACHE_DEADLINE_MS", "50").parse();
        let deadline = deadline.map_err(|_no_number| WrongSetting("CACHE_DEADLINE_MS"))?;
        let cache_deadline = Duration::from_millis(deadline);
        let redis_url = or("REDIS_URL", "redis://localhost");
        let listen = or("LISTEN", "127.0.0.1:8080");
        Ok(Self { database_url, redis_url, listen, has_cache, cache_deadline })
    }
}

/// A variable that is missing, or has a value that means nothing.
#[derive(Debug)]
pub struct WrongSetting(&'static str);

impl fmt::Display for WrongSetting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the variable {} is missing or wrong", self.0)
    }
}

impl std::error::Error for WrongSetting {}
