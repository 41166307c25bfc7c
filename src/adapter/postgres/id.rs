//! Tenant ids in Postgres' binary format.

use std::collections::HashMap;
use std::collections::hash_map;

use rapidhash::fast::RandomState;
use uuid::Uuid;

use super::wire::Parameter;
use crate::domain::json::ColumnType;
use crate::domain::tenant::{Batch, IdClass};

/// The type of the tenant ids: the type of the tenant query's first column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct IdType {
    kind: IdKind,
    element: u32,
    array: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum IdKind {
    Uuid,
    Int2,
    Int4,
    Int8,
    Text,
    /// Trailing blanks do not count.
    Bpchar,
    /// Case does not count.
    Citext,
}

/// The column types that ids can have, with the oids of their array types; 0 if the type is not
/// built in.
const KINDS: [(ColumnType, IdKind, u32); 8] = [
    (ColumnType::Uuid, IdKind::Uuid, 2951),
    (ColumnType::Int2, IdKind::Int2, 1005),
    (ColumnType::Int4, IdKind::Int4, 1007),
    (ColumnType::Int8, IdKind::Int8, 1016),
    (ColumnType::Text, IdKind::Text, 1009),
    (ColumnType::Varchar, IdKind::Text, 1015),
    (ColumnType::Bpchar, IdKind::Bpchar, 1014),
    (ColumnType::Citext, IdKind::Citext, 0),
];

/// The types that an id can have, for messages.
pub(super) const ID_TYPES: &str = "uuid, int2, int4, int8, text, varchar, bpchar or citext";

/// A text that is not a valid id of its type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("tenant id `{id}` is no {ty}")]
pub(super) struct BadId {
    id: String,
    ty: &'static str,
}

impl IdType {
    /// The id type for a column's type; `None` if ids cannot have that type. The oids of types that
    /// are not built in differ between databases, so `array` passes the oid of the array type.
    pub(super) fn new(ty: &ColumnType, element: u32, array: Option<u32>) -> Option<Self> {
        let (_, kind, built_in) = KINDS.iter().find(|(column, ..)| column == ty)?;
        Some(Self { kind: *kind, element, array: array.unwrap_or(*built_in) })
    }

    /// The type of an array of ids: the type of `$1`.
    pub(super) fn array_oid(self) -> u32 {
        self.array
    }

    /// Whether a column of type `ty` can hold such ids.
    pub(super) fn fits(self, ty: &ColumnType) -> bool {
        match self.kind {
            IdKind::Uuid => matches!(ty, ColumnType::Uuid),
            IdKind::Int2 | IdKind::Int4 | IdKind::Int8 => {
                matches!(ty, ColumnType::Int2 | ColumnType::Int4 | ColumnType::Int8)
            }
            IdKind::Text | IdKind::Bpchar | IdKind::Citext => matches!(
                ty,
                ColumnType::Text | ColumnType::Varchar | ColumnType::Bpchar | ColumnType::Citext
            ),
        }
    }

    /// Which texts such an id can be.
    pub(super) fn class(self) -> IdClass {
        match self.kind {
            IdKind::Uuid => IdClass::Uuid,
            IdKind::Int2 | IdKind::Int4 | IdKind::Int8 => IdClass::Integer,
            IdKind::Text | IdKind::Bpchar | IdKind::Citext => IdClass::Text,
        }
    }

    /// The type's name.
    pub(super) fn name(self) -> &'static str {
        match self.kind {
            IdKind::Uuid => "uuid",
            IdKind::Int2 => "int2",
            IdKind::Int4 => "int4",
            IdKind::Int8 => "int8",
            IdKind::Text => "text",
            IdKind::Bpchar => "bpchar",
            IdKind::Citext => "citext",
        }
    }

    /// Whether ids that differ only in case are the same.
    pub(super) fn ignores_case(self) -> bool {
        self.kind == IdKind::Citext
    }

    /// Whether a text can be such an id.
    pub(super) fn takes(self, id: &str) -> bool {
        self.encode(id, &mut Vec::new()).is_ok()
    }

    /// Appends an id's bytes in the wire format.
    fn encode(self, id: &str, out: &mut Vec<u8>) -> Result<(), BadId> {
        let bad = || BadId { id: id.to_owned(), ty: self.name() };
        match self.kind {
            IdKind::Uuid => {
                let uuid = Uuid::parse_str(id).map_err(|_not_one| bad())?;
                out.extend_from_slice(uuid.as_bytes());
            }
            IdKind::Int2 => {
                let number: i16 = id.parse().map_err(|_not_one| bad())?;
                out.extend_from_slice(&number.to_be_bytes());
            }
            IdKind::Int4 => {
                let number: i32 = id.parse().map_err(|_not_one| bad())?;
                out.extend_from_slice(&number.to_be_bytes());
            }
            IdKind::Int8 => {
                let number: i64 = id.parse().map_err(|_not_one| bad())?;
                out.extend_from_slice(&number.to_be_bytes());
            }
            // A text in Postgres can contain every character but this one.
            IdKind::Text | IdKind::Bpchar | IdKind::Citext if id.contains('\0') => {
                return Err(bad());
            }
            IdKind::Text | IdKind::Bpchar | IdKind::Citext => out.extend_from_slice(id.as_bytes()),
        }
        Ok(())
    }

    /// Writes equal ids as equal bytes: integers of any width, and text as its type compares it.
    fn normalize(self, wire: &[u8], out: &mut Vec<u8>) {
        out.clear();
        match self.kind {
            IdKind::Uuid | IdKind::Text => out.extend_from_slice(wire),
            IdKind::Int2 | IdKind::Int4 | IdKind::Int8 => {
                let is_negative = wire.first().is_some_and(|byte| byte & 0x80 != 0);
                let fill = if is_negative { 0xff } else { 0 };
                out.resize(size_of::<i64>().saturating_sub(wire.len()), fill);
                out.extend_from_slice(wire);
            }
            IdKind::Bpchar => out.extend_from_slice(wire.trim_ascii_end()),
            IdKind::Citext => {
                let text = String::from_utf8_lossy(wire);
                out.extend(text.chars().flat_map(char::to_lowercase).collect::<String>().bytes());
            }
        }
    }

    /// An id's text from its wire bytes, for messages.
    pub(super) fn text(self, wire: &[u8], ty: &ColumnType) -> String {
        let mut text = Vec::new();
        match crate::domain::json::write_text(ty, wire, &mut text) {
            Ok(()) => String::from_utf8_lossy(&text).into_owned(),
            Err(_unreadable) => format!("a {} that cannot be read", self.name()),
        }
    }
}

