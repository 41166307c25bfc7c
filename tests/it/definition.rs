//! What a person sees if a job file is wrong.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use preheat::definition::{self, Defaults, JobFiles, JobText, Place, Problems};
use preheat::domain::job::{DateZone, JobName, Scope};
use preheat::domain::schedule::Schedule;
use preheat::domain::tenant::IdClass;

/// A job file without problems.
const GOOD: &str = r#"schedule = "every 10m"
ttl = "30m"

[query]
sql = "select tenant_id, category, id, name from products where tenant_id = any($1)"

[[keys]]
key = "products:{tenant_id}:all"
"#;

fn defaults() -> Defaults {
    Defaults {
        batch: 100.try_into().unwrap(),
        concurrency: 4.try_into().unwrap(),
        tenant_column: "tenant_id".to_owned(),
        has_settings_file: true,
    }
}

fn check(files: &[(&str, &str)]) -> Result<JobFiles, Problems> {
    let texts = files.iter().map(|(name, text)| JobText {
        path: Path::new("jobs").join(name),
        text: (*text).to_owned(),
    });
    let no_files = |path: &Path| Err(format!("could not read `{}`: no such file", path.display()));
    definition::check(texts.collect(), &no_files, &defaults())
}

/// The good file with lines added before its first table.
fn with(lines: &str) -> String {
    format!("{lines}\n{GOOD}")
}

/// The good file with one piece replaced.
fn instead(piece: &str, other: &str) -> String {
    assert!(GOOD.contains(piece), "{piece}");
    GOOD.replace(piece, other)
}

/// What the person sees for each of the files, one after another.
fn shown(files: impl IntoIterator<Item = impl AsRef<str>>) -> String {
    let mut shown = String::new();
    for file in files {
        let file = file.as_ref();
        match check(&[("products.toml", file)]) {
            Ok(_) => panic!("nothing is wrong with\n{file}"),
            Err(problems) => writeln!(shown, "{problems}\n").unwrap(),
        }
    }
    shown
}

#[test]
fn a_good_file_is_a_job_with_the_defaults() {
    let files = check(&[("products.toml", GOOD)]).unwrap();
    insta::assert_debug_snapshot!(files.jobs());
}

#[test]
fn every_field_is_accepted() {
    let files = check(&[("slots.toml", definition::EXAMPLE)]).unwrap_or_else(|all| panic!("{all}"));
    insta::assert_debug_snapshot!(files.jobs());
}

#[test]
fn all_problems_of_all_files_are_shown_at_once() {
    let first = r#"
intervall = "every 10m"
timezone = "Berlin"
ttl = 30
overlap = "skp"

[query]
batch = 100

[[keys]]
key = "products:{category"
"#;
    let second = "schedule = \"every 10m\"\nttl = \"1h\"\nqeury = 1\nkeys = []\n";
    let problems = check(&[("b.toml", second), ("a.toml", first)]).unwrap_err();
    insta::assert_snapshot!(problems.render(false));
    insta::assert_json_snapshot!("all_problems_for_machines", problems);
}

#[test]
fn what_is_no_toml_is_shown_line_by_line() {
    insta::assert_snapshot!(shown([
        "schedule = every 10m\nttl = \"30m\nretries = 1 2\n",
        "ttl = \"30m\"\nttl = \"40m\"\n",
        "[query\nsql = 1\n",
    ]));
}

#[test]
fn a_field_that_nobody_knows_comes_with_the_one_that_was_meant() {
    insta::assert_snapshot!(shown([
        with("interval = \"10m\"\nexpires = \"1h\"\njitter = \"10%\"\nretires = 2"),
        with("sql = \"select 1\"\nprofile = \"drizzle\"\nxyz = 1"),
        format!("{GOOD}timeout = \"1m\"\nuniqe = \"id\"\n[encode]\nomitt = []\nwhatever = 1\n"),
    ]));
}

