//! What builders refuse, by a model of the functions that are written down.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use proptest::prelude::*;

use super::builder::{Builder, KeyPart, Parameter, Rule, builders};
use super::pattern::Class;
use super::{Input, Language, Problem, generate, rust};
use crate::domain::job::tests::example;
use crate::domain::job::{Job, Key, Shape};
use crate::domain::key::KeyTemplate;
use crate::domain::layout::Layout;
use crate::domain::tenant::{IdClass, Tenants};
use crate::keys::JobColumns;

// The functions that a generated file contains.
include!("helpers.rs");

fn job(name: &str, templates: &[&str]) -> Arc<Job> {
    let key = |text: &&str| {
        let template = KeyTemplate::parse(text, "t").unwrap();
        let unique = (!template.has_tenant()).then(|| "k".to_owned());
        Key { template, shape: Shape::List, unique }
    };
    Arc::new(example(name, templates.iter().map(key).collect()))
}

fn layout(ids: IdClass, jobs: &[Arc<Job>]) -> Layout {
    Layout::new(&jobs.iter().map(|job| (job.name.clone(), Arc::clone(job))).collect(), ids)
}

fn input<'a>(layout: &'a Layout, ids: IdClass, jobs: &[Arc<Job>]) -> Input<'a> {
    let of = |job: &Arc<Job>| JobColumns { job: Arc::clone(job), columns: None };
    Input { jobs: jobs.iter().map(of).collect(), layout, ids: Some(ids), arguments: "" }
}

/// The key that a builder makes of these values, with the helpers that it calls.
fn key(builder: &Builder<'_>, values: &[&str]) -> Option<String> {
    let mut texts = Vec::new();
    for (parameter, value) in builder.parameters.iter().zip(values) {
        let checked = match parameter.class {
            Class::Uuid => as_uuid("it", value),
            Class::Date => as_date("it", value),
            Class::Text => as_text("it", value),
            Class::Integer => Ok(as_integer(value.parse::<i64>().ok()?)),
        };
        let text = checked.ok()?;
        for end in &parameter.ends {
            ended_by("it", &text, end).ok()?;
        }
        texts.push(text);
    }
    let part = |part: &KeyPart| match part {
        KeyPart::Text(text) => text.clone(),
        KeyPart::Value(index) => texts[*index].clone(),
    };
    let key: String = builder.parts.iter().map(part).collect();
    for rule in &builder.rules {
        let (check, pattern): (fn(&str, &[&str]) -> _, _) = match rule {
            Rule::NotOf(pattern) => (not_of, pattern),
            Rule::ReadOnce(pattern) => (read_once, pattern),
        };
        let pattern = rust::readable(pattern);
        check(&key, &pattern.iter().map(String::as_str).collect::<Vec<_>>()).ok()?;
    }
    Some(key)
}

const UUID: &str = "6f1c0c6e-5f0f-4e55-9f53-0f7f4f1f8a11";

/// What the builders of a job make of these values: a line for each.
#[track_caller]
fn check(ids: IdClass, templates: &[&str], cases: &[(usize, &[&str], Option<&str>)]) {
    let jobs = [job("one", templates)];
    let layout = layout(ids, &jobs);
    let input = input(&layout, ids, &jobs);
    let builders = builders(&jobs[0], None, &input).unwrap();
    for (index, values, expected) in cases {
        let found = key(&builders[*index], values);
        assert_eq!(found.as_deref(), *expected, "{index} {values:?}");
    }
}

#[test]
fn a_text_that_would_make_another_key_is_refused() {
    let all = format!("p:{UUID}:all");
    check(
        IdClass::Uuid,
        &["p:{t}:all", "p:{t}:{k}"],
        &[
            (0, &[UUID], Some(&all)),
            (0, &["6F1C0C6E-5f0f-4e55-9f53-0f7f4f1f8a11"], None),
            (1, &[UUID, "all"], None),
            (1, &[UUID, ""], None),
            (1, &[UUID, "x:all"], Some(&format!("p:{UUID}:x:all"))),
        ],
    );
    check(
        IdClass::Text,
        &["p:{t}:all", "p:{t}:{k}"],
        &[
            (0, &["a"], Some("p:a:all")),
            (0, &["a:b"], None),
            (1, &["a", "b:c"], Some("p:a:b:c")),
            (1, &["a:b", "c"], None),
            (1, &["a", "b:all"], None),
        ],
    );
    check(
        IdClass::Integer,
        &["{k}:{t}::{l}"],
        &[
            (0, &["7", "a", "b:c"], Some("a:7::b:c")),
            (0, &["7", "a:", "b"], None),
            (0, &["7", "preheat", "b"], None),
            (0, &["seven", "a", "b"], None),
        ],
    );
    check(
        IdClass::Text,
        &["p:{t}:{date}:{k}", "{t}"],
        &[
            (0, &["a", "2028-02-29", "x"], Some("p:a:2028-02-29:x")),
            (0, &["a", "2026-02-29", "x"], None),
            (0, &["a", "2026-2-28", "x"], None),
            (1, &["a"], Some("a")),
            (1, &["p:a:2028-02-29:x"], None),
            (1, &["preheat:fence:a"], None),
        ],
    );
    check(
        IdClass::Uuid,
        &["p:{t}:{k}{date}:{l}"],
        &[
            (0, &[UUID, "2026-03-01", "a", "b"], Some(&format!("p:{UUID}:a2026-03-01:b"))),
            (0, &[UUID, "2026-03-01", "a2026-03-02:", "b"], None),
        ],
    );
}

