//! The statements of the change feed: a pure function from the watched tables.
//!
//! Each source has one trigger function, and its table has four statement-level triggers that call the
//! function: a trigger with transition tables is for a single event, and `TRUNCATE` has none. A function
//! needs no rights of the writing role: transition tables need none, and it reads nothing in schema
//! `preheat`.

use std::fmt::Write;

use crate::domain::change::{ChangeSource, ChangeSourceId, TouchedTenants, Via};
use crate::domain::job::JobName;

use super::super::describe;
use super::log::{LOG_SETTINGS, LOG_SETTINGS_HINT};

/// The channel of the notifications, the prefix of the messages in the write-ahead log, and the publication
/// that reading the log needs. The triggers in databases contain it, so it never changes.
pub(super) const CHANNEL: &str = "preheat_changes";

/// How the call begins with which a function writes to the log; a function that notifies lacks it.
pub(super) const WRITES_TO_LOG: &str = "perform pg_logical_emit_message(true, ";

/// How many bytes of tenant ids one notification has at most: Postgres accepts less than 8000 bytes, and the
/// rest of the payload needs less than a hundred.
const PIECE_BYTES: usize = 7900;

/// How many shared keys one statement names as gone; further ones live until their TTL.
const MOST_GONE: usize = 1_000;

/// How many bytes of key values one notification has, besides those of the first value.
const GONE_PIECE_BYTES: usize = 6_000;

/// A key value with more bytes as JSON is not named: its key lives until its TTL.
const LONGEST_GONE: usize = 1_000;

/// A pattern that the names of our functions match: with it they are found again, whatever the jobs are now.
pub(super) const FUNCTIONS: &str = "^changed_[0-9a-f]{16}$";

/// With whose rights the function of a source runs, if a query finds the source's tenants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Security {
    /// The rights of the role that writes.
    Invoker,
    /// The rights of the function's owner, which is the role that installed it.
    Definer,
}

/// The event that a trigger is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    Insert,
    Update,
    Delete,
    Truncate,
}

impl Event {
    pub(super) const ALL: [Self; 4] = [Self::Insert, Self::Update, Self::Delete, Self::Truncate];

    fn word(self) -> &'static str {
        match self {
            Self::Insert => "insert",
            Self::Update => "update",
            Self::Delete => "delete",
            Self::Truncate => "truncate",
        }
    }

    /// The transition tables of the old and the new rows. A source's query reads its rows as `changed`; an
    /// update has two tables, which the function combines.
    pub(super) fn transition_tables(self) -> (Option<&'static str>, Option<&'static str>) {
        match self {
            Self::Insert => (None, Some("changed")),
            Self::Update => (Some("preheat_old"), Some("preheat_new")),
            Self::Delete => (Some("changed"), None),
            Self::Truncate => (None, None),
        }
    }

    /// `pg_trigger.tgtype` of a statement-level AFTER trigger.
    pub(super) fn catalog_type(self) -> i16 {
        match self {
            Self::Insert => 1 << 2,
            Self::Delete => 1 << 3,
            Self::Update => 1 << 4,
            Self::Truncate => 1 << 5,
        }
    }
}

/// The name of a source's trigger function, in schema `preheat`.
pub(super) fn function_name(id: &ChangeSourceId) -> String {
    format!("changed_{id}")
}

/// The name of one of its triggers.
pub(super) fn trigger_name(id: &ChangeSourceId, event: Event) -> String {
    format!("preheat_{id}_{}", event.word())
}

/// Any name, quoted for SQL.
pub(super) fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A table's name, with or without its schema, quoted for SQL.
pub(in super::super) fn table(name: &str) -> String {
    let parts: Vec<_> = name.split('.').map(quoted).collect();
    parts.join(".")
}

/// A dollar-quoted text, with a tag that the text does not contain.
fn dollar_quoted(text: &str) -> String {
    let mut tag = "$preheat$".to_owned();
    let mut number = 0;
    while text.contains(&tag) {
        number += 1;
        tag = format!("$preheat{number}$");
    }
    format!("{tag}{text}{tag}")
}