#[test]
fn a_value_of_another_kind_comes_with_the_kind_that_is_wanted() {
    insta::assert_snapshot!(shown([
        with(
            "description = 1\non_start = \"yes\"\nretries = \"3\"\nbatch = 1.5\ntables = \"products\""
        ),
        with("timeout = 90\nttl_jitter = 10\nretries = -1\nconcurrency = true\ntables = [1]"),
        with("keys_ = 1\ntimeout = \"90\"\nttl_jitter = \"10\"\ntimezone = 1"),
        with("timeout = \"soon\"\nttl_jitter = \"120%\"\ntimezone = \"Mars/Olympus\""),
        instead("[query]\nsql =", "query ="),
        instead("[[keys]]", "[keys]"),
        format!("{GOOD}[encode]\nomit = \"id\"\ncolumns = [\"price\"]\nmax_bytes = \"5mib\"\n"),
        format!("{GOOD}[[encode]]\n[[dates]]\n"),
        format!(
            "{GOOD}shape = \"array\"\n[encode]\nprofile = \"pg\"\ncase = \"snake\"\ncolumns = {{ price = \"numbr\" }}\n"
        ),
    ]));
}

#[test]
fn an_order_is_read_entry_by_entry() {
    let with = |order: &str| instead("[query]", &format!("[query]\norder = {order}"));
    let order =
        r#"["name COLLATE C", 'Starts_at DESC Nulls Last', '"two words" asc', "id nulls first"]"#;
    let files = check(&[("products.toml", &with(order))]).unwrap();
    let job = files.jobs().values().next().unwrap();
    let read: Vec<_> = job.query.order.iter().map(ToString::to_string).collect();
    let expected =
        ["name collate C", "Starts_at desc nulls last", "\"two words\"", "id nulls first"];
    assert_eq!(read, expected);
    let many: Vec<_> = (0..33).map(|n| format!("\"c{n}\"")).collect();
    insta::assert_snapshot!(shown([
        with("\"name\""),
        with("[]"),
        with("[\"\", 1]"),
        with("[\"name\", \"id\", \"name desc\"]"),
        with("[\"name, starts_at desc\"]"),
        with("[\"name descending\", \"name nulls\", \"lower(name) collate\", \"id asc desc\"]"),
        with("[\"name collate de_DE desc\", '\"name', \"a nulls last first\"]"),
        with(&format!("[{}]", many.join(", "))),
        GOOD.replace("[query]", "order = [\"name\"]\n[query]\norder_by = [\"name\"]"),
        with("[\"name\"]") + "shape = \"object\"\n",
    ]));
    let both = with("[\"name\"]") + "[[keys]]\nkey = \"one:{tenant_id}\"\nshape = \"object\"\n";
    assert_eq!(check(&[("products.toml", &both)]).unwrap().jobs().len(), 1);
}

#[test]
fn what_is_missing_is_named_with_what_to_write() {
    insta::assert_snapshot!(shown([
        "",
        "schedule = \"every 1m\"\nttl = \"1h\"\ntables = [{ tenant = \"id\" }]\n[query]\n[[keys]]\n[dates]\n",
    ]));
}

#[test]
fn numbers_have_bounds() {
    insta::assert_snapshot!(shown([
        with("retries = 21\nbatch = 0\nconcurrency = 0\ntimeout = \"500ms\""),
        with("batch = 10001\ntimeout = \"400d\""),
        format!("{GOOD}[encode]\nmax_bytes = \"1GiB\"\n[dates]\ndays = 367\ntimezone = \"UTC\"\n"),
        format!("{GOOD}[encode]\nmax_bytes = 0\n[dates]\ndays = 0\ntimezone = \"UTC\"\n"),
    ]));
}

#[test]
fn a_schedule_that_is_none_is_shown_at_its_field() {
    let schedules = [
        "10m",
        "every 10",
        "every day",
        "every 500ms",
        "@daily",
        "",
        "0 60 * * * *",
        "0 */90 * * * *",
        "0 0 0 * * MOND",
        "0 0 0 30 2 *",
        "* * * *",
        "0 0 3 * * * 2027",
    ];
    let files = schedules.map(|text| instead("\"every 10m\"", &format!("\"{text}\"")));
    insta::assert_snapshot!(shown(files));
}