#[test]
fn builders_that_would_share_all_their_keys_or_a_name_are_refused() {
    let problems = |jobs: &[Arc<Job>]| -> Vec<String> {
        let layout = layout(IdClass::Uuid, jobs);
        let problems = generate(Language::Rust, &input(&layout, IdClass::Uuid, jobs)).unwrap_err();
        problems.iter().map(Problem::to_string).collect()
    };
    assert_eq!(
        problems(&[job("pets", &["pet:{k}", "pet:{l}"])]),
        [
            "`pet:{k}` of job `pets` has no key that could not be one of `pet:{l}` as well",
            "`pet:{l}` of job `pets` has no key that could not be one of `pet:{k}` as well",
        ]
    );
    assert_eq!(
        problems(&[job("a-b", &["x:{t}"]), job("a_b", &["y:{t}"])]),
        [
            "`x:{t}` of job `a-b` and `y:{t}` of job `a_b` would both be called `aB`",
            "the rows of job `a-b` and the rows of job `a_b` would both be called `ABRow`",
        ]
    );
    assert_eq!(
        problems(&[job("a", &["a:{t}:all", "a:{t}"]), job("a-all", &["y:{t}"])]),
        ["`a:{t}:all` of job `a` and `y:{t}` of job `a-all` would both be called `aAll`"]
    );
}

fn any_template() -> impl Strategy<Value = String> {
    let literal = prop::sample::select(vec![":", "::", "a", "1", "-", ":a", "a:1", "preheat:"]);
    let part = prop_oneof![
        4 => literal.prop_map(str::to_owned),
        2 => prop::sample::select(vec!["{k}", "{l}", "{date}", "{tenant.m}"]).prop_map(str::to_owned),
    ];
    let parts = || prop::collection::vec(part.clone(), 0..3).prop_map(|parts| parts.concat());
    let owner = prop::sample::select(vec!["{t}", "{t}", "{t}", "{k}"]);
    (parts(), owner, parts()).prop_map(|(before, owner, after)| format!("{before}{owner}{after}"))
}

fn any_values(ids: IdClass) -> impl Strategy<Value = Vec<(usize, usize, String, Vec<String>)>> {
    let tenant = match ids {
        IdClass::Text => "[a1:-]{0,4}",
        IdClass::Integer => "-?[1-9][0-9]{0,2}",
        IdClass::Uuid => "[a1]{8}-0000-4000-8000-00000000000[01]",
    };
    let value = prop_oneof![4 => "[a1:-]{0,4}", 1 => Just("2026-03-01".to_owned())];
    let one = (0..2_usize, 0..2_usize, tenant, prop::collection::vec(value, 5));
    prop::collection::vec(one, 40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn no_two_calls_make_one_key_and_a_run_may_write_each(
        templates in prop::collection::vec(any_template(), 4),
        (ids, calls) in prop::sample::select(IdClass::ALL.to_vec())
            .prop_flat_map(|ids| (Just(ids), any_values(ids))),
    ) {
        let texts: Vec<&str> = templates.iter().map(String::as_str).collect();
        let jobs = [job("one", &texts[..2]), job("other", &texts[2..])];
        let layout = layout(ids, &jobs);
        let input = input(&layout, ids, &jobs);
        let builders = jobs.each_ref().map(|job| builders(job, None, &input).unwrap_or_default());
        let mut made: BTreeMap<String, (usize, usize, Vec<&str>)> = BTreeMap::new();
        for (job, index, tenant, values) in &calls {
            let Some(builder) = builders[*job].get(*index) else { continue };
            let is_date = |position| {
                builder.parameters.get(position).is_some_and(|one: &Parameter| one.class == Class::Date)
            };
            let other = |(position, value)| if is_date(position) { "2026-03-01" } else { value };
            let values = values.iter().map(String::as_str);
            let values: Vec<&str> =
                [tenant.as_str()].into_iter().chain(values).enumerate().map(other).collect();
            let values = &values[..builder.parameters.len()];
            let Some(key) = key(builder, values) else { continue };
            // The tenant's column has the value that the builder was called with.
            let mut list = Tenants::with_columns(["m"]);
            let column = builder.parameters.iter().position(|one| one.name == ["m"]);
            list.push(tenant, [column.map(|position| values[position])]);
            let is_of = layout.is_of(&jobs[*job], *index, list.get(0), &key);
            prop_assert!(is_of, "no run writes {} for {:?}", key, values);
            let call = (*job, *index, values.to_vec());
            // A shared key says nothing of its tenant.
            let same = |other: &(usize, usize, Vec<&str>)| {
                let has_tenant = builder.key.template.has_tenant();
                (other.0, other.1) == (call.0, call.1)
                    && if has_tenant { other.2 == call.2 } else { other.2[1..] == call.2[1..] }
            };
            if let Some(other) = made.get(&key) {
                prop_assert!(same(other), "{} by {:?} and {:?}", key, other, call);
            }
            made.insert(key, call);
        }
    }
}
