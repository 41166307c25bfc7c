//! `preheat keys`: the generated files are compiled and run, and their keys are those that a run writes.
//!
//! `odd.rs`, `texts.rs` and the example's `keys.rs` are generated, and compiled with these tests.

mod nullability;
#[rustfmt::skip]
mod odd;
#[rustfmt::skip]
#[path = "../../../../examples/clinic/src/keys.rs"]
mod shipped;
#[rustfmt::skip]
mod texts;
mod typescript;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use preheat_client::{Fill, Key};
use preheat_sandbox::Redis;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use self::typescript::{Compiled, is_formatted};
use super::{SERVICES, servers, values};
use crate::support::program::Preheat;
use crate::support::{self, Database, document, preheat};

#[tokio::test]
async fn docs_the_generated_files_here_and_in_the_example_are_what_the_command_writes() {
    let servers = servers().await;
    let (database, redis) = (support::database().await, support::redis());
    database.execute(ODD_TABLES).await;
    let rust = "keys --lang rust";
    let shipped = servers.preheat(rust.split(' ')).shipped_jobs();
    for (file, program) in [
        ("examples/clinic/src/keys.rs", shipped),
        ("tests/it/commands/keys/odd.rs", odd(&database, &redis, rust)),
        ("tests/it/commands/keys/texts.rs", texts("keys --lang rust --offline")),
    ] {
        let output = program.run().await.expect_code(0);
        assert_eq!(output.stderr, "");
        is_formatted(&output.stdout);
        document::compare(file, &output.stdout);
    }
}

/// The keys of a warm cache that no builder has made yet.
struct Warm {
    values: BTreeMap<String, String>,
}

impl Warm {
    /// Takes a key from the cache; its value has the builder's type.
    #[track_caller]
    fn take<T: DeserializeOwned>(&mut self, key: Result<Key<T>, impl std::fmt::Debug>) -> T {
        let key = key.unwrap();
        let value = self.values.remove(key.key());
        let value = value.unwrap_or_else(|| panic!("no run writes {}", key.key()));
        serde_json::from_str(&value).unwrap_or_else(|error| panic!("{error}: {value}"))
    }

    /// Fails if a key is left.
    #[track_caller]
    fn ends_empty(self) {
        assert_eq!(self.values.into_keys().collect::<Vec<_>>(), [""; 0], "no builder made these");
    }
}

/// An application that uses the builders of the shipped jobs.
const USES: &str = r#"
import type { Key } from "preheat-client";
import { keys, type ProductsRow, type ServicesRow } from "./keys.js";