#[test]
fn hazard_16_a_ttl_that_is_too_short_names_the_numbers_and_which_to_change() {
    insta::assert_snapshot!(shown([
        instead("ttl = \"30m\"", "ttl = \"15m\""),
        instead("ttl = \"30m\"", "ttl = \"5m\"\ntimeout = \"2m\""),
        instead("ttl = \"30m\"", "ttl = \"12m\"\nttl_jitter = \"0%\""),
        instead("ttl = \"30m\"", "ttl = \"30m\"\nttl_jitter = \"100%\""),
        instead("\"every 10m\"", "\"0 30 2 * * *\"\ntimezone = \"Europe/Berlin\""),
    ]));
    let exactly = instead("ttl = \"30m\"", "ttl = \"16m40s\"");
    check(&[("products.toml", &exactly)]).unwrap_or_else(|problems| panic!("{problems}"));
}

#[test]
fn hazard_10_a_key_that_two_tenants_may_have_is_refused() {
    let key = |key: &str| instead("key = \"products:{tenant_id}:all\"", key);
    insta::assert_snapshot!(shown([
        key("key = \"products:all\""),
        key("key = \"product:{id}\""),
        key("key = \"site:{tenant.slug}\""),
        key("key = \"product:{id}\"\nunique = \"sku\""),
        key("key = \"product\"\nunique = \"id\""),
    ]));
    for good in [
        "key = \"product:{id}\"\nunique = \"id\"",
        "key = \"site:{tenant.slug}\"\nunique = \"tenant.slug\"",
    ] {
        check(&[("products.toml", &key(good))]).unwrap_or_else(|problems| panic!("{problems}"));
    }
}