/// A query without its final semicolon, so that it can be part of another.
pub(super) fn nested(query: &str) -> &str {
    describe::statement(query).trim()
}

/// The query over the relation `changed` whose first column is the tenant's id; a global source has
/// none.
fn touched(source: &ChangeSource) -> Option<String> {
    match &source.tenants {
        TouchedTenants::Column(column) => {
            Some(format!("select changed.{} from changed", quoted(column)))
        }
        TouchedTenants::Sql(sql) => Some(nested(sql).to_owned()),
        TouchedTenants::Global => None,
    }
}

/// The same query on an empty relation: it fails if the table or the source's own query is not as it must be.
pub(super) fn probe(source: &ChangeSource) -> Option<String> {
    let (query, table) = (touched(source)?, table(&source.table));
    Some(format!(
        "with changed as (select * from {table} where false)\n\
         select found.tenant from (\n{query}\n) as found (tenant) limit 0"
    ))
}

/// Queries on an empty relation, each of which fails if a column that is part of shared keys does not exist;
/// each with the column's name.
pub(super) fn key_probes(source: &ChangeSource) -> impl Iterator<Item = (&str, String)> {
    let table = table(&source.table);
    let probe = move |column: &str| {
        format!("select changed.{} from {table} as changed limit 0", quoted(column))
    };
    source.keys.keys().map(move |column| (column.as_str(), probe(column)))
}

/// Whether its function reads tables (those of its query) besides the changed rows.
pub(super) fn reads_tables(source: &ChangeSource) -> bool {
    matches!(source.tenants, TouchedTenants::Sql(_))
}

/// Creates a view that reads what the query of a source reads; a source without a query has none. The changed
/// rows are those of a temporary table, since a trigger does not read them from the table either.
pub(super) fn reading_view(source: &ChangeSource) -> Option<String> {
    let query = touched(source).filter(|_| reads_tables(source))?;
    let table = table(&source.table);
    Some(format!(
        "create temporary table preheat_changed as select * from {table} limit 0;\n\
         create temporary view preheat_reads as with changed as (select * from pg_temp.preheat_changed)\n\
         select found.tenant from (\n{query}\n) as found (tenant)"
    ))
}

/// The tables that the view of [`reading_view`] reads, each with its `oid`, its quoted name, whether a policy
/// may hide rows from the writing role, and whether a policy hides rows from `owner` (from the current role
/// if `owner` is null).
///
/// A view reads with its owner's rights, unless it is declared to use the caller's. A policy does not apply
/// to a superuser, to a role with `BYPASSRLS`, or to the table's owner unless it is forced on the owner.
pub(super) fn reads(owner: &str) -> String {
    let sees_all = |role: &str| {
        format!(
            "exists (select from pg_roles r where r.oid = {role} and (r.rolsuper or r.rolbypassrls
          or pg_has_role(r.oid, c.relowner, 'usage') and not c.relforcerowsecurity))"
        )
    };
    let current = "(select oid from pg_roles where rolname = current_user)";
    let by_writer = sees_all("reads.role");
    let by_owner = sees_all(&format!("coalesce(reads.role, {owner}, {current})"));
    format!(
        "with recursive depends as (
      select distinct r.ev_class as reader, d.refobjid as oid
      from pg_rewrite r join pg_depend d on d.classid = 'pg_rewrite'::regclass and d.objid = r.oid
        and d.refclassid = 'pg_class'::regclass and d.refobjid <> r.ev_class),
    reads as (
      select oid, null::oid as role from depends
      where reader = 'pg_temp.preheat_reads'::regclass
        and oid <> 'pg_temp.preheat_changed'::regclass
      union
      select d.oid, case when exists (select from pg_options_to_table(v.reloptions)
          where option_name = 'security_invoker' and option_value::bool)
        then reads.role else v.relowner end
      from reads join pg_class v on v.oid = reads.oid and v.relkind = 'v'
        join depends d on d.reader = v.oid)
    select c.oid, c.oid::regclass::text as name,
      bool_or(c.relrowsecurity and not {by_writer}) as hides_from_writer,
      bool_or(c.relrowsecurity and not {by_owner}) as hides_from_owner
    from reads join pg_class c on c.oid = reads.oid and c.relkind in ('r', 'p', 'm', 'f')
    group by 1, 2 order by 2"
    )
}

