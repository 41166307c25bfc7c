//! What a database's tables suggest: which table lists the tenants, which tenants are active, and which tables
//! have rows of tenants. Pure.

use std::collections::BTreeMap;

use crate::adapter::postgres::{CatalogColumn, CatalogTable};
use crate::domain::json::ColumnType;

/// What tables of tenants are usually called, in the singular.
const TENANTS: [&str; 16] = [
    "tenant",
    "organization",
    "organisation",
    "org",
    "workspace",
    "account",
    "company",
    "clinic",
    "shop",
    "store",
    "team",
    "site",
    "merchant",
    "school",
    "practice",
    "business",
];
const STATUS: [&str; 5] = ["status", "state", "accountstatus", "tenantstatus", "lifecycle"];
const ACTIVE_VALUES: [&str; 3] = ["active", "enabled", "live"];
const ACTIVE_FLAGS: [&str; 4] = ["active", "isactive", "enabled", "isenabled"];
const INACTIVE_FLAGS: [&str; 8] = [
    "deleted",
    "isdeleted",
    "disabled",
    "isdisabled",
    "archived",
    "isarchived",
    "suspended",
    "issuspended",
];
const ENDED_AT: [&str; 5] =
    ["deletedat", "archivedat", "disabledat", "suspendedat", "deactivatedat"];
const TIME_ZONES: [&str; 3] = ["timezone", "tz", "timezonename"];
const CREATED_AT: [&str; 5] = ["createdat", "created", "insertedat", "createdon", "createdate"];
/// Parts of the names of columns that no cache should hold.
const SECRETS: [&str; 12] = [
    "password",
    "passwd",
    "secret",
    "token",
    "apikey",
    "hash",
    "salt",
    "privatekey",
    "credential",
    "encrypted",
    "cipher",
    "otp",
];

/// A table that may list the tenants.
#[derive(Clone, Debug)]
pub(super) struct TenantsTable<'c> {
    pub(super) table: &'c CatalogTable,
    pub(super) id: &'c CatalogColumn,
    /// The tables with rows of tenants, those to propose first.
    pub(super) data: Vec<DataTable<'c>>,
}

/// A table with rows of tenants.
#[derive(Clone, Copy, Debug)]
pub(super) struct DataTable<'c> {
    pub(super) table: &'c CatalogTable,
    /// The column with the tenant's id.
    pub(super) tenant: &'c CatalogColumn,
}

/// The tables that may list the tenants, the most likely first. `tenant_column` is what data tables call the
/// tenant's id, if that is known.
pub(super) fn tenants_tables<'c>(
    catalog: &'c [CatalogTable],
    tenant_column: Option<&str>,
) -> Vec<TenantsTable<'c>> {
    // A table that has the column itself has rows of tenants.
    let has_column =
        |table: &&CatalogTable| tenant_column.is_some_and(|name| table.column(name).is_some());
    let tables = catalog.iter().filter(|table| !has_column(table));
    let found = tables.filter_map(|table| tenants_table(catalog, table, tenant_column));
    let mut found: Vec<_> = found.filter(|found| !found.data.is_empty()).collect();
    found.sort_by_key(|found| (!found.is_named(), std::cmp::Reverse(found.data.len())));
    found
}

/// Whether the first of these tables is the one without a doubt.
pub(super) fn is_clear(found: &[TenantsTable<'_>]) -> bool {
    match found {
        [] => false,
        [_only] => true,
        [first, second, ..] => first.is_named() && !second.is_named(),
    }
}

/// One table as that of the tenants; `None` if its rows have no id of one column.
pub(super) fn tenants_table<'c>(
    catalog: &'c [CatalogTable],
    table: &'c CatalogTable,
    tenant_column: Option<&str>,
) -> Option<TenantsTable<'c>> {
    let [id] = table.primary_key.as_slice() else { return None };
    let id = table.column(id).filter(|id| may_be_id(&id.ty()))?;
    let others = catalog.iter().filter(|other| !std::ptr::eq(*other, table));
    let mut columns: Vec<Vec<DataTable<'c>>> = Vec::new();
    for other in others {
        let of_tenant = |column: &&CatalogColumn| match tenant_column {
            Some(name) => {
                let is_alike = column.ty().base() == id.ty().base();
                (column.name == name && is_alike) || refers(other, column, table)
            }
            None => refers(other, column, table) || is_called_for(other, column, table, id),
        };
        let found = other.columns.iter().filter(of_tenant);
        columns.push(found.map(|tenant| DataTable { table: other, tenant }).collect());
    }
    let usual = usual_name(&columns, tenant_column);
    let pick = |of_table: Vec<DataTable<'c>>| {
        let named =
            of_table.iter().find(|data| Some(data.tenant.name.as_str()) == usual.as_deref());
        named.or(of_table.first()).copied()
    };
    let mut data: Vec<_> = columns.into_iter().filter_map(pick).collect();
    data.sort_by_key(DataTable::rank);
    Some(TenantsTable { table, id, data })
}

