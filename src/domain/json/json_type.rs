//! What a client finds in a value: the type of each member of a row, after the JSON is parsed.

use super::codec::{ArrayCodec, Codec};
use super::encoder::{Column, ColumnProblem, RowEncoder};
use super::{ColumnType, Encoding};

/// A column of a query's result, with what is known of the table's column that it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResultColumn {
    /// Its name and type.
    pub column: Column,
    /// Whether no row can have NULL in it.
    pub is_never_null: bool,
    /// The number of dimensions that the table declares for an array; `None` if no table does.
    pub dimensions: Option<u8>,
}

/// A member of a row's JSON object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RowMember {
    /// Its name.
    pub name: String,
    /// The type of the column.
    pub column: ColumnType,
    /// The type of its value, unless that is null.
    pub ty: JsonType,
    /// Whether its value is null where the column is NULL, and the column may be NULL.
    pub is_nullable: bool,
}

/// The type of a JSON value.
///
/// The codecs write `null`, or a string, for numbers and moments that JSON or JavaScript does not have: NaN,
/// the infinities, and moments that `Date` cannot hold. No type here says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum JsonType {
    /// `true` or `false`
    Boolean,
    /// An `int2` as a number.
    Int16,
    /// An `int4` as a number.
    Int32,
    /// An `int8` as a number.
    Int64,
    /// An `oid` as a number.
    Oid,
    /// Any other number.
    Number,
    /// A string.
    String,
    /// `[1,2]`
    PointPair,
    /// `{"x":1,"y":2}`
    Point,
    /// Node's `Buffer`: `{"type":"Buffer","data":[1]}`
    Buffer,
    /// The fields of an interval that are not zero.
    Interval,
    /// Any JSON.
    Any,
    /// An array of one dimension.
    Array {
        /// The type of its elements, unless they are null.
        element: Box<Self>,
        /// Whether an element may be null.
        has_nulls: bool,
    },
}

/// The members of the rows of a query with these columns, or all problems of the encoding with them.
pub fn row_members(
    encoding: &Encoding,
    columns: &[ResultColumn],
) -> Result<Vec<RowMember>, Vec<ColumnProblem>> {
    let plain: Vec<Column> = columns.iter().map(|one| one.column.clone()).collect();
    let encoder = RowEncoder::new(encoding, &plain)?;
    let member = |(index, name, codec): (usize, String, &Codec)| {
        let of = columns.get(index)?;
        let ty = JsonType::of(codec, of.dimensions);
        Some(RowMember { name, column: of.column.ty.clone(), ty, is_nullable: !of.is_never_null })
    };
    Ok(encoder.members(encoding.case).filter_map(member).collect())
}

impl JsonType {
    fn of(codec: &Codec, dimensions: Option<u8>) -> Self {
        match codec {
            Codec::Bool => Self::Boolean,
            Codec::Int2 => Self::Int16,
            Codec::Int4 => Self::Int32,
            Codec::Int8 => Self::Int64,
            Codec::Oid => Self::Oid,
            Codec::JsFloat4
            | Codec::JsFloat8
            | Codec::JsNumeric
            | Codec::Float4
            | Codec::Float8
            | Codec::Numeric => Self::Number,
            Codec::Uuid
            | Codec::String
            | Codec::Quoted(_)
            | Codec::Escaped(_)
            | Codec::WithoutBackslashes(_)
            | Codec::JsDate
            | Codec::JsMoment
            | Codec::DrizzleTimestamp
            | Codec::DrizzleTimestamptz
            | Codec::XsdTimestamp
            | Codec::XsdTimestamptz => Self::String,
            Codec::IntervalObject => Self::Interval,
            Codec::Buffer => Self::Buffer,
            Codec::PointObject => Self::Point,
            Codec::PointPair => Self::PointPair,
            Codec::Json(..) => Self::Any,
            Codec::Array(codec) => Self::array(codec, dimensions),
        }
    }

    /// The type of an array. Without a declared number of dimensions, the elements may be arrays.
    fn array(codec: &ArrayCodec, dimensions: Option<u8>) -> Self {
        let array = |element, has_nulls| Self::Array { element: Box::new(element), has_nulls };
        let Some(outer) = dimensions.and_then(|dimensions| dimensions.checked_sub(1)) else {
            return array(Self::Any, false);
        };
        let inner = array(Self::of(codec.element(), None), codec.has_nulls());
        (0..outer).fold(inner, |inner, _| array(inner, false))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::domain::json::{Case, ColumnCodec, Profile};

    fn shown(ty: &JsonType) -> String {
        let JsonType::Array { element, has_nulls } = ty else { return format!("{ty:?}") };
        format!("{}{}[]", shown(element), if *has_nulls { "?" } else { "" })
    }

    #[track_caller]
    fn check(ty: &str, dimensions: Option<u8>, expected: [&str; 3]) {
        let column = Column { name: "it".to_owned(), ty: ColumnType::from_name(ty) };
        let column = ResultColumn { column, is_never_null: true, dimensions };
        let profiles = [Profile::Drizzle, Profile::NodePostgres, Profile::Postgres];
        let found = profiles.map(|profile| {
            let members = row_members(&encoding(profile), std::slice::from_ref(&column)).unwrap();
            shown(&members[0].ty)
        });
        assert_eq!(found, expected, "{ty}");
    }

    fn encoding(profile: Profile) -> Encoding {
        Encoding {
            profile,
            case: Case::Keep,
            omit: Vec::new(),
            columns: BTreeMap::new(),
            max_bytes: usize::MAX,
        }
    }

    #[test]
    fn a_column_has_the_type_that_its_profile_writes() {
        check("int4", None, ["Int32"; 3]);
        check("int8", None, ["Int64", "String", "Int64"]);
        check("oid", None, ["Oid", "Oid", "String"]);
        check("numeric", None, ["String", "String", "Number"]);
        check("timestamptz", None, ["String"; 3]);
        check("interval", None, ["String", "Interval", "String"]);
        check("jsonb", None, ["Any"; 3]);
        check("bytea", None, ["Buffer", "Buffer", "String"]);
        check("point", None, ["PointPair", "Point", "String"]);
    }

    #[test]
    fn an_array_has_as_many_dimensions_as_its_table_declares() {
        check("int4[]", Some(1), ["Int32?[]"; 3]);
        check("int4[]", Some(2), ["Int32?[][]"; 3]);
        check("int4[]", None, ["Any[]"; 3]);
        check("int8[]", Some(1), ["Int64[]", "String?[]", "Int64?[]"]);
        check("numeric[]", Some(1), ["String[]", "Number?[]", "Number?[]"]);
        check("macaddr8[]", Some(1), ["String[]", "String", "String?[]"]);
    }

    #[test]
    fn names_and_codecs_are_those_of_the_values() {
        let column = |name: &str, ty: &str, is_never_null| ResultColumn {
            column: Column { name: name.to_owned(), ty: ColumnType::from_name(ty) },
            is_never_null,
            dimensions: None,
        };
        let columns = [column("tenant_id", "uuid", true), column("unit_price", "numeric", false)];
        let encoding = Encoding {
            case: Case::Camel,
            omit: vec!["tenant_id".to_owned()],
            columns: [("unit_price".to_owned(), ColumnCodec::Number)].into(),
            ..encoding(Profile::Drizzle)
        };
        let expected = RowMember {
            name: "unitPrice".to_owned(),
            column: ColumnType::Numeric,
            ty: JsonType::Number,
            is_nullable: true,
        };
        assert_eq!(row_members(&encoding, &columns), Ok(vec![expected]));
    }
}
