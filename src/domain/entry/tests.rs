use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::domain::date;
use crate::domain::job::tests::example;
use crate::domain::job::{DateZone, Dates};
use crate::domain::key::KeyTemplate;
use crate::domain::layout::Layout;
use crate::domain::row::{KeyText, RowsFull, SlotDay};
use crate::domain::tenant::Tenants;

fn job(keys: &[(&str, Shape)]) -> Job {
    let key = |&(text, shape): &(&str, Shape)| Key {
        template: KeyTemplate::parse(text, "tenant_id").unwrap(),
        shape,
        unique: None,
    };
    example("job", keys.iter().map(key).collect())
}

/// The entries of a job if it is the only job and tenants' ids are text.
fn entries<'r>(job: &Job, batch: &Batch, first_dates: &[NaiveDate], rows: &'r Rows) -> Entries<'r> {
    let checks = Checks::new(Layout::default(), job);
    super::entries(job, &checks, batch, first_dates, rows)
}

fn lists(templates: &[&str]) -> Job {
    let keys: Vec<_> = templates.iter().map(|text| (*text, Shape::List)).collect();
    job(&keys)
}

fn batch(ids: &[&str]) -> Batch {
    let mut list = Tenants::with_columns(["region"]);
    for id in ids {
        list.push(id, [None]);
    }
    whole(list)
}

fn whole(list: Tenants) -> Batch {
    let positions = (0..u32::try_from(list.len()).unwrap()).collect();
    Batch::new(Arc::new(list), positions)
}

/// A row: its slot, its JSON, and its key columns; `-` stands for NULL.
type Line<'a> = (u32, &'a str, &'a [&'a str]);

