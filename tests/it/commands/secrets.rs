//! Secrets in every part of a URL never appear in the program's output.

use super::{GLOBAL, servers};
use crate::support::program::SECRET;
use crate::support::{self, preheat};

/// Every program that a test runs is searched for the secret when it has ended: see [`SECRET`]. Here the
/// program logs all that any library can log.
#[tokio::test]
async fn hazard_32_no_value_of_a_parameter_reaches_a_log_in_text_or_json() {
    let mut servers = servers().await;
    servers.redis = support::redis_with(&[("user", &format!("app on >{SECRET} ~* +@all"))]);
    let cache = format!("{}?user=app&pass={SECRET}", servers.redis.url());
    let database = servers.database.url();
    let known = [
        format!("&password={SECRET}"),
        format!("&application_name={SECRET}"),
        format!("&schema={SECRET}"),
        format!("&options=-c%20app.key%3D{SECRET}"),
        format!("&options=-c%20work_mem%3D{SECRET}"),
        format!("&sslmode=verify-full&sslrootcert=/{SECRET}"),
        format!("&sslcert=/{SECRET}&sslkey=/{SECRET}"),
    ];
    let unknown = [
        format!("&sslpassword={SECRET}"),
        format!("&mystery={SECRET}"),
        format!("&sslmode={SECRET}"),
        format!("&port={SECRET}"),
        format!("&options={SECRET}"),
        format!("&{SECRET}"),
        format!("&connect_timeout={SECRET}"),
    ];
    let mut runs = Vec::new();
    for parameter in known.iter().chain(&unknown) {
        runs.push((format!("{database}{parameter}"), cache.clone()));
    }
    for parameter in ["protocol", "db", "timeout", "mystery"] {
        runs.push((database.clone(), format!("{cache}&{parameter}={SECRET}")));
    }
    runs.push((format!("{database}#{SECRET}"), format!("{cache}#{SECRET}")));
    for (database, cache) in runs {
        for format in ["text", "json"] {
            let warm = preheat(["warm"]).job("fleet", GLOBAL).database(&database).cache(&cache);
            let warm = warm.env("PREHEAT_LOG_FORMAT", format).env("RUST_LOG", "trace");
            let output = warm.run().await;
            assert!(!output.stderr.is_empty(), "a log of everything says something");
            let is_refused = unknown.iter().any(|parameter| database.ends_with(parameter));
            assert!(!is_refused || output.code() == Some(2), "{output:?}");
        }
    }
}

#[tokio::test]
async fn hazard_32_a_line_of_the_password_file_that_cannot_be_read_is_not_logged() {
    let servers = servers().await;
    let warm = servers.preheat(["warm"]).job("fleet", GLOBAL).env("RUST_LOG", "trace");
    let file = warm.folder().join("passwords");
    std::fs::write(&file, format!("{SECRET}\n*:*:*:*:{SECRET}\n")).unwrap();
    let private = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&file, private).unwrap();
    warm.env("PGPASSFILE", file.to_str().unwrap()).run().await.expect_code(0);
}

#[tokio::test]
async fn a_cache_that_is_not_verified_is_warned_of_once_by_each_command() {
    let servers = servers().await;
    for arguments in [&["check"][..], &["plan"], &["warm"]] {
        let preheat = servers.preheat(arguments.iter().copied()).job("fleet", GLOBAL);
        let said = preheat.env("PREHEAT_CACHE__VERIFY", "false").run().await.expect_code(0).stderr;
        assert_eq!(said.matches("since `cache.verify` is false").count(), 1, "{said}");
    }
    let said = servers.preheat(["check"]).job("fleet", GLOBAL).run().await.expect_code(0).stderr;
    assert!(!said.contains("cache.verify"), "{said}");
}