/// The schemas of the search path in which every role may create objects, as one text.
pub(super) const OPEN_SCHEMAS: &str = "select string_agg(quote_ident(name), ', ')
    from unnest(current_schemas(false)) name where has_schema_privilege('public', name, 'create')";

/// The message that a source's triggers are new or mended: the feed may have missed any earlier change. It
/// goes both ways, because workers listen as the triggers spoke before.
pub(super) fn tell_installed(id: &ChangeSourceId) -> String {
    let payload = format!("'{{\"source\":\"{id}\",\"installed\":true}}'");
    format!(
        "select pg_notify('{CHANNEL}', {payload}), \
         pg_logical_emit_message(true, '{CHANNEL}', {payload})"
    )
}

/// The body of a source's function, as `pg_proc.prosrc` has it.
pub(super) fn body(source: &ChangeSource, via: Via) -> String {
    let any = tell(via, &format!("'{{\"source\":\"{}\"}}'", source.id));
    match touched(source) {
        None => global_body(&any),
        Some(query) => tenants_body(source, via, &any, &query),
    }
}

fn tell(via: Via, payload: &str) -> String {
    match via {
        Via::Notify => format!("perform pg_notify('{CHANNEL}', {payload})"),
        Via::Wal => format!("{WRITES_TO_LOG}'{CHANNEL}', {payload})"),
    }
}

fn global_body(any: &str) -> String {
    format!(
        "
begin
  if tg_op = 'TRUNCATE' then
    {any};
  elsif tg_op = 'UPDATE' then
    if exists (select from preheat_new) then {any}; end if;
  elsif exists (select from changed) then
    {any};
  end if;
  return null;
end
"
    )
}

/// `concat` writes an id in its type's own form, which is how preheat reads it; a cast to text would cut the
/// blanks of `char(n)`. If anything fails while the function looks for tenants, the statement that changed
/// the rows must not fail: the function then reports that any tenant may have changed.
fn tenants_body(source: &ChangeSource, via: Via, any: &str, query: &str) -> String {
    let id = &source.id;
    let gone: String = source.keys.keys().map(|column| name_gone(source, via, column)).collect();
    let declared = if gone.is_empty() { "" } else { "  preheat_gone text[];\n" };
    let some =
        tell(via, &format!("'{{\"source\":\"{id}\",\"tenants\":[' || preheat_piece || ']}}'"));
    let failed = tell(via, &format!("'{{\"source\":\"{id}\",\"error\":\"' || sqlstate || '\"}}'"));
    let found = format!(
        "select to_json(concat(touched.tenant))::text collate \"C\"
        from (select distinct found.tenant from (
{query}
        ) as found (tenant)) as touched
        where touched.tenant is not null order by 1"
    );
    format!(
        "
#variable_conflict use_column
declare
  preheat_tenants text[];
  preheat_tenant text;
  preheat_piece text;
{declared}begin
  if tg_op = 'TRUNCATE' then
    {any};
    return null;
  end if;
  begin
    if tg_op = 'UPDATE' then
      preheat_tenants := array(
        with changed as (select * from preheat_old union all select * from preheat_new)
        {found});
    else
      preheat_tenants := array(
        {found});
    end if;
  exception when others then
    {failed};
    return null;
  end;
  foreach preheat_tenant in array preheat_tenants loop
    if octet_length(preheat_tenant) > {PIECE_BYTES} then
      {any};
      return null;
    elsif preheat_piece is null then
      preheat_piece := preheat_tenant;
    elsif octet_length(preheat_piece) + octet_length(preheat_tenant) < {PIECE_BYTES} then
      preheat_piece := preheat_piece || ',' || preheat_tenant;
    else
      {some};
      preheat_piece := preheat_tenant;
    end if;
  end loop;
  if preheat_piece is not null then
    {some};
  end if;
{gone}  return null;
end
"
    )
}

