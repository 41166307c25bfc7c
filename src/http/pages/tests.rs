//! Tests of all pages: what they show, and that nothing in data becomes markup.

use maud::Markup;

use super::context::Context;
use super::links::Links;
use super::run::Ended;
use super::runs::View;
use super::{
    audit, changes, fixture, fleet, job, jobs, overview, run, runs, settings, tenant, tenants,
};
use crate::http::access::Rights;
use crate::overview::Neighbors;

/// The bodies of all pages, each with its path.
fn bodies(rights: Rights) -> Vec<(&'static str, Markup)> {
    let (first, second) = (Links::from("/"), Links::from("/jobs/x"));
    let top = fixture::context(&first, rights);
    let below = fixture::context(&second, rights);
    let names = vec!["products".to_owned(), "services".to_owned()];
    let run = fixture::run();
    vec![
        ("/", overview::body(&fixture::overview(), top)),
        ("/ at the start", overview::body(&fixture::nothing_known(), top)),
        ("/jobs", jobs::body(&fixture::overview(), top)),
        ("/jobs/products", job::body(&fixture::job_detail(), &fixture::definition(), below)),
        ("/runs", runs_page(vec![run.clone()], &names, top)),
        ("/runs without any", runs_page(Vec::new(), &names, top)),
        ("/runs/1", run_page(&run, below)),
        ("/runs of a fleet", runs_page(vec![fixture::fleet_run()], &names, top)),
        ("/runs/2", run_page(&fixture::fleet_run(), below)),
        ("/fleet", fleet::body(&fixture::fleet(), top)),
        ("/audit", audit::body(&fixture::audit(rights), top)),
        ("/changes", changes::body(&fixture::changes(), top)),
        ("/settings", settings_page(top)),
        ("/tenants", tenants_page(&names, top)),
        ("/tenants/1", tenant::body(&fixture::tenant(), below)),
    ]
}

fn runs_page(
    runs: Vec<crate::domain::run::RunRecord>,
    names: &[String],
    context: Context<'_>,
) -> Markup {
    let (active, hostile) = (Vec::new(), Some(fixture::HOSTILE.to_owned()));
    let view = View { runs, active, next: hostile.clone(), history_away: hostile };
    let filters = runs::Filters { job: fixture::HOSTILE.to_owned(), ..runs::Filters::default() };
    runs::body(&view, &filters, names, context)
}

fn run_page(run: &crate::domain::run::RunRecord, context: Context<'_>) -> Markup {
    let neighbors = Neighbors { earlier: Some(fixture::run_id(48)), later: None };
    let ended = Ended { run, neighbors, comparison: Some(fixture::comparison()) };
    run::ended(&ended, context)
}

fn settings_page(context: Context<'_>) -> Markup {
    let (settings, rejections) = (fixture::settings(), fixture::rejections());
    let unreadable = &rejections.values().next().unwrap().problems;
    let files = settings::Files { rejections: &rejections, unreadable };
    settings::body(&settings, files, &fixture::limits(), context)
}

fn tenants_page(names: &[String], context: Context<'_>) -> Markup {
    let filters = tenants::Filters { kind: "query".to_owned(), ..tenants::Filters::default() };
    tenants::body(&fixture::not_warm(), &filters, names, context)
}

#[test]
fn each_page_looks_as_it_did() {
    for (path, body) in bodies(Rights::Write) {
        let html = body.into_string().replace("><", ">\n<");
        let name = path.replace(['/', ' '], "_");
        insta::assert_snapshot!(format!("page{name}"), html);
    }
}

/// Texts that would be markup are text, and no page has a script or a style of its own.
#[test]
fn nothing_from_data_becomes_markup() {
    for (path, body) in bodies(Rights::Write) {
        let html = body.into_string();
        for tag in html.split('<').skip(1).filter(|tag| !tag.starts_with('/')) {
            let tag = tag.split('>').next().unwrap();
            let name = tag.split([' ', '>']).next().unwrap();
            assert!(
                !["script", "style", "iframe", "object", "base", "meta"].contains(&name),
                "{path}: {tag}"
            );
            // What is outside of quotes: the names of attributes.
            let names: String = tag.split('"').step_by(2).collect();
            for name in names.split_whitespace().skip(1) {
                let name = name.trim_end_matches('=');
                assert!(name != "style" && !name.starts_with("on"), "{path}: {tag}");
            }
        }
    }
}

#[test]
fn forms_are_only_for_those_who_may_change_something() {
    for (path, body) in bodies(Rights::Read) {
        assert!(!body.into_string().contains("method=\"post\""), "{path}");
    }
    let changing =
        |path: &str| ["/jobs", "/jobs/products", "/", "/tenants", "/tenants/1"].contains(&path);
    for (path, body) in bodies(Rights::Write).into_iter().filter(|(path, _)| changing(path)) {
        assert!(body.into_string().contains("method=\"post\""), "{path}");
    }
}

#[test]
fn values_are_only_for_those_who_may_change_something() {
    let page = |rights| {
        let links = Links::from("/");
        audit::body(&fixture::audit(rights), fixture::context(&links, rights)).into_string()
    };
    assert!(page(Rights::Write).contains("Fleas"));
    assert!(!page(Rights::Read).contains("Fleas"));
    assert!(page(Rights::Read).contains("products:t_0042"), "the key is named");
}

#[test]
fn nodes_that_are_drawn_anew_have_ids_of_their_own() {
    for (path, body) in bodies(Rights::Write) {
        let html = body.into_string();
        let mut ids: Vec<&str> =
            html.split(" id=\"").skip(1).map(|rest| rest.split('"').next().unwrap()).collect();
        let all = ids.len();
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), all, "{path}: {ids:?}");
        for tag in html.split('<').filter(|tag| tag.contains("data-live=")) {
            assert!(tag.contains(" id=\""), "{path}: {tag}");
        }
    }
}

#[test]
fn a_list_of_many_jobs_stays_small() {
    let links = Links::from("/");
    let context = fixture::context(&links, Rights::Read);
    let jobs: Vec<_> = (0..200).map(|number| fixture::job(&format!("job_{number}"))).collect();
    let size = jobs::table(&jobs, context).into_string().len();
    assert!(size < 200 * 4_000, "{size} bytes");
}