/// `$1`: tenant ids as an array of the ids' type.
pub(super) fn id_array<'i>(
    ty: IdType,
    ids: impl Iterator<Item = &'i str>,
) -> Result<Parameter, BadId> {
    Parameter::array((ty.array, ty.element), ids, |id, out| ty.encode(id, out))
}

/// Finds a tenant's slot in the batch by its id.
pub(super) struct Slots {
    ty: IdType,
    by_id: HashMap<Vec<u8>, u32, RandomState>,
    /// The slot of the previous row, whose id is `before_wire`: neighbouring rows mostly belong to
    /// one tenant.
    before: Option<u32>,
    before_wire: Vec<u8>,
    scratch: Vec<u8>,
}

impl Slots {
    /// The slots of the batch's tenants.
    pub(super) fn new(ty: IdType, batch: &Batch) -> Result<Self, BadId> {
        let mut by_id = HashMap::with_capacity_and_hasher(batch.len(), RandomState::default());
        let mut wire = Vec::new();
        for (slot, tenant) in (0..).zip(batch.tenants()) {
            wire.clear();
            ty.encode(tenant.id(), &mut wire)?;
            let mut id = Vec::new();
            ty.normalize(&wire, &mut id);
            if let hash_map::Entry::Vacant(free) = by_id.entry(id) {
                free.insert(slot);
            }
        }
        let (before_wire, scratch) = (Vec::new(), Vec::new());
        Ok(Self { ty, by_id, before: None, before_wire, scratch })
    }

    /// The slot of the tenant whose id a row has; `None` if the batch does not contain that tenant.
    pub(super) fn of(&mut self, wire: &[u8]) -> Option<u32> {
        if self.before.is_some() && self.before_wire == wire {
            return self.before;
        }
        self.ty.normalize(wire, &mut self.scratch);
        self.before = self.by_id.get(&self.scratch).copied();
        self.before_wire.clear();
        self.before_wire.extend_from_slice(wire);
        self.before
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::domain::tenant::Tenants;

    fn batch(ids: &[&str]) -> Batch {
        let mut list = Tenants::default();
        for id in ids {
            list.push(id, []);
        }
        Batch::new(Arc::new(list), (0..u32::try_from(ids.len()).unwrap()).collect())
    }

    fn ty(ty: &ColumnType) -> IdType {
        IdType::new(ty, 1, None).unwrap()
    }

    #[test]
    fn ids_are_found_again_however_the_column_writes_them() {
        let mut slots = Slots::new(ty(&ColumnType::Int4), &batch(&["7", "-2"])).unwrap();
        assert_eq!(slots.of(&7_i64.to_be_bytes()), Some(0));
        assert_eq!(slots.of(&(-2_i16).to_be_bytes()), Some(1));
        assert_eq!(slots.of(&(-2_i16).to_be_bytes()), Some(1));
        assert_eq!(slots.of(&8_i32.to_be_bytes()), None);
        assert_eq!(slots.of(&7_i32.to_be_bytes()), Some(0));

        let mut slots = Slots::new(ty(&ColumnType::Citext), &batch(&["Äpfel", "b"])).unwrap();
        assert_eq!(slots.of("äPFEL".as_bytes()), Some(0));
        assert_eq!(slots.of(b"c"), None);

        let mut slots = Slots::new(ty(&ColumnType::Bpchar), &batch(&["ab  "])).unwrap();
        assert_eq!(slots.of(b"ab"), Some(0));
        let mut slots = Slots::new(ty(&ColumnType::Text), &batch(&["ab", ""])).unwrap();
        assert_eq!((slots.of(b"ab "), slots.of(b""), slots.of(b"AB")), (None, Some(1), None));
    }

    #[test]
    fn an_array_of_ids_is_as_postgres_takes_it() {
        let array = |ty, ids: &[&str]| id_array(ty, ids.iter().copied()).unwrap().value.unwrap();
        let two = array(ty(&ColumnType::Int2), &["1", "-1"]);
        let expected =
            [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 2, 0, 1, 0, 0];
        assert_eq!(two[..28], expected);
        assert_eq!(array(ty(&ColumnType::Uuid), &[]), [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    }

    #[test]
    fn an_id_that_is_none_is_an_error() {
        let error = id_array(ty(&ColumnType::Uuid), ["seven"].into_iter()).unwrap_err();
        assert_eq!(error.to_string(), "tenant id `seven` is no uuid");
        assert!(ty(&ColumnType::Int8).takes("7") && !ty(&ColumnType::Int2).takes("32768"));
        assert!(ty(&ColumnType::Text).takes("") && !ty(&ColumnType::Text).takes("a\0"));
        assert!(IdType::new(&ColumnType::Numeric, 1, None).is_none());
    }
}
