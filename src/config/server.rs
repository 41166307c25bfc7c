//! What URLs of servers must be beyond being URLs: what the drivers would refuse only when they
//! connect, or pass over. A hint never quotes more than one word of the URL.

use url::Url;

use crate::domain::spelling::{listed, nearest};

/// As libpq knows them.
const SSL_MODES: [&str; 6] = ["disable", "allow", "prefer", "require", "verify-ca", "verify-full"];
/// Parameters that the driver would pass over if they were misspelled, and connect unprotected.
const TLS_PARAMETERS: [&str; 2] = ["sslmode", "sslrootcert"];
/// Those whose names are near and which are not meant.
const LIKE_TLS_PARAMETERS: [&str; 5] = ["ssl-mode", "ssl-root-cert", "ssl-ca", "sslcert", "sslkey"];

/// libpq takes `user@/name?host=/run/postgresql`, as managed databases hand it out; a URL with a
/// user must have a host. The parameter goes before it.
pub(super) fn with_a_host(text: String) -> String {
    match text.split_once("@/") {
        Some((before, after)) if text.starts_with("postgres") && after.contains("host=") => {
            format!("{before}@localhost/{after}")
        }
        _ => text,
    }
}

/// What a database's URL lacks.
pub(super) fn postgres(url: &Url) -> Result<(), String> {
    for (name, value) in url.query_pairs() {
        if name == "sslmode" && !SSL_MODES.contains(&value.as_ref()) {
            return Err(match nearest(&value, SSL_MODES) {
                Some(near) => format!("`sslmode`: did you mean `{near}`?"),
                None => format!("`sslmode` is {}", listed(SSL_MODES, "or")),
            });
        }
        let is_known = TLS_PARAMETERS.iter().chain(&LIKE_TLS_PARAMETERS).any(|&is| is == name);
        if let Some(near) = nearest(&name, TLS_PARAMETERS).filter(|_| !is_known) {
            return Err(format!("parameter `{name}`: did you mean `{near}`?"));
        }
    }
    Ok(())
}

/// What a cache's URL lacks.
pub(super) fn redis(url: &Url) -> Result<(), String> {
    let is_socket = url.scheme().ends_with("unix");
    let is_number = |text: &str| text.is_empty() || text.parse::<u32>().is_ok();
    if is_socket && url.path().trim_matches('/').is_empty() {
        return Err("name the socket, as in `redis+unix:///run/redis.sock`".to_owned());
    }
    if !is_socket && url.host_str().is_none_or(str::is_empty) {
        return Err("name the host, as in `redis://host:6379`".to_owned());
    }
    if !is_socket && !is_number(url.path().trim_matches('/')) {
        return Err("the database is a number, as in `redis://host:6379/2`".to_owned());
    }
    if url.query_pairs().any(|(name, value)| name == "db" && !is_number(&value)) {
        return Err("the database is a number: `?db=2`".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hint(check: fn(&Url) -> Result<(), String>, text: &str) -> String {
        check(&Url::parse(text).unwrap()).err().unwrap_or_default()
    }

    #[test]
    fn the_url_of_a_database_must_mean_what_it_says_about_tls() {
        let cases = [
            ("postgres://u:p@h/db?sslmode=verify-full&sslrootcert=/ca.pem&options=-c%20a%3Db", ""),
            ("postgres://h/db?sslcert=/c&sslkey=/k&channel_binding=require&ssl-mode=require", ""),
            ("postgres:///db?host=/run/postgresql", ""),
            ("postgres://h/db?sslmode=verfy-full", "`sslmode`: did you mean `verify-full`?"),
            (
                "postgres://h/db?sslmode=on",
                "`sslmode` is `disable`, `allow`, `prefer`, `require`, `verify-ca` or `verify-full`",
            ),
            ("postgres://h/db?ssl_mode=require", "parameter `ssl_mode`: did you mean `sslmode`?"),
            (
                "postgres://h/db?sslrootcrt=/ca",
                "parameter `sslrootcrt`: did you mean `sslrootcert`?",
            ),
        ];
        for (text, expected) in cases {
            assert_eq!(hint(postgres, text), expected, "{text}");
        }
    }

    #[test]
    fn the_url_of_a_cache_must_lead_to_a_database_of_a_server() {
        let number = "the database is a number, as in `redis://host:6379/2`";
        let cases = [
            ("redis://host", ""),
            ("redis://:p@host:6379/", ""),
            ("rediss://u:p@host:6379/2", ""),
            ("redis+unix:///run/redis.sock?db=3&user=u&pass=p", ""),
            ("redis:///2", "name the host, as in `redis://host:6379`"),
            ("redis://host/two", number),
            ("redis://host/-1", number),
            ("unix://", "name the socket, as in `redis+unix:///run/redis.sock`"),
            ("unix:///run/redis.sock?db=two", "the database is a number: `?db=2`"),
        ];
        for (text, expected) in cases {
            assert_eq!(hint(redis, text), expected, "{text}");
        }
    }

    #[test]
    fn a_user_at_no_host_is_at_the_one_that_a_parameter_names() {
        let cases = [
            (
                "postgres://u:p@/db?host=/cloudsql/a:b:c",
                "postgres://u:p@localhost/db?host=/cloudsql/a:b:c",
            ),
            ("postgres://u:p@/db", "postgres://u:p@/db"),
            ("postgres://u@h/db?host=/run", "postgres://u@h/db?host=/run"),
            ("redis://u@/0?host=x", "redis://u@/0?host=x"),
        ];
        for (text, expected) in cases {
            assert_eq!(with_a_host(text.to_owned()), expected);
        }
    }
}