fn rows(lines: &[Line<'_>]) -> Rows {
    on_days(&lines.iter().map(|line| (*line, None)).collect::<Vec<_>>())
}

/// Each row with its day.
fn on_days(lines: &[(Line<'_>, Option<u16>)]) -> Rows {
    let mut rows = Rows::default();
    rows.reset(lines.first().map_or(0, |(line, _)| line.2.len()), usize::MAX);
    for ((slot, json, keys), day) in lines {
        let pushed: Result<(), RowsFull> = rows.push(
            SlotDay { slot: *slot, day: *day },
            |out| {
                out.extend_from_slice(json.as_bytes());
                Ok(())
            },
            |column, out| {
                if keys[column] == "-" {
                    return Ok(KeyText::Null);
                }
                out.extend_from_slice(keys[column].as_bytes());
                Ok(KeyText::Written)
            },
        );
        pushed.unwrap();
    }
    rows
}

/// The entries to write: each key with its value, in order.
fn written(found: &Entries<'_>) -> Vec<(String, String)> {
    let text = |entry: &Entry<'_>| {
        let value = entry.value.to_vec();
        assert_eq!(value.len(), entry.value.len(), "{}", entry.key);
        (entry.key.clone(), String::from_utf8(value).unwrap())
    };
    found.writes.iter().map(text).collect()
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn day(text: &str) -> NaiveDate {
    text.parse().unwrap()
}

fn in_utc(days: u16) -> Dates {
    Dates { days, zone: DateZone::Fixed(chrono_tz::UTC), column: None }
}

#[test]
fn rows_are_in_the_list_of_their_tenant_and_in_that_of_their_category() {
    let job = lists(&["p:{tenant_id}:all", "p:{tenant_id}:{category}"]);
    // The rows are not in the order of the tenants: a query need not sort them for preheat.
    let rows = rows(&[(0, "1", &["x"]), (1, "2", &["x"]), (0, "3", &["y"]), (0, "4", &["x"])]);
    let found = entries(&job, &batch(&["a", "b"]), &[], &rows);
    let expected = [
        ("p:a:all", "[1,3,4]"),
        ("p:b:all", "[2]"),
        ("p:a:x", "[1,4]"),
        ("p:b:x", "[2]"),
        ("p:a:y", "[3]"),
    ];
    assert_eq!(written(&found), pairs(&expected));
    let slots: Vec<_> = found.writes.iter().map(|entry| entry.slot).collect();
    assert_eq!(slots, [0, 1, 0, 1, 0]);
    assert!(found.removals.is_empty() && found.failures.is_empty());
}

proptest! {
    #[test]
    fn a_value_does_not_depend_on_the_order_in_which_its_rows_arrive(
        (lines, shuffled) in prop::collection::vec((0..3_u32, "[a-c]{1,2}", "[x-y]", "[0-2]"), 0..40)
            .prop_flat_map(|lines| (Just(lines.clone()), Just(lines).prop_shuffle())),
    ) {
        let job = lists(&["p:{tenant_id}:all", "p:{tenant_id}:{category}"]);
        let batch = batch(&["a", "b", "c"]);
        let rows = |lines: &[(u32, String, String, String)]| {
            let mut rows = Rows::default();
            rows.reset(1, usize::MAX);
            let append = |text: &str, out: &mut Vec<u8>| {
                out.extend_from_slice(text.as_bytes());
                Ok(())
            };
            for (slot, json, category, order) in lines {
                let pushed: Result<(), RowsFull> = rows.push_ordered(
                    *slot,
                    |out| append(json, out),
                    |_, out| append(category, out).map(|()| KeyText::Written),
                    |out| append(order, out),
                );
                pushed.unwrap();
            }
            rows
        };
        let (arrived, other) = (rows(&lines), rows(&shuffled));
        let found = entries(&job, &batch, &[], &arrived);
        let again = entries(&job, &batch, &[], &other);
        let sorted = |found| BTreeSet::from_iter(written(found));
        prop_assert_eq!(sorted(&found), sorted(&again));
        let mut of_a: Vec<_> = lines.iter().filter(|(slot, ..)| *slot == 0).collect();
        of_a.sort_by_key(|(_, json, _, order)| (order, json));
        let of_a: Vec<_> = of_a.into_iter().map(|(_, json, ..)| json.as_str()).collect();
        let (_, all) = written(&found).into_iter().find(|(key, _)| key == "p:a:all").unwrap();
        prop_assert_eq!(all, format!("[{}]", of_a.join(",")));
    }
}

#[test]
fn hazard_06_a_static_key_without_rows_is_written_empty_and_others_are_not() {
    let job = lists(&["p:{tenant_id}:all", "p:{tenant_id}:{category}"]);
    let none = rows(&[]);
    let found = entries(&job, &batch(&["a", "b"]), &[], &none);
    assert_eq!(written(&found), pairs(&[("p:a:all", "[]"), ("p:b:all", "[]")]));
}

#[test]
fn a_row_whose_key_column_is_null_is_in_no_value_of_that_key() {
    let job = lists(&["p:{tenant_id}:all", "p:{tenant_id}:{a}:{b}"]);
    let rows = rows(&[(0, "1", &["x", "-"]), (0, "2", &["x", "y"]), (0, "3", &["-", "y"])]);
    let found = entries(&job, &batch(&["t"]), &[], &rows);
    assert_eq!(written(&found), pairs(&[("p:t:all", "[1,2,3]"), ("p:t:x:y", "[2]")]));
    assert!(found.failures.is_empty());
}

#[test]
fn an_object_is_one_row_and_null_where_a_static_key_has_none() {
    let job = job(&[("clinic:{tenant_id}", Shape::Object)]);
    let rows = rows(&[(0, "{\"n\":1}", &[]), (2, "{}", &[]), (2, "{}", &[])]);
    let found = entries(&job, &batch(&["a", "b", "c"]), &[], &rows);
    assert_eq!(written(&found), pairs(&[("clinic:a", "{\"n\":1}"), ("clinic:b", "null")]));
    let [(slot, failure)] = found.failures.as_slice() else { panic!("{found:?}") };
    assert_eq!((*slot, failure.kind), (2, FailureKind::SeveralRows));
    assert_eq!(failure.tenant.as_deref(), Some("c"));
    assert_eq!(failure.key.as_deref(), Some("clinic:c"));
    assert_eq!(failure.message, "2 rows for the object `clinic:c`: it takes one");
    assert!(found.removals.is_empty());
}

#[test]
fn an_object_with_a_key_of_its_own_needs_no_tenant_in_it() {
    let job = job(&[("pet:{id}", Shape::Object)]);
    let rows = rows(&[(1, "{\"id\":7}", &["7"]), (0, "{\"id\":8}", &["8"])]);
    let found = entries(&job, &batch(&["a", "b"]), &[], &rows);
    let expected = [("pet:7", "{\"id\":7}"), ("pet:8", "{\"id\":8}")];
    assert_eq!(written(&found), pairs(&expected));
    assert_eq!(found.writes[0].slot, 1);
}

#[test]
fn hazard_12_each_tenant_has_its_own_dates_and_rows_of_others_are_in_none() {
    let mut job = lists(&["slots:{tenant_id}:{date}"]);
    let zone = DateZone::TenantColumn("region".to_owned());
    job.dates = Some(Dates { days: 2, zone, column: None });
    let rows = on_days(&[
        ((0, "1", &[]), Some(0)),
        ((0, "2", &[]), Some(1)),
        ((0, "3", &[]), None),
        ((1, "4", &[]), None),
        ((1, "5", &[]), Some(1)),
        ((1, "6", &[]), Some(0)),
        ((1, "7", &[]), Some(1)),
        ((1, "8", &[]), Some(2)),
    ]);
    let first = [day("2026-02-28"), day("2026-03-01")];
    let found = entries(&job, &batch(&["a", "b"]), &first, &rows);
    let expected = [
        ("slots:a:2026-02-28", "[1]"),
        ("slots:a:2026-03-01", "[2]"),
        ("slots:b:2026-03-01", "[6]"),
        ("slots:b:2026-03-02", "[5,7]"),
    ];
    assert_eq!(written(&found), pairs(&expected));
    assert!(found.failures.is_empty());
}

#[test]
fn hazard_12_dates_bound_keys_with_data_columns_as_well() {
    let mut job = lists(&["s:{tenant_id}:{date}:{kind}"]);
    job.dates = Some(in_utc(1));
    let rows = on_days(&[((0, "1", &["x"]), Some(0)), ((0, "2", &["x"]), None)]);
    let found = entries(&job, &batch(&["a"]), &[day("2026-03-01")], &rows);
    assert_eq!(written(&found), pairs(&[("s:a:2026-03-01:x", "[1]")]));
}

#[test]
fn a_category_that_makes_the_key_of_another_template_does_not_get_it() {
    let job = lists(&["p:{tenant_id}:all", "p:{tenant_id}:{category}"]);
    let rows = rows(&[(0, "1", &["all"]), (0, "2", &["x"])]);
    let found = entries(&job, &batch(&["a"]), &[], &rows);
    assert_eq!(written(&found), pairs(&[("p:a:all", "[1,2]"), ("p:a:x", "[2]")]));
    let [(0, failure)] = found.failures.as_slice() else { panic!("{found:?}") };
    assert_eq!(failure.kind, FailureKind::KeyConflict);
    assert_eq!(failure.tenant.as_deref(), Some("a"));
    assert_eq!(failure.message, "two values for the key `p:a:all`: the first one keeps it");
}

#[test]
fn a_refused_value_does_not_leave_its_key_to_another_template() {
    let mut job = lists(&["p:{tenant_id}:all", "p:{tenant_id}:{category}"]);
    job.encoding.max_bytes = 8;
    let rows = rows(&[(0, "11111", &["all"]), (0, "22222", &["x"])]);
    let found = entries(&job, &batch(&["a"]), &[], &rows);
    assert_eq!(written(&found), pairs(&[("p:a:x", "[22222]")]));
    let kinds: Vec<_> = found.failures.iter().map(|(_, failure)| failure.kind).collect();
    assert_eq!(kinds, [FailureKind::ValueTooLarge, FailureKind::KeyConflict]);
    assert_eq!(found.removals, [Removal { key: "p:a:all".to_owned(), slot: 0 }]);
}

#[test]
fn hazard_10_two_tenants_whose_keys_read_alike_never_share_a_value() {
    let job = lists(&["x:{tenant_id}:{kind}"]);
    let rows = rows(&[(0, "\"of a\"", &["b:c"]), (1, "\"of a:b\"", &["c"])]);
    let found = entries(&job, &batch(&["a", "a:b"]), &[], &rows);
    assert_eq!(written(&found), pairs(&[("x:a:b:c", "[\"of a\"]")]));
    let [(1, failure)] = found.failures.as_slice() else { panic!("{found:?}") };
    assert_eq!(failure.kind, FailureKind::AmbiguousKey);
    assert_eq!(failure.tenant.as_deref(), Some("a:b"));
    let message = "`x:a:b:c` is not this tenant's alone: its template reads it as a key of `a`";
    assert_eq!(failure.message, message);
    assert_eq!(found.failed_keys().count(), 0, "its place is another tenant's");
}

#[test]
fn hazard_37_each_tenant_alone_comes_to_the_same_as_in_one_batch() {
    let job = lists(&["x:{tenant_id}:all", "x:{tenant_id}:{kind}"]);
    let of_a = rows(&[(0, "1", &["b:c"]), (0, "2", &["b:all"]), (0, "3", &["all"])]);
    let found = entries(&job, &batch(&["a"]), &[], &of_a);
    assert_eq!(written(&found), pairs(&[("x:a:all", "[1,2,3]"), ("x:a:b:c", "[1]")]));
    let kinds: Vec<_> = found.failures.iter().map(|(_, failure)| failure.kind).collect();
    assert_eq!(kinds, [FailureKind::AmbiguousKey, FailureKind::KeyConflict]);
    let of_b = rows(&[(0, "1", &["c"])]);
    let found = entries(&job, &batch(&["a:b"]), &[], &of_b);
    assert_eq!(written(&found), []);
    let messages: Vec<_> = found.failures.iter().map(|(_, failure)| &*failure.message).collect();
    assert_eq!(
        messages,
        [
            "`x:a:b:all` is not this tenant's alone: it may be a key of \
             `x:{tenant_id}:{kind}` in job `job`",
            "`x:a:b:c` is not this tenant's alone: its template reads it as a key of `a`",
        ]
    );
}

#[test]
fn hazard_37_a_key_without_its_tenant_is_that_of_one_value() {
    let mut job = lists(&["pet:{id}:{kind}"]);
    job.keys[0].unique = Some("id".to_owned());
    let rows = rows(&[(0, "1", &["7", "a:b"]), (1, "2", &["7:a", "b"])]);
    let found = entries(&job, &batch(&["a", "b"]), &[], &rows);
    assert_eq!(written(&found), pairs(&[("pet:7:a:b", "[1]")]));
    let [(1, failure)] = found.failures.as_slice() else { panic!("{found:?}") };
    assert_eq!(failure.kind, FailureKind::AmbiguousKey);
}

#[test]
fn columns_whose_texts_join_to_one_key_are_a_conflict_and_not_one_value() {
    let job = lists(&["x:{tenant_id}:{a}:{b}"]);
    let rows = rows(&[(0, "1", &["p:q", "r"]), (0, "2", &["p", "q:r"])]);
    let found = entries(&job, &batch(&["t"]), &[], &rows);
    assert_eq!(written(&found), pairs(&[("x:t:p:q:r", "[1]")]));
    assert_eq!(found.failures.len(), 1);
}

#[test]
fn hazard_19_a_value_over_its_bound_is_removed_and_all_others_are_written() {
    let mut job = lists(&["p:{tenant_id}"]);
    job.encoding.max_bytes = 9;
    let rows = rows(&[(0, "123", &[]), (0, "456", &[]), (1, "123", &[]), (1, "4567", &[])]);
    let found = entries(&job, &batch(&["fits", "large", "none"]), &[], &rows);
    let expected = [("p:fits", "[123,456]"), ("p:none", "[]")];
    assert_eq!(written(&found), pairs(&expected));
    assert_eq!(found.removals, [Removal { key: "p:large".to_owned(), slot: 1 }]);
    let [(1, failure)] = found.failures.as_slice() else { panic!("{found:?}") };
    assert_eq!(failure.kind, FailureKind::ValueTooLarge);
    assert_eq!(failure.message, "`p:large` has 10 bytes: `encode.max_bytes` is 9");
}

#[test]
fn a_global_job_has_one_slot_without_a_tenant() {
    let mut job = lists(&["plans", "plan:{name}"]);
    job.scope = Scope::Global;
    let lines = rows(&[(0, "1", &["free"]), (0, "2", &["pro"])]);
    let found = entries(&job, &Batch::global(), &[], &lines);
    let expected = [("plans", "[1,2]"), ("plan:free", "[1]"), ("plan:pro", "[2]")];
    assert_eq!(written(&found), pairs(&expected));
    let empty = rows(&[]);
    let found = entries(&job, &Batch::global(), &[], &empty);
    assert_eq!(written(&found), pairs(&[("plans", "[]")]));
    job.keys.truncate(1);
    job.keys[0].template = KeyTemplate::parse("plans:{date}", "tenant_id").unwrap();
    job.dates = Some(in_utc(1));
    let dated = on_days(&[((0, "1", &[]), Some(0))]);
    let found = entries(&job, &Batch::global(), &[day("2026-03-01")], &dated);
    assert_eq!(written(&found), pairs(&[("plans:2026-03-01", "[1]")]));
}

#[test]
fn a_column_of_the_tenant_is_in_its_keys_and_a_tenant_without_it_has_no_such_key() {
    let mut list = Tenants::with_columns(["plan", "region"]);
    list.push("a", [Some("free"), Some("eu")]);
    list.push("b", [Some("pro"), None]);
    let job = lists(&["{tenant.region}:{tenant_id}", "{tenant.plan}:{tenant_id}:{kind}"]);
    let rows = rows(&[(0, "1", &["x"]), (1, "2", &["x"])]);
    let found = entries(&job, &whole(list), &[], &rows);
    let expected = [("eu:a", "[1]"), ("free:a:x", "[1]"), ("pro:b:x", "[2]")];
    assert_eq!(written(&found), pairs(&expected));
}

#[test]
fn hazard_33_a_hostile_id_is_in_its_key_as_it_is_and_in_no_message_raw() {
    let ids = ["a:b", "*", "{x}", "line\nbreak", "\u{2028}", "", "ä{{", "a\0b"];
    let mut job = lists(&["k:{tenant_id}:end"]);
    job.encoding.max_bytes = 1;
    let none = rows(&[]);
    let found = entries(&job, &batch(&ids), &[], &none);
    let keys: Vec<_> = found.removals.iter().map(|removal| removal.key.as_str()).collect();
    let expected: Vec<_> = ids.iter().map(|id| format!("k:{id}:end")).collect();
    assert_eq!(keys, expected);
    let message = &found.failures[3].1.message;
    assert_eq!(message, "`k:line\\nbreak:end` has 2 bytes: `encode.max_bytes` is 1");
}

#[test]
fn hazard_15_ttls_are_spread_below_the_ttl_and_the_same_in_every_run() {
    let mut job = lists(&["k:{tenant_id}"]);
    job.ttl_jitter = Share::from_percent(10.0).unwrap();
    let ids: Vec<_> = (0..1000).map(|id| id.to_string()).collect();
    let ids: Vec<_> = ids.iter().map(String::as_str).collect();
    let (batch, none) = (batch(&ids), rows(&[]));
    let ttls = || {
        let found = entries(&job, &batch, &[], &none);
        found.writes.iter().map(|entry| entry.ttl).collect::<Vec<_>>()
    };
    let found = ttls();
    assert_eq!(found, ttls());
    let (ttl, jitter) = (job.ttl, job.ttl_jitter.of(job.ttl));
    let taken: Vec<_> = found.iter().map(|found| ttl.checked_sub(*found).unwrap()).collect();
    assert!(taken.iter().all(|taken| *taken <= jitter));
    let tenths: BTreeSet<_> = taken.iter().map(|taken| taken.as_millis() / 18_000).collect();
    assert_eq!(tenths, (0..10).collect(), "every tenth of the jitter is used");
    job.ttl_jitter = Share::NONE;
    assert!(entries(&job, &batch, &[], &none).writes.iter().all(|entry| entry.ttl == ttl));
}

fn any_row() -> impl Strategy<Value = (u32, String, Option<u8>, u8)> {
    (0..5_u32, "[0-9]{1,12}", proptest::option::of(0..4_u8), 0..6_u8)
}

proptest! {
    /// Lists hold each row once, in the order of the query, and nothing else.
    #[test]
    fn every_row_is_in_the_one_list_of_its_tenant_category_and_date(
        lines in proptest::collection::vec(any_row(), 0..200)
    ) {
        let first = day("2026-03-01");
        let text = |offset: u8| (first + Days::new(offset.into())).to_string();
        let kinds: Vec<String> = lines
            .iter()
            .map(|(_, _, kind, _)| kind.map_or("-".to_owned(), |kind| format!("c{kind}")))
            .collect();
        let kinds: Vec<[&str; 1]> = kinds.iter().map(|kind| [kind.as_str()]).collect();
        let table: Vec<(Line<'_>, Option<u16>)> = lines
            .iter()
            .zip(&kinds)
            .map(|((slot, json, _, at), kind)| {
                let day = at.checked_sub(1).map(u16::from).filter(|day| *day < 3);
                ((*slot, json.as_str(), kind.as_slice()), day)
            })
            .collect();
        let mut job = lists(&["all:{tenant_id}", "{tenant_id}:{kind}", "{tenant_id}@{date}"]);
        job.encoding.max_bytes = usize::MAX;
        job.dates = Some(in_utc(3));
        let rows = on_days(&table);
        let batch = batch(&["a", "b", "c", "d", "e"]);
        let found = entries(&job, &batch, &[first + Days::new(1); 5], &rows);

        let mut expected: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for id in ["a", "b", "c", "d", "e"] {
            expected.insert(format!("all:{id}"), Vec::new());
            for date in date::all(first + Days::new(1), 3) {
                expected.insert(format!("{id}@{date}"), Vec::new());
            }
        }
        for (slot, json, kind, at) in &lines {
            let id = batch.tenant(*slot as usize).unwrap().id();
            expected.entry(format!("all:{id}")).or_default().push(json);
            if let Some(kind) = kind {
                expected.entry(format!("{id}:c{kind}")).or_default().push(json);
            }
            if (1..4).contains(at) {
                expected.entry(format!("{id}@{}", text(*at))).or_default().push(json);
            }
        }
        let expected: BTreeMap<_, _> = expected
            .into_iter()
            .map(|(key, members)| (key, format!("[{}]", members.join(","))))
            .collect();
        let found: BTreeMap<_, _> = written(&found).into_iter().collect();
        prop_assert_eq!(found, expected);
    }
}
