use preheat::definition::{self, Defaults, JobText};
#[test]
fn probe() {
    let defaults = Defaults {
        batch: 100.try_into().unwrap(),
        concurrency: 4.try_into().unwrap(),
        tenant_column: "tenant_id".into(),
    };
    match definition::load(std::path::Path::new("jobs"), &defaults) {
        Ok(f) => println!(
            "{:#?}",
            f.jobs()
                .values()
                .map(|j| (j.name.as_str(), j.schedule.to_string(), j.tables.clone()))
                .collect::<Vec<_>>()
        ),
        Err(p) => println!("{p}"),
    }
    let text = r#"
intervall = "every 10m"
timezone = "Berlin"
ttl = 30
ttl_jitter = 10
overlap = "skp"
retries = -1
schedule = "0 60 * * * *"
tables = "products"

[query]
batch = 100
[dates]
days = 400

[[keys]]
key = "products:{category"
shape = "lst"
[[keys]]
key = 5
[encode]
max_bytes = "5mib"
columns = { price = "numbr" }
"#;
    let p = definition::check(
        vec![JobText { path: "jobs/products.toml".into(), text: text.into() }],
        &|_| Err("no".into()),
        &defaults,
    )
    .unwrap_err();
    println!("{}", p.render(true));
    println!("{}", serde_json::to_string_pretty(&p).unwrap());
    println!("{}", serde_json::to_string_pretty(&definition::schema()).unwrap());
}
