//! `.env` in the working directory.

use serde_json::Value;

use super::{GLOBAL, servers};
use crate::support::preheat;
use crate::support::program::SECRET;

#[tokio::test]
async fn the_file_of_the_application_says_where_its_servers_are() {
    let servers = servers().await;
    let file = format!(
        "# the application's\nNODE_ENV=production\nexport DATABASE_URL=\"{}\"\nREDIS_URL={}\n",
        servers.database.url(),
        servers.redis.url()
    );
    let warm = || preheat(["warm"]).job("fleet", GLOBAL).file(".env", &file);
    let output = warm().run().await.expect_code(0);
    assert_eq!(output.stderr.matches("`.env` sets `DATABASE_URL` and `REDIS_URL`").count(), 1);
    assert!(servers.values().await.contains_key("fleet"));

    // A variable of the process counts, even one that is set to nothing.
    warm().env("DATABASE_URL", "postgres://127.0.0.1:1/shop").run().await.expect_code(3);
    let output = warm().env("REDIS_URL", "").run().await.expect_code(2);
    assert!(output.stderr.contains("setting `cache.url` is missing"), "{output:?}");
    let output = warm().env("PREHEAT_DOTENV", "false").run().await.expect_code(2);
    assert!(!output.stderr.contains(".env"), "{output:?}");
}

#[tokio::test]
async fn what_is_wrong_with_the_file_is_shown_by_its_line_and_without_its_text() {
    let file = format!("APP_NAME=My App\nREDIS_URL={SECRET} and more\n");
    let check = || preheat(["check", "--offline"]).job("fleet", GLOBAL);
    let output = check().file(".env", &file).run().await.expect_code(2);
    insta::assert_snapshot!(output.stderr, @r#"
    error: .env:2: variable `REDIS_URL`: the line is not `NAME=value`
      hint: a value with blanks or quotes needs quotes around it, as in `NAME="a b"`; with `PREHEAT_DOTENV=false` preheat does not read the file
    "#);
    let json = check().file(".env", &file).argument("--json").run().await.expect_code(2).json();
    let problem = &json["problems"][0];
    assert_eq!(problem["file"], ".env", "{json}");
    assert_eq!(
        (&problem["line"], &problem["variable"]),
        (&2.into(), &"REDIS_URL".into()),
        "{json}"
    );
    check().file(".env", "APP_NAME=My App\nBob's\n").run().await.expect_code(0);
    let json = check().settings("[runner\n").argument("--json").run().await.expect_code(2).json();
    assert_eq!(json["problems"][0]["line"], 1, "{json}");

    let wrong =
        check().file(".env", "A=1\n\nPREHEAT_RUNNER__BATCH=many\nPREHEAT_RUNER__DRAIN=1s\n");
    let problems = wrong.argument("--json").run().await.expect_code(2).json();
    let problems = problems["problems"].as_array().unwrap();
    let places = problems.iter().map(|problem| {
        let member = |name: &str| problem[name].clone();
        (member("file"), member("line"), member("variable"))
    });
    let place = |line: u64, name: &str| (".env".into(), line.into(), name.into());
    let expected: [(Value, Value, Value); 2] =
        [place(3, "PREHEAT_RUNNER__BATCH"), place(4, "PREHEAT_RUNER__DRAIN")];
    assert_eq!(places.collect::<Vec<_>>(), expected);
}
