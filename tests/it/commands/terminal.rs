//! Text from data reaches a terminal or a pipe only as plain text within its line.

use sqlx::AssertSqlSafe;

use super::Servers;
use crate::support;
use crate::support::program::{Output, Preheat};

/// Ids of tenants that colour the screen, clear it, set the window's title, begin a new line, and reverse the
/// direction of text.
const IDS: [&str; 5] =
    ["\u{1b}[31mRED\u{1b}[0m", "a\nforged: ok", "\u{9b}2J", "\u{1b}]0;title\u{7}", "x\u{202e}y"];

const JOB: &str = r#"
schedule = "every 15m"
ttl = "1h"
[query]
sql = "select tenant_id, fails(tenant_id) as n from items where tenant_id = any($1)"
[[keys]]
key = "items:{tenant_id}"
"#;

/// A database with such tenants; the query fails for those in `broken`.
async fn hostile() -> Servers {
    let database = support::database().await;
    let setup = "create table tenants (id text primary key);
      create table items (tenant_id text not null);
      create table broken (id text primary key);
      create function fails(id text) returns int language plpgsql stable as $$
        begin
          if exists (select from broken where broken.id = fails.id) then
            raise exception E'\\x1b[2Jforged\\nforged: of %', fails.id;
          end if;
          return 1;
        end $$;";
    database.execute(setup).await;
    let mut connection = database.connect().await;
    for id in IDS {
        for table in ["tenants", "items"] {
            let sql = AssertSqlSafe(format!("insert into {table} values ($1)"));
            sqlx::query(sql).bind(id).execute(&mut connection).await.unwrap();
        }
    }
    Servers { database, redis: support::redis() }
}

/// The program with that database's tenants and a job for them.
fn with_items<'a>(servers: &Servers, arguments: impl IntoIterator<Item = &'a str>) -> Preheat {
    let tenants = "[tenants]\nsql = \"select id from tenants order by 1\"\n";
    servers.preheat(arguments).settings(tenants).job("items", JOB)
}

/// Fails if the output has a control character that a terminal obeys, or a line that data began: further
/// lines of a message are indented.
fn assert_plain(what: &str, output: &Output) {
    for text in [&output.stdout, &output.stderr] {
        let is_obeyed = |char: char| (char.is_control() && char != '\n') || char == '\u{202e}';
        assert!(!text.contains(is_obeyed), "{what}: {text:?}");
        assert!(!text.lines().any(|line| line.starts_with("forged")), "{what}: {text}");
    }
}

#[tokio::test]
async fn whatever_ids_and_messages_hold_every_command_prints_text() {
    let hostile = hostile().await;
    let run = async |arguments: &[&str]| {
        let output = with_items(&hostile, arguments.iter().copied()).run().await;
        assert_plain(&arguments.join(" "), &output);
        output
    };
    run(&["check"]).await.expect_code(0);
    run(&["warm"]).await.expect_code(0);
    run(&["audit"]).await.expect_code(0);

    let breaks = "insert into broken select id from tenants";
    hostile.database.execute(&format!("{breaks} order by id limit 3")).await;
    let plan = run(&["plan"]).await.expect_code(0);
    assert!(plan.stdout.contains(r"`\u{1b}[31mRED\u{1b}[0m`"), "{}", plan.stdout);
    let warm = run(&["warm"]).await.expect_code(1);
    assert!(warm.stdout.contains(r": \u{1b}[2Jforged\nforged: of "), "{}", warm.stdout);
    run(&["warm", "-v"]).await.expect_code(1);
    run(&["audit"]).await.expect_code(1);
    for id in IDS {
        let key = format!("items:{id}");
        run(&["warm", "--tenant", id]).await;
        run(&["preview", "items", "--tenant", id]).await;
        run(&["preview", "items", "--json", "--tenant", &format!("no {id}")]).await.expect_code(2);
        run(&["warm", "--tenant", &format!("no {id}")]).await.expect_code(1);
        run(&["audit", "--key", &key]).await;
        run(&["audit", "--key", &format!("no {id}")]).await;
        run(&["invalidate", "--tenant", id, "--rewarm"]).await;
        run(&["invalidate", "--job", id]).await.expect_code(2);
        run(&["warm", id]).await.expect_code(2);
    }
    for command in ["plan", "warm", "audit", "invalidate"] {
        let mut arguments = vec![command, "--json"];
        arguments.extend(
            (command == "invalidate").then_some(["--job", "items", "--rewarm"]).iter().flatten(),
        );
        run(&arguments).await.json();
    }

    // First every tenant fails, and then the tenant list.
    hostile.database.execute(&format!("{breaks} on conflict do nothing")).await;
    run(&["plan"]).await.expect_code(2);
    let sql = "[tenants]\nsql = \"select fails(id)::text from tenants\"\n";
    for command in ["plan", "warm", "audit"] {
        let output = with_items(&hostile, [command]).settings(sql).run().await;
        assert_plain(command, &output);
        assert!(output.stdout.contains("forged") || output.stderr.contains("forged"), "{output:?}");
    }
}

#[tokio::test]
async fn problems_have_their_own_colours_and_no_others() {
    let hostile = hostile().await;
    let job = JOB.replace("as n from", r#"as n, \"\u001b[2J\u001b[35mred\" from"#);
    let check = with_items(&hostile, ["check"]).job("items", &job);
    let Some(check) = check.on_terminal(80) else {
        return support::skipped("no `script` makes a terminal");
    };
    let output = check.run().await.expect_code(2);
    assert!(output.stdout.contains("\u{1b}["), "it has colours: {:?}", output.stdout);
    assert!(!output.stdout.contains("\u{1b}[2J"), "{:?}", output.stdout);
    assert!(!output.stdout.contains("\u{1b}[35m"), "{:?}", output.stdout);
}
