//! The database's own types: enums, domains, ranges, arrays, and those of extensions.

use std::collections::HashMap;
use std::fmt::Write;

use super::{Session, TextRow};
use crate::domain::json::ColumnType;

/// The own types that a session has met, by their OIDs. An OID may mean another type after the database
/// was created anew, but not within a session.
pub(super) type OwnTypes = HashMap<u32, ColumnType>;

/// Types within types beyond this depth are unsupported. The server has no such limit.
const DEEPEST: usize = 16;

/// How a type is made, as the catalogue tells it.
struct Entry {
    name: String,
    form: Form,
}

enum Form {
    Enum,
    Domain(u32),
    Range(u32),
    Array(u32),
    Other,
}

impl Session {
    /// The types with these OIDs. If some have to be looked up, the server forgets the unnamed statement;
    /// then the answer says so.
    pub(super) async fn types(
        &mut self,
        oids: &[u32],
    ) -> Result<(Vec<ColumnType>, Forgotten), sqlx::Error> {
        let known = |oid: u32| ColumnType::from_oid(oid).is_some() || self.types.contains_key(&oid);
        let unknown: Vec<u32> = oids.iter().copied().filter(|oid| !known(*oid)).collect();
        if !unknown.is_empty() {
            let entries: HashMap<u32, Entry> =
                self.query(&look_up(&unknown)).await?.iter().filter_map(Entry::read).collect();
            for oid in &unknown {
                self.types.insert(*oid, type_of(*oid, &entries, 0));
            }
        }
        let of = |oid: &u32| {
            let own = || self.types.get(oid).cloned();
            ColumnType::from_oid(*oid).or_else(own).unwrap_or_else(nameless)
        };
        Ok((oids.iter().map(of).collect(), Forgotten(!unknown.is_empty())))
    }
}

/// Whether the server has forgotten the unnamed statement.
pub(super) struct Forgotten(pub(super) bool);

/// The entries of types and of the types within them.
fn look_up(oids: &[u32]) -> String {
    let mut list = String::new();
    for oid in oids {
        let separator = if list.is_empty() { "" } else { ", " };
        let _a_string_takes_all = write!(list, "{separator}{oid}");
    }
    format!(
        "with recursive entry as (
           select oid, typtype, typcategory, typelem, typbasetype
             from pg_catalog.pg_type where oid in ({list})
           union
           select inner_type.oid, inner_type.typtype, inner_type.typcategory, inner_type.typelem,
             inner_type.typbasetype
             from entry left join pg_catalog.pg_range on rngtypid = entry.oid
               join pg_catalog.pg_type inner_type
                 on inner_type.oid in (entry.typelem, entry.typbasetype, rngsubtype)
         )
         select entry.oid::text, oid::regtype::text, case
             when typtype = 'e' then 'enum' when typtype = 'd' then 'domain'
             when typtype = 'r' then 'range' when typtype = 'b' and typcategory = 'A' then 'array'
             else '' end,
           coalesce(rngsubtype, nullif(typbasetype, 0), typelem)::text
         from entry left join pg_catalog.pg_range on rngtypid = entry.oid"
    )
}

impl Entry {
    fn read(row: &TextRow) -> Option<(u32, Self)> {
        let [Some(oid), Some(name), Some(form), Some(within)] = row.as_slice() else { return None };
        let within = within.parse().ok()?;
        let form = match form.as_str() {
            "enum" => Form::Enum,
            "domain" => Form::Domain(within),
            "range" => Form::Range(within),
            "array" => Form::Array(within),
            _ => Form::Other,
        };
        Some((oid.parse().ok()?, Self { name: name.clone(), form }))
    }
}

fn type_of(oid: u32, entries: &HashMap<u32, Entry>, depth: usize) -> ColumnType {
    if let Some(known) = ColumnType::from_oid(oid) {
        return known;
    }
    let Some(entry) = entries.get(&oid).filter(|_| depth < DEEPEST) else { return nameless() };
    let within = |oid: u32| Box::new(type_of(oid, entries, depth + 1));
    match entry.form {
        Form::Enum => ColumnType::Enum,
        Form::Domain(base) => ColumnType::Domain(within(base)),
        Form::Range(subtype) => ColumnType::Range(within(subtype)),
        Form::Array(element) => ColumnType::Array(within(element)),
        // An extension's type may be in any schema, and then its name is qualified.
        Form::Other if entry.name.rsplit('.').next() == Some("citext") => ColumnType::Citext,
        Form::Other => ColumnType::Unsupported(entry.name.clone()),
    }
}

/// A type that is gone, or that the server does not describe.
fn nameless() -> ColumnType {
    ColumnType::Unsupported("unknown".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(oid: u32, name: &str, form: &str, within: u32) -> (u32, Entry) {
        let texts = [oid.to_string(), name.to_owned(), form.to_owned(), within.to_string()];
        Entry::read(&texts.into_iter().map(Some).collect()).unwrap()
    }

    #[test]
    fn a_type_is_made_of_the_types_within_it() {
        let entries = HashMap::from([
            entry(20000, "mood", "enum", 0),
            entry(20001, "mood[]", "array", 20000),
            entry(20002, "moods", "domain", 20001),
            entry(20003, "floats", "range", 701),
            entry(20004, "extensions.citext", "", 0),
            entry(20005, "pair", "", 0),
            entry(20006, "round", "domain", 20006),
        ]);
        let of = |oid| type_of(oid, &entries, 0);
        let moods = ColumnType::Array(Box::new(ColumnType::Enum));
        assert_eq!(of(20002), ColumnType::Domain(Box::new(moods)));
        assert_eq!(of(20003), ColumnType::Range(Box::new(ColumnType::Float8)));
        assert_eq!((of(20004), of(23)), (ColumnType::Citext, ColumnType::Int4));
        assert_eq!(of(20005), ColumnType::Unsupported("pair".to_owned()));
        assert!(!of(20006).is_supported() && !of(20007).is_supported());
    }
}