#[test]
fn what_is_wrong_with_a_key_is_shown_in_it() {
    let key = |key: &str| instead("products:{tenant_id}:all", key);
    insta::assert_snapshot!(shown([
        key(""),
        key("products:{tenant_id"),
        key("products:tenant_id}"),
        key("products:{tenant id}"),
        instead("\"products:{tenant_id}:all\"", r#""\u00e4\t{tenant_id}:{}""#),
        key("preheat:{tenant_id}"),
        key(&format!("{{tenant_id}}:{}", "x".repeat(600))),
        key("products:{tenant_id}:{date}"),
        format!("{GOOD}[dates]\ndays = 7\ntimezone = \"UTC\"\n"),
        format!("{GOOD}[[keys]]\nkey = \"products:{{tenant_id}}:all\"\n"),
    ]));
}

#[test]
fn a_job_without_tenants_has_none_in_its_keys() {
    let fleet = |rest: &str| {
        format!(
            "schedule = \"every 10m\"\nttl = \"30m\"\ntenants = false\n[query]\nsql = \"select 1\"\n{rest}"
        )
    };
    insta::assert_snapshot!(shown([
        fleet("[[keys]]\nkey = \"all:{tenant_id}:{tenant.plan}\"\n"),
        fleet("[[keys]]\nkey = \"all:{id}\"\nunique = \"id\"\n"),
        fleet(
            "[dates]\ndays = 2\ntimezone = \"tenant.timezone\"\n[[keys]]\nkey = \"all:{date}\"\n"
        ),
    ]));
    let good = fleet("[[keys]]\nkey = \"plans\"\n");
    let files = check(&[("plans.toml", &good)]).unwrap();
    assert_eq!(files.jobs().values().next().unwrap().scope, Scope::Global);
}

#[test]
fn a_query_stands_in_the_file_or_in_one_beside_it() {
    let query = |lines: &str| {
        let sql = "sql = \"select tenant_id, category, id, name from products where tenant_id = any($1)\"";
        instead(sql, lines)
    };
    insta::assert_snapshot!(shown([
        query("sql = \"\""),
        query("sql = \"select 1\""),
        query("sql = \"select $1\"\nfile = \"products.sql\""),
        query("file = \"../products.sql\""),
        query("file = \"/etc/passwd\""),
        query("file = \"\""),
        query("file = \"missing.sql\""),
    ]));
}

#[test]
fn dates_tables_and_columns_are_checked() {
    let dates = |zone: &str| {
        let keys = GOOD.replace(":all", ":{date}");
        format!("{keys}[dates]\ndays = 7\ntimezone = \"{zone}\"\n")
    };
    insta::assert_snapshot!(shown([
        dates("Berlin"),
        dates("tenant."),
        dates("timezone"),
        dates("UTC") + "column = \" \"\n",
        dates("UTC") + "column = 3\n",
        dates("UTC") + "columns = \"starts_at\"\n",
        format!("{GOOD}[dates]\ndays = 7\ntimezone = \"UTC\"\ncolumn = \"starts_at\"\n"),
        with("tables = [\"products\", \"products\", \"\", \"a.b.c\"]"),
        with(
            "tables = [{ name = \"pets\", tenant = \"owner\", sql = \"select 1\" }, { name = \"x\", tenant = \"\" }]"
        ),
        format!(
            "{GOOD}[encode]\nomit = [\"id\", \"name\", \"id\"]\ncolumns = {{ name = \"json\" }}\n"
        ),
    ]));
    let files = check(&[("a.toml", &dates("europe/berlin"))]).unwrap();
    let zone = &files.jobs().values().next().unwrap().dates.as_ref().unwrap().zone;
    assert_eq!(*zone, DateZone::Fixed(chrono_tz::Europe::Berlin));
    let files = check(&[("a.toml", &(dates("UTC") + "column = \"starts_at\"\n"))]).unwrap();
    let job = files.jobs().values().next().unwrap();
    assert_eq!((job.moment_column(), job.date_column()), (Some("starts_at"), Some("starts_at")));
}

#[test]
fn hazard_07_a_tables_key_is_a_value_that_shared_keys_follow_from() {
    let keys = |table: &str, keys: &[(&str, &str)]| {
        let list = |(key, unique): &(&str, &str)| {
            format!("[[keys]]\nkey = \"{key}\"\nunique = \"{unique}\"\n")
        };
        let tables = format!("tables = [{{ name = \"pets\", {table} }}]");
        with(&tables) + &keys.iter().map(list).collect::<String>()
    };
    insta::assert_snapshot!(shown([
        with("tables = [{ name = \"pets\", key = \"id\" }]"),
        keys("key = \"id\"", &[("pet:{id}:{category}", "id")]),
        keys("key = \"id\"", &[("site:{tenant.slug}:{id}", "tenant.slug")]),
        keys("key = \"number\"", &[("pet:{id}", "id"), ("pet-name:{name}", "name")]),
        keys("key = \" \"", &[("pet:{id}", "id")]),
        keys("keys = \"id\"", &[("pet:{id}", "id")]),
    ]));
    for (column, keys_of_job) in [
        ("id", &[("pet:{id}", "id")][..]),
        ("number", &[("pet:{id}", "id")]),
        ("id", &[("pet:{id}", "id"), ("pet-name:{name}", "name"), ("x:{id}:{name}", "id")]),
    ] {
        let text = keys(&format!("key = \"{column}\""), keys_of_job);
        let files = check(&[("a.toml", &text)]).unwrap_or_else(|problems| panic!("{problems}"));
        let job = files.jobs().values().next().unwrap();
        assert_eq!(job.tables[0].key.as_deref(), Some(column));
    }
}

#[test]
fn two_jobs_that_can_write_one_key_are_refused() {
    let other = GOOD.replace("products:{tenant_id}:all", "products:{tenant_id}:{category}");
    let problems = check(&[("products.toml", GOOD), ("categories.toml", &other)]).unwrap_err();
    insta::assert_snapshot!(problems.render(false));
    let disabled = format!("enabled = false\n{other}");
    check(&[("products.toml", GOOD), ("categories.toml", &disabled)]).unwrap();
}

/// The report about keys that ids of this class cannot keep apart.
fn conflicts(files: &JobFiles, ids: IdClass) -> String {
    Problems::new(files.conflicts(ids).into_iter().map(|(_, problem)| problem)).render(false)
}

/// The good file with this key.
fn with_key(key: &str) -> String {
    instead("products:{tenant_id}:all", key)
}

#[test]
fn hazard_37_keys_that_only_some_ids_bring_together_are_no_conflict_of_the_others() {
    let (all, new) = (with_key("{tenant_id}:products"), with_key("{tenant_id}:x:products"));
    let files = check(&[("all.toml", &all), ("new.toml", &new)]).unwrap();
    assert!(files.conflicts(IdClass::Uuid).is_empty());
    assert!(files.conflicts(IdClass::Integer).is_empty());
    insta::assert_snapshot!(conflicts(&files, IdClass::Text));
    let warned = files.possible_conflicts().render(false);
    assert!(warned.starts_with("warning: two jobs can write one key"), "{warned}");
    let disabled = format!("enabled = false\n{new}");
    let files = check(&[("all.toml", &all), ("new.toml", &disabled)]).unwrap();
    assert!(files.possible_conflicts().is_empty());
}

#[test]
fn hazard_37_placeholders_side_by_side_are_refused_where_nothing_parts_them() {
    let files = check(&[("a.toml", &with_key("products:{tenant_id}{category}"))]).unwrap();
    assert!(files.conflicts(IdClass::Uuid).is_empty());
    insta::assert_snapshot!(conflicts(&files, IdClass::Integer));
    let never = with_key("products:{tenant_id}:{category}{id}");
    insta::assert_snapshot!(check(&[("a.toml", &never)]).unwrap_err().render(false));
}

#[test]
fn the_tenants_id_by_another_name_is_called_so_in_every_hint() {
    let shown = |has_settings_file, tenant_column: &str, text: &str| {
        let text = JobText { path: Path::new("jobs/a.toml").into(), text: text.to_owned() };
        let tenant_column = tenant_column.to_owned();
        let defaults = Defaults { tenant_column, has_settings_file, ..defaults() };
        let no_files = |_: &Path| Err(String::new());
        definition::check(vec![text], &no_files, &defaults).unwrap_err().render(false)
    };
    let key = with_key("ws:{workspaceId}:customers");
    insta::assert_snapshot!(
        [
            shown(false, "tenant_id", &key),
            shown(true, "tenant_id", &key),
            shown(true, "workspaceId", ""),
            shown(true, "workspaceId", &with_key("ws:all").replace("tenant_id", "x")),
            shown(
                true,
                "workspaceId",
                &format!("keys = []\n{}", GOOD.split("[[keys]]").next().unwrap())
            ),
        ]
        .join("\n\n")
    );
}

#[test]
fn a_quote_within_double_quotes_comes_with_the_way_to_write_it() {
    insta::assert_snapshot!(shown([
        instead("\"select tenant_id, ", "\"select \"workspaceId\" as tenant_id, "),
        instead("\"every 10m\"", "\"every 10m"),
    ]));
}

#[test]
fn a_file_that_only_looks_like_a_job_file_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| {
        let path = folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    };
    for path in ["good.toml", "A.TOML", "b.tml", "more/c.toml", ".hidden/d.toml", ".e.tml"] {
        write(path, GOOD);
    }
    for path in ["README.md", "sql/products.sql", "good.toml.bak"] {
        write(path, "");
    }
    let problems = definition::load(folder.path(), &defaults()).unwrap_err();
    let found: Vec<_> = problems
        .iter()
        .map(|one| {
            let file = one.file().strip_prefix(folder.path()).unwrap().display();
            format!("{file}: {}; {}", one.message(), one.hint_text().unwrap())
        })
        .collect();
    insta::assert_snapshot!(found.join("\n"));
}

