//! The texts of the first settings and of a job file. Pure.

use crate::adapter::postgres::CatalogColumn;
use crate::definition::SCHEMA_FILE;
use crate::domain::job::JobName;
use crate::domain::json::ColumnType;
use crate::domain::order::{Comparison, OrderColumn};

use super::suggest::{DataTable, TenantsTable};

/// The text of `preheat.toml`.
pub(super) fn settings(tenants_sql: &str, knows_active: bool, column: &str) -> String {
    let which = if knows_active {
        "# The active tenants:"
    } else {
        "# No column seems to say which tenants are active, so these are all:"
    };
    format!(
        "# DATABASE_URL and REDIS_URL say where the servers are; `.env` may set them.\n\
         # All settings, each with its default: `docs/settings.md`.\n\n\
         [tenants]\n\
         {which} the first column is the id, and job files can use the others.\n\
         # A batch is read faster if its tenants were created about the same time.\n\
         sql = {}\n\
         # What job files call the id.\n\
         column = {}\n",
        string(tenants_sql),
        string(column)
    )
}

/// The name of the job that keeps a table warm, by the table's name.
pub(super) fn job_name(table: &str) -> Option<JobName> {
    let mut name = String::new();
    let mut before = '_';
    for char in table.chars() {
        if char.is_ascii_uppercase() && before.is_ascii_lowercase() {
            name.push('_');
        }
        name.push(if char.is_ascii_alphanumeric() { char.to_ascii_lowercase() } else { '_' });
        before = char;
    }
    name.truncate(JobName::MAX_BYTES);
    JobName::parse(name.trim_matches('_')).ok()
}

/// The text of a job file.
pub(super) fn job(
    name: &JobName,
    data: &DataTable<'_>,
    tenants: &TenantsTable<'_>,
    tenant_column: &str,
) -> String {
    let (columns, left_out) = data.columns();
    let left_out = match left_out.as_slice() {
        [] => String::new(),
        names => format!("# Left out, as no cache should hold them: {}\n", names.join(", ")),
    };
    let order = match order(data, &columns) {
        Some(entries) => format!("order = [{entries}]\n"),
        None => String::new(),
    };
    format!(
        "#:schema ./{SCHEMA_FILE}\n\
         description = {}\n\
         schedule = \"every 15m\"\n\
         ttl = \"1h\"\n\
         tables = [{}]\n\n\
         [query]\n\
         {left_out}sql = '''\n{}'''\n{order}\n\
         [[keys]]\nkey = {}\n\n\
         [encode]\n\
         profile = \"drizzle\" # whose JSON the values are: drizzle, node-postgres or postgres\n\
         omit = [{}]\n",
        string(&format!("Each tenant's rows of `{}`.", data.table.plain_name())),
        tables(data, tenants, tenant_column),
        sql(data, &columns, tenant_column),
        string(&format!("{name}:{{{tenant_column}}}")),
        string(tenant_column)
    )
}

fn sql(data: &DataTable<'_>, columns: &[&CatalogColumn], tenant_column: &str) -> String {
    let tenant = &data.tenant.sql;
    let first = if data.tenant.name == tenant_column {
        tenant.clone()
    } else {
        format!("{tenant} as {}", quoted(tenant_column))
    };
    let mut lines = vec![first];
    lines.extend(columns.iter().map(|column| selected(column)));
    let list = lines.join(",\n  ");
    format!("select\n  {list}\nfrom {}\nwhere {tenant} = any($1)\n", data.table.sql)
}

/// A column as the query selects it: as text if its type has no codec.
fn selected(column: &CatalogColumn) -> String {
    let name = &column.sql;
    if column.ty().is_supported() {
        return name.clone();
    }
    let cast = if column.is_array() { "text[]" } else { "text" };
    format!("{name}::{cast} as {name}")
}

/// The entries of `order`: the primary key, if preheat can sort by it.
fn order(data: &DataTable<'_>, columns: &[&CatalogColumn]) -> Option<String> {
    let mut entries = Vec::new();
    for name in data.table.primary_key.iter().filter(|name| **name != data.tenant.name) {
        let column = columns.iter().find(|column| column.name == *name)?;
        let is_plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        let entry = if is_plain { name.clone() } else { quoted(name) };
        let parsed = OrderColumn::parse(&entry).ok()?;
        let comparison = Comparison::new(&parsed, &sorted_type(column)).ok()?;
        let collation = if comparison.is_of_text() { " collate C" } else { "" };
        entries.push(string(&format!("{entry}{collation}")));
    }
    (!entries.is_empty()).then(|| entries.join(", "))
}

/// The type of a column in the query.
fn sorted_type(column: &CatalogColumn) -> ColumnType {
    let ty = column.ty();
    if ty.is_supported() { ty } else { ColumnType::Text }
}

/// The entries of `tables`: the table, and that of the tenants, whose changes say who is active.
fn tables(data: &DataTable<'_>, tenants: &TenantsTable<'_>, tenant_column: &str) -> String {
    let entry = |name: String, tenant: &str| {
        let name = string(&name);
        if tenant == tenant_column {
            name
        } else {
            format!("{{ name = {name}, tenant = {} }}", string(tenant))
        }
    };
    let of_data = entry(data.table.plain_name(), &data.tenant.name);
    let of_tenants = entry(tenants.table.plain_name(), &tenants.id.name);
    format!("{of_data}, {of_tenants}")
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A string of TOML.
fn string(text: &str) -> String {
    if text.contains('"') && !text.contains(['\'', '\n', '\\']) && !text.contains(char::is_control)
    {
        return format!("'{text}'");
    }
    // JSON's escapes are TOML's, too, and TOML has one more.
    serde_json::Value::from(text).to_string().replace('\u{7f}', "\\u007F")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_has_the_name_of_its_table_in_the_spelling_of_jobs() {
        for (table, name) in [
            ("services", Some("services")),
            ("InvoiceLine", Some("invoice_line")),
            ("HTTPLog", Some("httplog")),
            ("öffnungszeiten", Some("ffnungszeiten")),
            ("日本", None),
        ] {
            assert_eq!(job_name(table).as_ref().map(JobName::as_str), name, "{table}");
        }
    }

    #[test]
    fn a_text_is_a_string_of_toml_whatever_it_holds() {
        for text in ["plain", "a \"b\"", "it's \"so\"", "back\\slash", "two\nlines\u{7f}"] {
            let document = format!("a = {}", string(text));
            let parsed: toml::Table = toml::from_str(&document).unwrap();
            assert_eq!(parsed.get("a").and_then(toml::Value::as_str), Some(text), "{document}");
        }
    }
}