/// The name that most tables have for the tenant's id.
fn usual_name(columns: &[Vec<DataTable<'_>>], tenant_column: Option<&str>) -> Option<String> {
    if let Some(name) = tenant_column {
        return Some(name.to_owned());
    }
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for data in columns.iter().flatten() {
        *counts.entry(data.tenant.name.as_str()).or_default() += 1;
    }
    let most = counts.into_iter().max_by_key(|(name, count)| (*count, std::cmp::Reverse(*name)));
    most.map(|(name, _)| name.to_owned())
}

impl TenantsTable<'_> {
    /// Whether it is called as tables of tenants usually are.
    fn is_named(&self) -> bool {
        TENANTS.contains(&&*singular(&self.table.name))
    }

    /// What most data tables call the tenant's id, if settings can name it so.
    pub(super) fn column(&self) -> String {
        let columns: Vec<Vec<DataTable<'_>>> = self.data.iter().map(|data| vec![*data]).collect();
        let letter = |byte: u8| byte.is_ascii_alphabetic() || byte == b'_';
        let is_allowed = |name: &String| {
            name.bytes().next().is_some_and(letter)
                && name.bytes().all(|byte| letter(byte) || byte.is_ascii_digit())
        };
        usual_name(&columns, None).filter(is_allowed).unwrap_or_else(|| "tenant_id".to_owned())
    }

    /// The column whose values say which tenants are active, if its definition does not.
    pub(super) fn unclear_status(&self) -> Option<&CatalogColumn> {
        let of_text = self.named(&STATUS).find(|column| is_text(&column.ty()));
        of_text.filter(|column| is_active(column, &column.labels).is_none())
    }

    /// Whether some column says which tenants are active.
    pub(super) fn knows_active(&self, values: &[String]) -> bool {
        !self.conditions(values).is_empty()
    }

    /// The tenant query. `values` are those of [`Self::unclear_status`].
    pub(super) fn sql(&self, values: &[String]) -> String {
        let zone = self.named(&TIME_ZONES).find(|column| is_text(&column.ty()));
        let created = self.named(&CREATED_AT).find(|column| is_moment(&column.ty()));
        let columns: Vec<&str> =
            [Some(self.id), zone].into_iter().flatten().map(|column| &*column.sql).collect();
        let order: Vec<&str> =
            [created, Some(self.id)].into_iter().flatten().map(|column| &*column.sql).collect();
        let conditions = self.conditions(values);
        let filter = match conditions.as_slice() {
            [] => String::new(),
            conditions => format!(" where {}", conditions.join(" and ")),
        };
        let table = &self.table.sql;
        format!("select {} from {table}{filter} order by {}", columns.join(", "), order.join(", "))
    }

    /// What says that a tenant is active; empty if no column does.
    fn conditions(&self, values: &[String]) -> Vec<String> {
        let mut conditions = Vec::new();
        let by_status = self.named(&STATUS).find_map(|column| is_active(column, &column.labels));
        let by_status = by_status.or_else(|| is_active(self.unclear_status()?, values));
        let flag = |names: &[&str]| {
            let flag = |column: &&CatalogColumn| column.ty().base() == &ColumnType::Bool;
            self.named(names).find(flag).map(|column| column.sql.clone())
        };
        conditions.extend(by_status.or_else(|| flag(&ACTIVE_FLAGS)));
        conditions.extend(flag(&INACTIVE_FLAGS).map(|column| format!("{column} is not true")));
        let ended = self.named(&ENDED_AT).find(|column| is_moment(&column.ty()));
        conditions.extend(ended.map(|column| format!("{} is null", column.sql)));
        conditions
    }

    /// The columns with these names, in the order of the names.
    fn named(&self, names: &[&str]) -> impl Iterator<Item = &CatalogColumn> {
        let column =
            |name: &&str| self.table.columns.iter().find(|column| normal(&column.name) == *name);
        names.iter().filter_map(column).collect::<Vec<_>>().into_iter()
    }
}

