//! Which members of a row may be null.

use std::collections::BTreeMap;

use crate::support::{self, Database, preheat};

const TABLES: &str = "
create table tenants (id uuid primary key, status text, timezone text, created_at timestamptz);
create table a (id int4 primary key, tenant_id uuid not null, name text not null, note text);
create table b (id int4 primary key, a_id int4 not null, name text not null);
create table parent (id int4 primary key, tenant_id uuid not null, name text not null);
create table child () inherits (parent);
create table loose (id int4 primary key, tenant_id uuid not null, name text not null);
create table looser () inherits (loose);
alter table looser alter name drop not null;
create table parted (id int4 not null, tenant_id uuid not null, name text not null) partition by range (id);
create table part partition of parted for values from (1) to (9);
create view seen as select a.id, a.tenant_id, b.name from a left join b on b.a_id = a.id;
create function named(id int4) returns table (name text) language sql stable as 'select name from b where a_id = $1';
";

/// Queries, each with the members that are never null.
const QUERIES: [(&str, &[&str]); 19] = [
    (
        "select tenant_id, id, name, note from a where tenant_id = any($1)",
        &["id", "name", "tenant_id"],
    ),
    (
        "select tenant_id, id + 1 as id, coalesce(note, '') as note from a where tenant_id = any($1)",
        &["tenant_id"],
    ),
    (
        "select a.tenant_id, b.id, b.name from a join b on b.a_id = a.id where tenant_id = any($1)",
        &["id", "name", "tenant_id"],
    ),
    (
        "select a.tenant_id, a.id, b.name from a left join b on b.a_id = a.id where tenant_id = any($1)",
        &["id", "tenant_id"],
    ),
    (
        "select a.tenant_id, a.id, b.name from b right join a on b.a_id = a.id where tenant_id = any($1)",
        &[],
    ),
    (
        "select a.tenant_id, a.id, b.name from b full join a on b.a_id = a.id where tenant_id = any($1)",
        &[],
    ),
    (
        "select a.tenant_id, a.id, mother.name from a left join a as mother on mother.id = a.id + 1 \
         where a.tenant_id = any($1)",
        &[],
    ),
    (
        "select a.tenant_id, q.* from a left join lateral (select id, name from b where a_id = a.id limit 1) q on true \
         where tenant_id = any($1)",
        &["tenant_id"],
    ),
    (
        "select q.* from (select a.tenant_id, a.id, b.name from a left join b on b.a_id = a.id) q \
         where tenant_id = any($1)",
        &["id", "tenant_id"],
    ),
    (
        "with q as (select id, name from b) select a.tenant_id, a.id, q.name from a left join q on q.id = a.id \
         where tenant_id = any($1)",
        &[],
    ),
    (
        "with q as (select * from a) select tenant_id, id, note from q where tenant_id = any($1)",
        &["id", "tenant_id"],
    ),
    (
        "select tenant_id, id, count(*) as n from a where tenant_id = any($1) group by rollup (tenant_id, id)",
        &[],
    ),
    (
        "select tenant_id, name from a where tenant_id = any($1) union all select tenant_id, null from a \
         where tenant_id = any($1)",
        &[],
    ),
    ("select tenant_id, id, name from seen where tenant_id = any($1)", &[]),
    (
        "select a.tenant_id, a.id, n.name from a left join named(a.id) n on true where tenant_id = any($1)",
        &["id", "tenant_id"],
    ),
    (
        "select tenant_id, (select name from b where b.a_id = a.id) as name from a where tenant_id = any($1)",
        &["tenant_id"],
    ),
    (
        "select tenant_id, id, name from parent where tenant_id = any($1)",
        &["id", "name", "tenant_id"],
    ),
    ("select tenant_id, id, name from loose where tenant_id = any($1)", &["id", "tenant_id"]),
    (
        "select tenant_id, id, name from parted where tenant_id = any($1)",
        &["id", "name", "tenant_id"],
    ),
];

/// The types of a job's members in generated TypeScript.
async fn types(database: &Database, query: &str) -> BTreeMap<String, String> {
    let job = format!(
        "schedule = \"every 15m\"\nttl = \"1h\"\n[query]\nsql = '''{query}'''\n[[keys]]\nkey = \"it:{{tenant_id}}\"\n"
    );
    let program =
        preheat(["keys", "--lang", "typescript"]).database(database.url()).job("it", &job);
    let text = program.run().await.expect_code(0).stdout;
    let (_, row) = text.split_once("export type ItRow = {\n").unwrap();
    let (row, _) = row.split_once("};").unwrap();
    let members = row.lines().filter_map(|line| line.trim().trim_end_matches(';').split_once(": "));
    members.map(|(name, ty)| (name.to_owned(), ty.to_owned())).collect()
}

#[tokio::test]
async fn a_member_that_may_be_null_says_so() {
    let database = support::database().await;
    database.execute(TABLES).await;
    for (query, never_null) in QUERIES {
        let types = types(&database, query).await;
        let names: Vec<&str> = types
            .iter()
            .filter(|(_, ty)| !ty.ends_with(" | null"))
            .map(|(name, _)| name.as_str())
            .collect();
        assert_eq!(names, never_null, "{query}: {types:?}");
    }
}