#[test]
fn hazard_33_a_file_whose_name_is_no_jobs_name_is_refused() {
    let problems = check(&[("a b.toml", GOOD), ("über.toml", GOOD)]).unwrap_err();
    insta::assert_snapshot!(problems.render(false));
}

#[test]
fn a_disabled_job_is_checked_all_the_same() {
    let problems = check(&[("a.toml", &with("enabled = false\nretries = 99"))]).unwrap_err();
    assert_eq!(problems.len(), 1);
}

#[test]
fn five_fields_of_cron_are_accepted_and_shown_as_such() {
    let files = check(&[("a.toml", &instead("every 10m", "*/10 * * * *"))]).unwrap();
    let Schedule::Cron(cron) = &files.jobs().values().next().unwrap().schedule else { panic!() };
    assert!(cron.is_to_the_minute());
}

#[test]
fn problems_that_turn_up_later_are_shown_in_the_file() {
    let text = r#"schedule = "every 10m"
ttl = "30m"
[query]
sql = """
select tenant_id, \
  "näme", pric
from products where tenant_id = any($1)
"""
[dates]
days = 7
timezone = "tenant.timezone"
[[keys]]
key = "products:{tenant_id}:{kind}:{date}:{tenant.plan}"
[encode]
omit = ["tenant"]
columns = { price = "number" }
"#;
    let files = check(&[("products.toml", text)]).unwrap_or_else(|problems| panic!("{problems}"));
    let job = JobName::parse("products").unwrap();
    let sql = &files.jobs()[&job].query.sql;
    let offset = sql.find("pric").map(|at| sql[..at].chars().count());
    let at = |place, message: &str| files.problem_at(&job, place, message, None);
    let problems = vec![
        at(Place::Query { offset }, "column `pric` does not exist"),
        at(Place::Query { offset: Some(9999) }, "at the end of the query"),
        at(Place::Query { offset: None }, "the query took too long"),
        at(Place::Key(0), "about the key"),
        at(Place::Schedule, "about the schedule"),
        at(Place::Dates, "about the dates"),
        at(Place::Encode, "about the encoding"),
        at(Place::Field("ttl"), "about a field"),
        at(Place::Field("encode.columns.price"), "about a column"),
        at(Place::Field("encode.profile"), "about a field that is not written"),
        files.problem_at(&JobName::parse("gone").unwrap(), Place::Dates, "no such job", None),
    ];
    insta::assert_snapshot!(Problems::new(problems).render(false));
}