impl DataTable<'_> {
    /// Tables come first that a job reads by an index, and that have rows, but not very many.
    fn rank(&self) -> (bool, bool, u64, String) {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rank")]
        let rows = self.table.rows as u64;
        (!self.tenant.is_indexed, rows == 0, rows, self.table.plain_name())
    }

    /// The columns of a value, without the tenant's id, and the names of those that are better left out.
    pub(super) fn columns(&self) -> (Vec<&CatalogColumn>, Vec<&str>) {
        let (mut kept, mut left_out) = (Vec::new(), Vec::new());
        for column in &self.table.columns {
            if column.name == self.tenant.name {
                continue;
            }
            let name = normal(&column.name);
            let is_secret = SECRETS.iter().any(|part| name.contains(part));
            if is_secret || is_heavy(&column.ty()) {
                left_out.push(column.name.as_str());
            } else {
                kept.push(column);
            }
        }
        (kept, left_out)
    }
}

/// The condition that a status is one of these values that means "active".
fn is_active(column: &CatalogColumn, values: &[String]) -> Option<String> {
    let active = |value: &&String| ACTIVE_VALUES.contains(&&*value.to_lowercase());
    let value = values.iter().find(active)?;
    Some(format!("{} = '{}'", column.sql, value.replace('\'', "''")))
}

/// Whether a foreign key of this column leads to the table.
fn refers(other: &CatalogTable, column: &CatalogColumn, table: &CatalogTable) -> bool {
    other.references.iter().any(|reference| {
        reference.column == column.name
            && reference.schema == table.schema
            && reference.table == table.name
    })
}

/// Whether a column without a foreign key is called as one to the table would be, and has the type of its id.
fn is_called_for(
    other: &CatalogTable,
    column: &CatalogColumn,
    table: &CatalogTable,
    id: &CatalogColumn,
) -> bool {
    let has_key = other.references.iter().any(|reference| reference.column == column.name);
    !has_key
        && normal(&column.name) == singular(&table.name) + "id"
        && column.ty().base() == id.ty().base()
}

/// A name in lower case without anything but letters and digits, so that `workspaceId` and `workspace_id`
/// are one.
fn normal(name: &str) -> String {
    name.chars().filter(|char| char.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

fn singular(name: &str) -> String {
    let name = normal(name);
    if let Some(stem) = name.strip_suffix("ies") {
        return format!("{stem}y");
    }
    if let Some(stem) = name.strip_suffix("sses") {
        return format!("{stem}ss");
    }
    match name.strip_suffix('s') {
        Some(stem) if !stem.ends_with('s') => stem.to_owned(),
        Some(_) | None => name,
    }
}

#[expect(clippy::wildcard_enum_match_arm, reason = "few of many types")]
fn may_be_id(ty: &ColumnType) -> bool {
    match ty {
        ColumnType::Uuid | ColumnType::Int2 | ColumnType::Int4 | ColumnType::Int8 => true,
        other => is_text(other),
    }
}

fn is_text(ty: &ColumnType) -> bool {
    matches!(
        ty.base(),
        ColumnType::Text | ColumnType::Varchar | ColumnType::Bpchar | ColumnType::Citext
    )
}

fn is_moment(ty: &ColumnType) -> bool {
    matches!(ty.base(), ColumnType::Timestamp | ColumnType::Timestamptz | ColumnType::Date)
}

/// Whether values of the type are large, and of no use to a reader of JSON.
fn is_heavy(ty: &ColumnType) -> bool {
    if let ColumnType::Unsupported(name) = ty.base() {
        return ["tsvector", "vector", "halfvec"].contains(&name.as_str());
    }
    *ty.base() == ColumnType::Bytea
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_tables_and_columns_are_compared_in_the_singular_and_in_one_spelling() {
        for (table, name) in [
            ("tenants", "tenant"),
            ("Workspace", "workspace"),
            ("companies", "company"),
            ("businesses", "business"),
            ("business", "business"),
            ("user_accounts", "useraccount"),
        ] {
            assert_eq!(singular(table), name);
        }
        assert_eq!(normal("workspaceId"), normal("workspace_id"));
    }
}