/// Names the values of a column that were in a tenant's shared keys and are no longer: those of deleted rows,
/// of rows that went to another tenant, and of rows whose value has changed. If a query finds the tenant, the
/// function does not notice a row that went to another tenant.
///
/// The function sends this notification after the one that names the tenants, because the worker must move
/// their fences first. A worker of an earlier version, which does not read the values, sees a change without
/// tenants and does nothing. If the function fails here, the keys live until their TTL.
fn name_gone(source: &ChangeSource, via: Via, column: &str) -> String {
    let tenant = match &source.tenants {
        TouchedTenants::Column(tenant) => Some(tenant.as_str()),
        TouchedTenants::Sql(_) | TouchedTenants::Global => None,
    };
    let columns: Vec<_> = [column].into_iter().chain(tenant).map(quoted).collect();
    // Compares texts: keys contain the text, whatever values the type considers equal.
    let texts = |rows: &str| {
        let text = |name: &String| format!("concat({rows}.{name}) collate \"C\"");
        let texts = columns.iter().map(text).collect::<Vec<_>>().join(", ");
        let is_there = |name: &String| format!("{rows}.{name} is not null");
        let are_there = columns.iter().map(is_there).collect::<Vec<_>>().join(" and ");
        format!("select {texts} from {rows} where {are_there}")
    };
    let (deleted, before, after) = (texts("changed"), texts("preheat_old"), texts("preheat_new"));
    let name = serde_json::Value::from(column);
    let opens = format!("{{\"source\":\"{}\",\"tenants\":[],\"gone\":{{{name}:[", source.id);
    let gone = tell(via, &format!("{} || preheat_piece || ']}}}}'", literal(&opens)));
    format!(
        "  if tg_op <> 'INSERT' then
    begin
      if tg_op = 'UPDATE' then
        preheat_gone := array(select to_json(gone.value)::text from (
          {before}
          except
          {after}
        ) as gone (value) limit {MOST_GONE});
      else
        preheat_gone := array(select to_json(gone.value)::text from (
          {deleted}
        ) as gone (value) limit {MOST_GONE});
      end if;
      if cardinality(preheat_gone) > 0 then
        for preheat_piece in
          select string_agg(named.value, ',') from (
            select gone.value,
              sum(octet_length(gone.value) + 1) over (rows unbounded preceding) / {GONE_PIECE_BYTES} as piece
            from unnest(preheat_gone) as gone (value)
            where octet_length(gone.value) <= {LONGEST_GONE}) as named
          group by named.piece
        loop
          {gone};
        end loop;
      end if;
    exception when others then
      null;
    end;
  end if;
"
    )
}

/// Creates or replaces a source's function. With `row_security = off`, a query that a policy would filter
/// fails, and the function reports that any tenant may have changed. A filtered query would find no tenant.
pub(super) fn create_function(source: &ChangeSource, security: Security, via: Via) -> String {
    let name = function_name(&source.id);
    let (body, comment) = (dollar_quoted(&body(source, via)), literal(&comment(source)));
    let (security, rights) = match security {
        Security::Invoker => ("", String::new()),
        Security::Definer => {
            (" security definer", format!("revoke all on function preheat.{name}() from public;\n"))
        }
    };
    let row_security = if reads_tables(source) { " set row_security = off" } else { "" };
    let mut sql = format!(
        "create or replace function preheat.{name}() returns trigger\n  \
         language plpgsql{security}{row_security} set search_path = pg_catalog, pg_temp\n  \
         as {body};\n{rights}\
         comment on function preheat.{name}() is {comment};\n"
    );
    if let TouchedTenants::Sql(_) = source.tenants {
        let fixed = format!(
            "\nbegin\n  execute 'alter function preheat.{name}() set search_path = '\n    \
             || (select concat(string_agg(quote_ident(name), ', ' order by place) || ', ', 'pg_temp')\n        \
             from unnest(current_schemas(false)) with ordinality as schema (name, place));\nend\n"
        );
        let _a_string_takes_all = write!(
            sql,
            "-- What its query names means for every writer what it means in this session.\n\
             do {};\n",
            dollar_quoted(&fixed)
        );
    }
    sql
}