#[test]
fn a_folder_is_read_as_kubernetes_mounts_it() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let from_file = GOOD.replace(
        "sql = \"select tenant_id, category, id, name from products where tenant_id = any($1)\"",
        "file = \"products.sql\"",
    );
    fs::create_dir(at("..2026_01_01")).unwrap();
    fs::write(at("..2026_01_01/products.toml"), &from_file).unwrap();
    fs::write(at("..2026_01_01/products.sql"), "select $1 -- ä\n, nothing").unwrap();
    std::os::unix::fs::symlink("..2026_01_01", at("..data")).unwrap();
    std::os::unix::fs::symlink("..data/products.toml", at("products.toml")).unwrap();
    std::os::unix::fs::symlink("..data/products.sql", at("products.sql")).unwrap();
    fs::write(at(".hidden.toml"), "no").unwrap();
    fs::write(at("README.md"), "no").unwrap();
    fs::create_dir(at("folder.toml")).unwrap();
    let files = definition::load(folder.path(), &defaults()).unwrap_or_else(|all| panic!("{all}"));
    assert_eq!(files.jobs().len(), 1);
    let job = JobName::parse("products").unwrap();
    assert_eq!(&*files.jobs()[&job].query.sql, "select $1 -- ä\n, nothing");
    let problem = files.problem_at(&job, Place::Query { offset: Some(17) }, "unknown", None);
    assert_eq!(problem.file(), at("products.sql"));
    assert_eq!(problem.line_and_column(), Some((2, 3)));
}

#[test]
fn files_that_cannot_be_read_are_problems_too() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    let outside = tempfile::NamedTempFile::new().unwrap();
    std::os::unix::fs::symlink(outside.path(), at("outside.sql")).unwrap();
    let linked = GOOD.replace(
        "sql = \"select tenant_id, category, id, name from products where tenant_id = any($1)\"",
        "file = \"outside.sql\"",
    );
    fs::write(at("a.toml"), linked).unwrap();
    fs::write(at("b.toml"), b"description = \"\n\xff\"").unwrap();
    fs::write(at("c.toml"), vec![b'#'; 1024 * 1024 + 1]).unwrap();
    std::os::unix::fs::symlink("nowhere", at("d.toml")).unwrap();
    let problems = definition::load(folder.path(), &defaults()).unwrap_err();
    let shown = problems.render(false).replace(&folder.path().display().to_string(), "jobs");
    insta::assert_snapshot!(shown);
}

#[test]
fn a_folder_without_jobs_is_the_wrong_folder() {
    let folder = tempfile::tempdir().unwrap();
    let empty = definition::load(folder.path(), &defaults()).unwrap_err();
    let missing = definition::load(&folder.path().join("jobs"), &defaults()).unwrap_err();
    let shown = format!("{empty}\n\n{missing}");
    insta::assert_snapshot!(shown.replace(&folder.path().display().to_string(), "FOLDER"));
}