type Same<A, B> = (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;
export const services: Key<ServicesRow[]> = keys.services("t");
export const isText: Same<ServicesRow["price"], string> = true;
export const mayBeNull: Same<ServicesRow["description"], string | null> = true;
export const isNumber: Same<ServicesRow["duration_minutes"], number> = true;
export const isJson: Same<ReturnType<typeof keys.staff>, Key<import("./keys.js").StaffRow[]>> = true;
// @ts-expect-error the rows are of another job
export const wrong: Key<ProductsRow[]> = keys.services("t");
// @ts-expect-error a date is text
keys.slots("t", new Date());
// @ts-expect-error the tenant is missing
keys.pets("id");
"#;

#[tokio::test]
async fn builders_make_the_keys_that_a_run_of_the_shipped_jobs_writes() {
    let servers = servers().await;
    let run = |arguments: &str| servers.preheat(arguments.split(' ')).shipped_jobs();
    let typescript = run("keys --lang typescript").cache("").run().await.expect_code(0).stdout;
    insta::assert_snapshot!("shipped.ts", typescript);
    run("warm").run().await.expect_code(0);

    let warm = values(&mut servers.cache().await).await;
    let mut left = Warm { values: warm.clone() };
    let mut calls: Vec<Value> = Vec::new();
    for tenant in servers.active().await {
        left.take(shipped::content(&tenant));
        left.take(shipped::services(&tenant));
        left.take(shipped::staff(&tenant));
        let products = left.take(shipped::products_all(&tenant));
        calls.extend(
            ["content", "services", "staff", "productsAll"].map(|name| json!([name, tenant])),
        );
        let categories: BTreeSet<String> = products.into_iter().map(|row| row.category).collect();
        for category in categories {
            let of_category = left.take(shipped::products_by_category(&tenant, &category));
            assert!(of_category.iter().all(|row| row.category == category));
            calls.push(json!(["productsByCategory", tenant, category]));
        }
        let dates = format!(
            "select ((now() at time zone timezone)::date + day)::text from tenants, generate_series(0, 6) day \
             where id = '{tenant}'"
        );
        for date in servers.texts(&dates).await {
            left.take(shipped::slots(&tenant, &date));
            calls.push(json!(["slots", tenant, date]));
        }
        let pets = format!("select id::text from pets where tenant_id = '{tenant}'");
        for id in servers.texts(&pets).await {
            let pet = left.take(shipped::pets(&tenant, &id));
            assert_eq!((pet.id, pet.tenant_id), (id.clone(), tenant.clone()));
            calls.push(json!(["pets", tenant, id]));
        }
    }
    left.ends_empty();

    let Some(compiled) = Compiled::new(&typescript, USES) else { return };
    let made = compiled.run(&Value::from(calls));
    let keys: BTreeSet<&str> = made.iter().map(|key| key["key"].as_str().unwrap()).collect();
    assert_eq!(keys, warm.keys().map(String::as_str).collect());
}

#[tokio::test]
async fn a_key_comes_with_its_tenant_its_ttl_and_how_it_may_be_filled() {
    let tenant = "6f1c0c6e-5f0f-4e55-9f53-0f7f4f1f8a11";
    let pet = "0190d1c6-5b3e-7000-8000-0123456789ab";
    let key = shipped::pets(tenant, pet).unwrap();
    assert_eq!((key.key(), key.tenant()), (format!("pet:{pet}").as_str(), Some(tenant)));
    assert_eq!(
        (key.ttl(), key.family(), key.fill()),
        (Duration::from_mins(15), "pets", Fill::Brief)
    );
    let fills = [
        shipped::services(tenant).unwrap().fill(),
        shipped::slots(tenant, "2026-03-01").unwrap().fill(),
        shipped::products_all(tenant).unwrap().fill(),
        shipped::products_by_category(tenant, "food").unwrap().fill(),
    ];
    assert_eq!(fills, [Fill::Full, Fill::Full, Fill::Full, Fill::Brief]);
    let fleet = odd::fleet();
    assert_eq!((fleet.key(), fleet.tenant(), fleet.fill()), ("fleet", None, Fill::Full));

    let refusals = [
        shipped::services(tenant.to_uppercase()).unwrap_err().to_string(),
        shipped::pets(tenant, "1").unwrap_err().to_string(),
        shipped::slots(tenant, "2026-02-29").unwrap_err().to_string(),
        shipped::products_by_category(tenant, "").unwrap_err().to_string(),
        shipped::products_by_category(tenant, "all").unwrap_err().to_string(),
    ];
    assert_eq!(
        refusals,
        [
            "no cache key: `tenant` is no UUID in lower case",
            "no cache key: `id` is no UUID in lower case",
            "no cache key: `date` is no date YYYY-MM-DD",
            "no cache key: `category` is empty",
            "no cache key: it could be the key of something else",
        ]
    );
}

/// Tables with ids that are integers, and a column of each kind of type.
const ODD_TABLES: &str = r#"
create table clubs (id int8 primary key, plan text not null);
insert into clubs values (7, 'free'), (-1, 'pro'), (9007199254740993, 'free');
create table things (
  id int4 primary key, club_id int8 not null references clubs, kind text not null, code uuid not null,
  "type" text not null, "updatedAt" timestamptz not null, updated_at timestamptz, "class name" text,
  flag bool not null, small int2 not null, big int8 not null, ratio float8 not null,
  price numeric(10, 2) not null, born date not null, tags text[] not null, grid int4[][],
  data jsonb not null, raw bytea not null, spot point not null, lasts interval not null
);
insert into things
  select n, club.id, case n % 2 when 0 then 'a' else 'b' end, gen_random_uuid(), 't"\`${x}', now(), null, null,
    true, n, 9007199254740993, 0.5, 1.50, '2026-03-01', array['x', null], '{{1,null},{3,4}}', '{"a": [1]}',
    '\x01', '(1,2.5)', '1 day 2 hours'
  from generate_series(1, 12) n
    join lateral (select id from clubs order by id offset n % 3 limit 1) club on true;
"#;

const ODD_SETTINGS: &str = r#"
[tenants]
sql = "select id, plan from clubs order by id"
column = "club_id"
"#;

const ODD_JOBS: [(&str, &str); 5] = [
    (
        "2fa_Things",
        r#"
[query]
sql = "select * from things where club_id = any($1) order by id"
[[keys]]
key = 'odd:{club_id}:{{$`*/"\}}:{tenant.plan}'
[[keys]]
key = 'odd:{club_id}:of:{kind}:{type}'
[encode]
profile = "node-postgres"
"#,
    ),
    (
        "price-list",
        r#"
[query]
sql = "select club_id, id, kind, price, big, spot, tags, array_agg(small) over () as smalls, updated_at from things where club_id = any($1) order by id"
[[keys]]
key = "price:{club_id}"
[[keys]]
key = "price:{club_id}:{kind}"
[[keys]]
key = "price:{club_id}:{kind}:new"
[encode]
case = "camel"
omit = ["club_id"]
columns = { price = "number", big = "string" }
"#,
    ),
    (
        "a-job-with-a-name-that-is-as-long-as-the-patience-of-its-readers",
        r#"
[query]
sql = "select club_id, id, kind as the_kind_of_a_thing_as_its_seller_describes_it, code as the_code_under_which_it_is_sold from things where club_id = any($1) order by id"
[[keys]]
key = "a-text-before-the-tenant:{club_id}:{the_kind_of_a_thing_as_its_seller_describes_it}:and-then:{the_code_under_which_it_is_sold}"
[[keys]]
key = "a-text-before-the-tenant:{club_id}:b:c:{the_code_under_which_it_is_sold}"
[encode]
profile = "postgres"
"#,
    ),
    (
        "fleet",
        r#"
tenants = false
[query]
sql = "select count(*) as things from things"
[[keys]]
key = "fleet"
shape = "object"
"#,
    ),
    (
        "rates",
        r#"
tenants = false
[query]
sql = "select code, id, price from things"
[[keys]]
key = "rate:{code}"
shape = "object"
"#,
    ),
];

fn odd(database: &Database, redis: &Redis, arguments: &str) -> Preheat {
    let program = preheat(arguments.split(' ')).database(database.url()).cache(redis.url());
    ODD_JOBS.iter().fold(program.settings(ODD_SETTINGS), |program, (name, job)| {
        program.job(name, &format!("schedule = \"every 15m\"\nttl = \"1h\"\n{job}"))
    })
}

/// A thing's columns that are in keys.
#[derive(sqlx::FromRow)]
struct Thing {
    club_id: i64,
    plan: String,
    kind: String,
    r#type: String,
    code: String,
}

#[tokio::test]
async fn builders_of_odd_jobs_make_the_keys_that_a_run_writes() {
    let (database, redis) = (support::database().await, support::redis());
    database.execute(ODD_TABLES).await;
    let run = |arguments: &str| odd(&database, &redis, arguments).run();
    let typescript = run("keys --lang typescript").await.expect_code(0).stdout;
    insta::assert_snapshot!("odd.ts", typescript);
    run("warm").await.expect_code(0);

    let sql =
        "select club_id, plan, kind, type, code::text from things join clubs on clubs.id = club_id";
    let mut connection = database.connect().await;
    let things: Vec<Thing> = sqlx::query_as(sql).fetch_all(&mut connection).await.unwrap();
    let warm = values(&mut support::redis_connection(&redis).await).await;
    let mut left = Warm { values: warm.clone() };
    left.take::<Option<odd::FleetRow>>(Ok::<_, odd::BadKey>(odd::fleet()));
    let mut calls = vec![json!(["fleet"])];
    let mut is_new = |call: Value| {
        let is_new = !calls.contains(&call);
        calls.extend(is_new.then_some(call));
        is_new
    };
    for Thing { club_id: id, plan, kind, r#type, code } in &things {
        let club = id.to_string();
        if is_new(json!(["job2faThingsByPlan", club, plan])) {
            let rows = left.take(odd::job_2fa_things_by_plan(*id, plan));
            assert!(
                rows.iter().all(|row| row.club_id == club),
                "the profile writes an int8 as text"
            );
            left.take(odd::price_list(*id));
            is_new(json!(["priceList", club]));
        }
        if is_new(json!(["priceListByKind", club, kind])) {
            let rows = left.take(odd::price_list_by_kind(*id, kind));
            assert!(rows.iter().all(|row| row.kind == *kind && row.big == "9007199254740993"));
            left.take(odd::price_list_by_kind_new(*id, kind));
            is_new(json!(["priceListByKindNew", club, kind]));
            left.take(odd::job_2fa_things_of_by_kind_and_type(*id, kind, r#type));
            is_new(json!(["job2faThingsOfByKindAndType", club, kind, r#type]));
        }
        left.take(odd::rates(code));
        is_new(json!(["rates", code]));
        left.take(odd::a_job_with_a_name_that_is_as_long_as_the_patience_of_its_readers_by_the_kind_of_a_thing_as_its_seller_describes_it_and_then(*id, kind, code));
        left.take(odd::a_job_with_a_name_that_is_as_long_as_the_patience_of_its_readers_b_c(
            *id, code,
        ));
        is_new(json!([
            "aJobWithANameThatIsAsLongAsThePatienceOfItsReadersByTheKindOfAThingAsItsSellerDescribesItAndThen",
            club,
            kind,
            code
        ]));
        is_new(json!(["aJobWithANameThatIsAsLongAsThePatienceOfItsReadersBC", club, code]));
    }
    left.ends_empty();

    let Some(compiled) = Compiled::new(&typescript, "export {};") else { return };
    let keys = compiled.run(&Value::from(calls));
    let keys: BTreeSet<&str> = keys.iter().map(|key| key["key"].as_str().unwrap()).collect();
    assert_eq!(keys, warm.keys().map(String::as_str).collect());
    let refused = json!([
        ["priceList", 9_007_199_254_740_993_i64],
        ["priceList", 0.5],
        ["priceList", "07"],
        ["priceList", "9223372036854775808"],
        ["priceListByKind", 7, "a:new"],
        ["priceListByKind", 7, "half"],
        ["rates", "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11"],
    ]);
    let answers = compiled.run(&refused);
    insta::assert_json_snapshot!(answers);
}

/// Keys of tenants whose ids are texts, as without the database. Only the tenants' ids keep those of two jobs
/// apart.
const TEXTS: [(&str, &str, &str); 3] = [
    (
        "menu",
        "",
        "[[keys]]\nkey = \"menu:{tenant_id}:all\"\n[[keys]]\nkey = \"menu:{tenant_id}:{part}\"\n",
    ),
    (
        "notes",
        "[dates]\ndays = 3\ntimezone = \"UTC\"\n",
        "[[keys]]\nkey = \"note::{tenant_id}::{date}{slug}\"\n",
    ),
    ("pages", "", "[[keys]]\nkey = \"{tenant_id}/{page}\"\nshape = \"object\"\n"),
];

fn texts(arguments: &str) -> Preheat {
    TEXTS.iter().fold(preheat(arguments.split(' ')), |program, (name, dates, keys)| {
        let query = "[query]\nsql = \"select $1\"\n";
        let times = "schedule = \"every 15m\"\nttl = \"1h\"\n";
        program.job(name, &format!("{times}{query}{dates}{keys}"))
    })
}

/// The key that a builder of `texts.rs` makes.
fn made(name: &str, values: &[&str]) -> Result<String, texts::BadKey> {
    let key: Key<Vec<Value>> = match (name, values) {
        ("menuAll", [tenant]) => texts::menu_all(tenant)?,
        ("menuByPart", [tenant, part]) => texts::menu_by_part(tenant, part)?,
        ("notes", [tenant, date, slug]) => texts::notes(tenant, date, slug)?,
        ("pages", [tenant, page]) => {
            return Ok(texts::pages::<Value>(tenant, page)?.key().to_owned());
        }
        other => panic!("no builder {other:?}"),
    };
    Ok(key.key().to_owned())
}

#[tokio::test]
async fn builders_in_both_languages_refuse_texts_that_make_another_key() {
    let typescript = texts("keys --lang typescript --offline").run().await.expect_code(0).stdout;
    insta::assert_snapshot!("texts.ts", typescript);
    let cases: [(&str, &[&str], Option<&str>); 19] = [
        ("menuAll", &["a"], Some("menu:a:all")),
        ("menuAll", &["a:b"], None),
        ("menuAll", &[""], None),
        ("menuByPart", &["a", "wine"], Some("menu:a:wine")),
        ("menuByPart", &["a", "wine:red"], Some("menu:a:wine:red")),
        ("menuByPart", &["a", "all"], None),
        ("menuByPart", &["a", "b:all"], None),
        ("menuByPart", &["a:b", "wine"], None),
        ("menuByPart", &["a", "red/white"], None),
        ("notes", &["a", "2028-02-29", "x"], Some("note::a::2028-02-29x")),
        ("notes", &["a:b", "2026-02-28", "x"], Some("note::a:b::2026-02-28x")),
        ("notes", &["a:", "2026-02-28", "x"], None),
        ("notes", &["a", "2026-02-29", "x"], None),
        ("notes", &["a", "2026-02-28", "é\u{1f600}"], Some("note::a::2026-02-28é\u{1f600}")),
        ("pages", &["a", "b/c"], Some("a/b/c")),
        ("pages", &["a/b", "c"], None),
        ("pages", &["preheat:fence:a", "b"], None),
        ("pages", &["menu:a", "all"], Some("menu:a/all")),
        ("pages", &["menu:a", "b:c"], None),
    ];
    for (name, values, expected) in cases {
        assert_eq!(made(name, values).ok().as_deref(), expected, "{name} {values:?}");
    }
    let Some(compiled) = Compiled::new(&typescript, GENERIC) else { return };
    let calls = cases.iter().map(|(name, values, _)| [&[*name], *values].concat());
    let answers = compiled.run(&json!(calls.collect::<Vec<_>>()));
    for ((name, values, expected), answer) in cases.iter().zip(&answers) {
        assert_eq!(answer["key"].as_str(), *expected, "{name} {values:?}: {answer}");
        let refused = made(name, values).err().map(|error| error.to_string());
        assert_eq!(answer["refused"].as_str(), refused.as_deref(), "{name} {values:?}");
    }
}

/// An application that gives the rows their types itself.
const GENERIC: &str = r#"
import type { Key } from "preheat-client";
import { keys } from "./keys.js";
type Part = { name: string };
export const typed: Key<Part[]> = keys.menuAll<Part>("t");
export const page: Key<Part> = keys.pages("t", "x");
export const untyped: Key<unknown[]> = keys.menuByPart("t", "x");
"#;

#[tokio::test]
async fn a_file_that_is_out_of_date_is_told_with_the_command_that_mends_it() {
    let folder = tempfile::tempdir().unwrap();
    let run = async |arguments: &str, code| {
        let words = format!("keys --lang typescript --output keys.ts {arguments}");
        let program = preheat(words.trim().split(' ')).job("services", SERVICES);
        let jobs = program.folder().join("jobs");
        let program = program.env("PREHEAT_JOBS", jobs.to_str().unwrap()).within(folder.path());
        program.run().await.expect_code(code)
    };
    let missing = run("--offline --check", 1).await.stderr;
    assert!(missing.contains("`keys.ts` does not exist"), "{missing}");
    assert_eq!(run("--offline", 0).await.stdout, "wrote keys.ts\n");
    assert_eq!(run("--offline", 0).await.stdout, "keys.ts is up to date\n");
    let path = folder.path().join("keys.ts");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace('\n', "\r\n")).unwrap();
    assert_eq!(run("--offline --check", 0).await.stdout, "keys.ts is up to date\n");
    std::fs::write(&path, text.replace("3_600_000", "60_000")).unwrap();
    insta::assert_snapshot!(run("--offline --check", 1).await.stderr, @"
    error: `keys.ts` is out of date from line 11 on
      -     ttl: 60_000,
      +     ttl: 3_600_000,
      hint: preheat keys --lang typescript --offline --output keys.ts
    ");
    assert!(std::fs::read_to_string(&path).unwrap().contains("60_000"), "it writes nothing");
}

#[tokio::test]
async fn what_keeps_builders_from_being_made_is_an_error() {
    let servers = servers().await;
    let run = async |arguments: &str, jobs: &[(&str, &str)], code| {
        let program = servers.preheat(arguments.split(' '));
        let program = jobs.iter().fold(program, |program, (name, job)| program.job(name, job));
        let output = program.run().await.expect_code(code);
        assert_eq!(output.stdout, "");
        output.stderr
    };
    let said = run("keys", &[("services", SERVICES)], 2).await;
    assert!(said.contains("--lang <LANGUAGE>"), "{said}");
    let said = run("keys --lang python", &[("services", SERVICES)], 2).await;
    assert!(said.contains("typescript, rust"), "{said}");
    let said = run("keys --lang rust --check", &[("services", SERVICES)], 2).await;
    assert!(said.contains("--output <FILE>"), "{said}");
    let said = run("keys --lang rust service", &[("services", SERVICES)], 2).await;
    assert!(said.contains("did you mean `services`?"), "{said}");
    let wrong = SERVICES.replace("price from", "prise from");
    let said = run("keys --lang rust", &[("services", &wrong)], 2).await;
    assert!(said.contains("prise"), "{said}");
    let other = SERVICES.replace("services:{", "other:{");
    let jobs = [("a-b", SERVICES), ("a_b", other.as_str())];
    insta::assert_snapshot!(run("keys --lang rust", &jobs, 2).await, @"
    error: `services:{tenant_id}` of job `a-b` and `other:{tenant_id}` of job `a_b` would both be called `aB`
      hint: rename one of the jobs, or change the text of one of the keys
    error: the rows of job `a-b` and the rows of job `a_b` would both be called `ABRow`
      hint: rename one of the jobs, or change the text of one of the keys
    ");
    let away = preheat(["keys", "--lang", "rust"]).job("services", SERVICES);
    let away = away.database("postgres://127.0.0.1:1/shop").run().await.expect_code(3);
    assert_eq!(away.stdout, "");
}