/// The beginning of each function's comment.
pub(super) const COMMENT: &str = "preheat's change feed: ";

/// A comment on the function, for people who find it in the database.
fn comment(source: &ChangeSource) -> String {
    let table = &source.table;
    let how = match &source.tenants {
        TouchedTenants::Column(column) => format!("tenants by `{column}`"),
        TouchedTenants::Sql(_) => "tenants by a query".to_owned(),
        TouchedTenants::Global => "all tenants together".to_owned(),
    };
    let keys: String =
        source.keys.keys().flat_map(|column| [", keys by `", column.as_str(), "`"]).collect();
    format!("{COMMENT}`{table}`: {how}{keys}")
}

fn literal(text: &str) -> String {
    // A backslash is special in a literal only after an E.
    format!("'{}'", text.replace('\'', "''"))
}

/// Creates one of a source's triggers on a relation, whose name is already quoted.
pub(super) fn create_trigger(id: &ChangeSourceId, event: Event, relation: &str) -> String {
    let (trigger, word) = (trigger_name(id, event), event.word());
    let referencing = match event.transition_tables() {
        (None, None) => String::new(),
        (None, Some(new)) => format!(" referencing new table as {new}"),
        (Some(old), None) => format!(" referencing old table as {old}"),
        (Some(old), Some(new)) => format!(" referencing old table as {old} new table as {new}"),
    };
    let function = function_name(id);
    format!(
        "create or replace trigger {trigger} after {word} on {relation}{referencing}\n  \
         for each statement execute function preheat.{function}()"
    )
}

/// Creates the publication that reading the log needs. It has no tables, so the log's rows stay where they
/// are.
pub(super) fn create_publication() -> String {
    format!("create publication {CHANNEL}")
}

/// Removes it.
pub(super) fn drop_publication() -> String {
    format!("drop publication {CHANNEL}")
}

/// Waits until every transaction has ended that wrote to a table, and with it every one whose message still
/// goes the other way.
pub(super) fn await_writers(relation: &str) -> String {
    format!("lock table {relation} in share row exclusive mode")
}

/// All statements that the sources need, for a migration. The script may be run again, and removes what these
/// sources do not need any more. `security` applies to the functions that read tables.
///
/// Replacing a trigger waits for the transactions that write to its table, so none is left whose message
/// goes another way than `via`.
pub fn install_sql(sources: &[ChangeSource], security: Security, via: Via) -> String {
    let mut sql = String::from(
        "-- The change feed of preheat: triggers that tell it which tenants a statement touched.\n\
         -- To be run in one transaction, by the owner of the tables.\n",
    );
    sql.push_str(match via {
        Via::Notify => {
            "-- They notify, also where triggers in the database write to the write-ahead log: for that,\n\
             -- print it with `--via wal`.\n\n"
        }
        Via::Wal => "-- They write to the write-ahead log.\n\n",
    });
    sql.push_str("create schema if not exists preheat;\n");
    let publication = match via {
        Via::Wal if !sources.is_empty() => log_is_ready(),
        Via::Wal | Via::Notify => format!("drop publication if exists {CHANNEL};\n"),
    };
    sql.push_str(&publication);
    for source in sources {
        let jobs: Vec<_> = source.jobs.iter().map(JobName::as_str).collect();
        let security = if reads_tables(source) { security } else { Security::Invoker };
        let function = create_function(source, security, via);
        let _a_string_takes_all = write!(sql, "\n-- For {}.\n{}", jobs.join(", "), function);
        let relation = table(&source.table);
        for event in Event::ALL {
            let trigger = create_trigger(&source.id, event, &relation);
            let _a_string_takes_all = writeln!(sql, "{trigger};");
        }
        sql.push_str(&on_partitions(source));
        sql.push_str(&sees_every_row(source, security));
    }
    let ids: Vec<_> = sources.iter().map(|source| &source.id).collect();
    sql.push_str("\n-- What other jobs needed.\n");
    sql.push_str(&remove_others(&ids));
    if !sources.is_empty() {
        sql.push_str("\n-- For workers that run.\n");
    }
    for source in sources {
        let _a_string_takes_all = writeln!(sql, "{};", tell_installed(&source.id));
    }
    sql
}

