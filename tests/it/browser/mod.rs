//! The dashboard in a real browser.

mod live;
mod pages;
mod prefix;
mod sign_in;

use serde_json::Value;

use crate::support::program::{Preheat, Running};
use crate::support::shop::{Shop, items};
use crate::support::{LONG, eventually};

/// A tenant whose id would be a script, if a page took it for HTML.
const HOSTILE: &str = "<script>window.broken = 1</script>";

/// A worker with a job that works, one that fails for a tenant with a hostile id, and one that is off.
async fn dashboard() -> (Shop, Preheat) {
    let shop = Shop::open(6).await;
    shop.execute(&format!(
        "create table clubs (id text primary key);
         insert into clubs values ('north'), ('south'), ('{HOSTILE}');
         create table visits (tenant_id text not null, visitors int not null);
         insert into visits values ('north', 1), ('south', 2), ('{HOSTILE}', 0);"
    ))
    .await;
    let visits = "select tenant_id, 6 / visitors as share from visits where tenant_id = any($1)";
    let worker = only_clubs(&shop)
        .job("visits", &job(visits, "visits:{tenant_id}", ""))
        .job("retired", &job(CLUBS, "retired:{tenant_id}", "enabled = false"));
    (shop, worker)
}

const CLUBS: &str = "select id as tenant_id, id as name from clubs where id = any($1)";

/// The same worker with the job that works alone.
fn only_clubs(shop: &Shop) -> Preheat {
    let settings = "[http]\ntrusted_proxies = [\"127.0.0.1\"]\n\
                    [tenants]\nsql = \"select id from clubs\"\n";
    let clubs = job(CLUBS, "clubs:{tenant_id}", "description = \"The clubs.\"");
    shop.serve().settings(settings).job("clubs", &clubs)
}

fn job(query: &str, key: &str, lines: &str) -> String {
    format!(
        "schedule = \"every 1h\"\nttl = \"3h\"\n{lines}\n[query]\nsql = '''{query}'''\n\
         [[keys]]\nkey = \"{key}\"\n"
    )
}

/// The same for a job whose query can be held up.
async fn slow_dashboard() -> (Shop, Preheat) {
    let shop = Shop::open(6).await;
    let worker = shop.serve().job("items", &items(""));
    (shop, worker)
}

/// Waits until the job has ended a run; answers its id.
async fn first_run(worker: &Running, job: &str) -> String {
    let mut id = Value::Null;
    eventually("the job has run", LONG, async || {
        let shown = worker.get(&format!("/api/v1/jobs/{job}")).await.json();
        id = shown["last_run"]["id"].clone();
        id.is_string()
    })
    .await;
    id.as_str().unwrap().to_owned()
}

fn url(worker: &Running, path: &str) -> String {
    format!("http://{}{path}", worker.address())
}