/// Stops a script whose messages no worker could read, and creates the publication.
fn log_is_ready() -> String {
    let (hint, create) = (literal(LOG_SETTINGS_HINT), create_publication());
    let block = format!(
        "
declare
  preheat_found text := ({LOG_SETTINGS});
begin
  if preheat_found is not null then
    raise exception '%', preheat_found using hint = {hint};
  end if;
  if not exists (select from pg_publication where pubname = '{CHANNEL}') then
    {create};
  end if;
end
"
    );
    format!("do {};\n", dollar_quoted(&block))
}

/// The statements that remove every trigger and function of the change feed.
pub fn uninstall_sql() -> String {
    format!(
        "-- Removes the change feed of preheat: its triggers, their functions and its publication.\n\n\
         {}drop publication if exists {CHANNEL};\n",
        remove_others(&[])
    )
}

/// A statement on a partition itself fires none of its parent's triggers. The same block stops a script whose
/// source cannot work.
fn on_partitions(source: &ChangeSource) -> String {
    let mut block = String::from(
        "\n#variable_conflict use_column\ndeclare\n  preheat_partition regclass;\nbegin\n",
    );
    if let Some(probe) = probe(source) {
        let _a_string_takes_all = writeln!(
            block,
            "  -- It fails here where it could not tell the tenants.\n  \
             perform tenant from (\n{probe}\n  ) as probe;"
        );
    }
    for (_, probe) in key_probes(source) {
        let _a_string_takes_all = writeln!(block, "  perform from ({probe}) as probe;");
    }
    let parent = literal(&table(&source.table));
    let _a_string_takes_all = write!(
        block,
        "  for preheat_partition in
    with recursive below as (
      select inhrelid from pg_inherits where inhparent = {parent}::regclass
      union
      select child.inhrelid from pg_inherits child join below on child.inhparent = below.inhrelid)
    select inhrelid from below order by 1
  loop
"
    );
    for event in Event::ALL {
        let trigger = create_trigger(&source.id, event, "%s");
        let _a_string_takes_all =
            writeln!(block, "    execute format('{trigger}', preheat_partition);");
    }
    block.push_str("  end loop;\nend\n");
    format!("do {};\n", dollar_quoted(&block))
}

/// Stops a script whose function would not see every row that its query needs.
fn sees_every_row(source: &ChangeSource, security: Security) -> String {
    let Some(view) = reading_view(source) else { return String::new() };
    let reads = reads(&format!(
        "(select proowner from pg_proc where oid = 'preheat.{}()'::regprocedure)",
        function_name(&source.id)
    ));
    let (hides, hint, open) = match security {
        Security::Invoker => (
            "hides_from_writer",
            "`preheat changes sql --security-definer` lets the trigger's function run with the rights \
             of the role that runs these statements",
            String::new(),
        ),
        Security::Definer => (
            "hides_from_owner",
            "let a role with BYPASSRLS run these statements, or the owner of the tables where \
             row-level security is not forced",
            format!(
                "  preheat_found := ({OPEN_SCHEMAS});
  if preheat_found is not null then
    raise exception 'anybody may create objects in schema % of the search path, and with them run \
                 statements as the owner of a function that is security definer', preheat_found
      using hint = 'revoke create on that schema from public';
  end if;
"
            ),
        ),
    };
    let (what, hint) = (literal(&format!("table `{}`", source.table)), literal(hint));
    let block = format!(
        "
#variable_conflict use_column
declare
  preheat_found text;
begin
  {view};
  preheat_found := (select string_agg(name, ', ') from (
    {reads}) as found where {hides});
  drop view pg_temp.preheat_reads;
  drop table pg_temp.preheat_changed;
  if preheat_found is not null then
    raise exception 'the query that finds the tenants of % reads % with row-level security, which \
         would hide rows from it', {what}, preheat_found using hint = {hint};
  end if;
{open}end
"
    );
    format!(
        "-- It ends here where the query would not see every row.\ndo {};\n",
        dollar_quoted(&block)
    )
}

/// Removes every function of ours except those of these sources, and the triggers that call them.
fn remove_others(ids: &[&ChangeSourceId]) -> String {
    let names: Vec<_> = ids.iter().map(|id| literal(&function_name(id))).collect();
    let ours = format!(
        "functions.pronamespace = to_regnamespace('preheat')
      and functions.prorettype = 'trigger'::regtype and functions.proname ~ '{FUNCTIONS}'
      and functions.proname <> all (array[{}]::name[])",
        names.join(", ")
    );
    let block = format!(
        "
declare
  preheat_found record;
begin
  for preheat_found in
    select triggers.tgname as name, triggers.tgrelid::regclass as relation
    from pg_trigger as triggers join pg_proc as functions on functions.oid = triggers.tgfoid
    where {ours}
      and not triggers.tgisinternal
    order by 2, 1
  loop
    execute format('drop trigger %I on %s', preheat_found.name, preheat_found.relation);
  end loop;
  for preheat_found in
    select functions.oid::regprocedure as name from pg_proc as functions
    where {ours}
    order by 1
  loop
    execute format('drop function %s', preheat_found.name);
  end loop;
end
"
    );
    format!("do {};\n", dollar_quoted(&block))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn source(table: &str, tenants: TouchedTenants) -> ChangeSource {
        let id = ChangeSourceId::new("00000000000000aa");
        let jobs = vec![JobName::parse("products").unwrap()];
        ChangeSource { id, table: table.to_owned(), tenants, jobs, keys: BTreeMap::new() }
    }

    #[test]
    fn names_are_quoted_and_queries_are_parts() {
        assert_eq!(table("shop.Order \"Items\""), "\"shop\".\"Order \"\"Items\"\"\"");
        assert_eq!(nested(" select 1 ;\n; "), "select 1");
        assert_eq!(nested("select 1; -- the end"), "select 1");
        assert_eq!(dollar_quoted("a"), "$preheat$a$preheat$");
        assert_eq!(dollar_quoted("$preheat$ $preheat1$"), {
            "$preheat2$$preheat$ $preheat1$$preheat2$"
        });
        let column = source("it's", TouchedTenants::Column("te\"nant".to_owned()));
        assert!(
            create_function(&column, Security::Invoker, Via::Notify)
                .contains("`it''s`: tenants by `te\"nant`'")
        );
        assert!(body(&column, Via::Notify).contains("select changed.\"te\"\"nant\" from changed"));
    }

    #[test]
    fn a_payload_fits_with_all_its_ids() {
        const POSTGRES_TAKES_LESS_THAN: usize = 8000;
        let column = source("products", TouchedTenants::Column("tenant_id".to_owned()));
        let body = body(&column, Via::Notify);
        let around = "{\"source\":\"\",\"tenants\":[]}".len() + column.id.as_str().len();
        assert!(body.contains(&format!("< {PIECE_BYTES} then")));
        assert!(PIECE_BYTES + 1 + around < POSTGRES_TAKES_LESS_THAN);
        // A column's name has up to 63 bytes, each of which may take six in JSON.
        let around = around + "\"gone\":{[]}".len() + 63 * 6;
        assert!(LONGEST_GONE + GONE_PIECE_BYTES + 1 + around < POSTGRES_TAKES_LESS_THAN);
    }

    #[test]
    fn a_trigger_is_as_the_catalog_will_have_it() {
        let id = ChangeSourceId::new("00000000000000aa");
        let sql = create_trigger(&id, Event::Update, "\"products\"");
        assert_eq!(
            sql,
            "create or replace trigger preheat_00000000000000aa_update after update on \"products\" \
             referencing old table as preheat_old new table as preheat_new\n  \
             for each statement execute function preheat.changed_00000000000000aa()"
        );
        // Postgres truncates longer names.
        assert!(Event::ALL.iter().all(|event| trigger_name(&id, *event).len() < 64));
    }
}
