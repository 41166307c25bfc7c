//! The types of columns that preheat can read from Postgres' binary format.

use std::fmt;

/// The type of a column.
///
/// An adapter makes it from its driver's type: with [`Self::from_oid`] or [`Self::from_name`] for
/// built-in types, and with the variants themselves for enums, domains, ranges and arrays of these.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ColumnType {
    /// `bool`
    Bool,
    /// `int2`
    Int2,
    /// `int4`
    Int4,
    /// `int8`
    Int8,
    /// `oid`
    Oid,
    /// `float4`
    Float4,
    /// `float8`
    Float8,
    /// `numeric`
    Numeric,
    /// `text`
    Text,
    /// `varchar`
    Varchar,
    /// `bpchar`, which SQL calls `char(n)`
    Bpchar,
    /// `name`
    Name,
    /// `citext`, from the extension
    Citext,
    /// Any enum
    Enum,
    /// `xml`
    Xml,
    /// `"char"`: one byte
    Char,
    /// `uuid`
    Uuid,
    /// `date`
    Date,
    /// `time`
    Time,
    /// `timetz`
    Timetz,
    /// `timestamp`
    Timestamp,
    /// `timestamptz`
    Timestamptz,
    /// `interval`
    Interval,
    /// `json`
    Json,
    /// `jsonb`
    Jsonb,
    /// `bytea`
    Bytea,
    /// `inet`
    Inet,
    /// `cidr`
    Cidr,
    /// `macaddr`
    Macaddr,
    /// `macaddr8`
    Macaddr8,
    /// `bit(n)`
    Bit,
    /// `varbit`
    Varbit,
    /// `point`
    Point,
    /// An array of any dimensions
    Array(Box<Self>),
    /// A range
    Range(Box<Self>),
    /// A domain over a type. A column of a domain is written like its base type. An array of a domain
    /// is not, because the npm packages know arrays by their exact type
    Domain(Box<Self>),
    /// Any other type, by its name
    Unsupported(String),
}

/// Each built-in scalar type with its name, its OID and the OID of its array type.
const SCALARS: &[(ColumnType, &str, u32, u32)] = &[
    (ColumnType::Bool, "bool", 16, 1000),
    (ColumnType::Bytea, "bytea", 17, 1001),
    (ColumnType::Char, "\"char\"", 18, 1002),
    (ColumnType::Name, "name", 19, 1003),
    (ColumnType::Int8, "int8", 20, 1016),
    (ColumnType::Int2, "int2", 21, 1005),
    (ColumnType::Int4, "int4", 23, 1007),
    (ColumnType::Text, "text", 25, 1009),
    (ColumnType::Oid, "oid", 26, 1028),
    (ColumnType::Json, "json", 114, 199),
    (ColumnType::Xml, "xml", 142, 143),
    (ColumnType::Point, "point", 600, 1017),
    (ColumnType::Cidr, "cidr", 650, 651),
    (ColumnType::Float4, "float4", 700, 1021),
    (ColumnType::Float8, "float8", 701, 1022),
    (ColumnType::Macaddr8, "macaddr8", 774, 775),
    (ColumnType::Macaddr, "macaddr", 829, 1040),
    (ColumnType::Inet, "inet", 869, 1041),
    (ColumnType::Bpchar, "bpchar", 1042, 1014),
    (ColumnType::Varchar, "varchar", 1043, 1015),
    (ColumnType::Date, "date", 1082, 1182),
    (ColumnType::Time, "time", 1083, 1183),
    (ColumnType::Timestamp, "timestamp", 1114, 1115),
    (ColumnType::Timestamptz, "timestamptz", 1184, 1185),
    (ColumnType::Interval, "interval", 1186, 1187),
    (ColumnType::Timetz, "timetz", 1266, 1270),
    (ColumnType::Bit, "bit", 1560, 1561),
    (ColumnType::Varbit, "varbit", 1562, 1563),
    (ColumnType::Numeric, "numeric", 1700, 1231),
    (ColumnType::Uuid, "uuid", 2950, 2951),
    (ColumnType::Jsonb, "jsonb", 3802, 3807),
];

/// Each type that has a built-in range type, with that range type's name, OID and array type's OID.
const RANGES: &[(ColumnType, &str, u32, u32)] = &[
    (ColumnType::Int4, "int4range", 3904, 3905),
    (ColumnType::Numeric, "numrange", 3906, 3907),
    (ColumnType::Timestamp, "tsrange", 3908, 3909),
    (ColumnType::Timestamptz, "tstzrange", 3910, 3911),
    (ColumnType::Date, "daterange", 3912, 3913),
    (ColumnType::Int8, "int8range", 3926, 3927),
];

/// Other names of types in SQL and in drivers, besides those of the catalogue.
const ALIASES: &[(&str, ColumnType)] = &[
    ("boolean", ColumnType::Bool),
    ("smallint", ColumnType::Int2),
    ("integer", ColumnType::Int4),
    ("int", ColumnType::Int4),
    ("bigint", ColumnType::Int8),
    ("real", ColumnType::Float4),
    ("double precision", ColumnType::Float8),
    ("decimal", ColumnType::Numeric),
    ("char", ColumnType::Bpchar),
    ("character", ColumnType::Bpchar),
    ("character varying", ColumnType::Varchar),
    ("citext", ColumnType::Citext),
    ("unknown", ColumnType::Text),
    ("timestamp without time zone", ColumnType::Timestamp),
    ("timestamp with time zone", ColumnType::Timestamptz),
    ("time without time zone", ColumnType::Time),
    ("time with time zone", ColumnType::Timetz),
    ("bit varying", ColumnType::Varbit),
];

impl ColumnType {
    /// A built-in type by its OID; `None` if the type is not built in or has no codec.
    pub fn from_oid(oid: u32) -> Option<Self> {
        let scalars = SCALARS.iter().map(|(ty, _, scalar, array)| (ty.clone(), scalar, array));
        let ranges = RANGES.iter().map(|(subtype, _, range, array)| {
            (Self::Range(Box::new(subtype.clone())), range, array)
        });
        scalars.chain(ranges).find_map(|(ty, scalar, array)| {
            if oid == *scalar {
                Some(ty)
            } else if oid == *array {
                Some(Self::Array(Box::new(ty)))
            } else {
                None
            }
        })
    }

    /// A type by its name, in upper or lower case: `int4`, `INTEGER`, `"char"`, `numrange`, `citext`; a
    /// name with `[]` at its end is an array. An unknown name gives [`Self::Unsupported`].
    ///
    /// `char` without quotes is `bpchar`, as in SQL.
    pub fn from_name(name: &str) -> Self {
        if let Some(element) = name.strip_suffix("[]").or_else(|| name.strip_prefix('_')) {
            let element = Self::from_name(element);
            return if element.is_supported() {
                Self::Array(Box::new(element))
            } else {
                Self::Unsupported(name.to_owned())
            };
        }
        let same = |known: &str| known.eq_ignore_ascii_case(name);
        if let Some((ty, ..)) = SCALARS.iter().find(|(_, known, ..)| same(known)) {
            return ty.clone();
        }
        if let Some((_, ty)) = ALIASES.iter().find(|(known, _)| same(known)) {
            return ty.clone();
        }
        if let Some((subtype, ..)) = RANGES.iter().find(|(_, known, ..)| same(known)) {
            return Self::Range(Box::new(subtype.clone()));
        }
        Self::Unsupported(name.to_owned())
    }

    /// Whether preheat can write values of this type.
    pub fn is_supported(&self) -> bool {
        self.unsupported().is_none()
    }

    /// The name of this type, or of the type within it, if that has no codec.
    #[expect(clippy::wildcard_enum_match_arm, reason = "all scalars have codecs")]
    pub(super) fn unsupported(&self) -> Option<&str> {
        match self {
            Self::Unsupported(name) => Some(name),
            Self::Array(inner) | Self::Range(inner) | Self::Domain(inner) => inner.unsupported(),
            _ => None,
        }
    }

    /// The type without domains around it.
    pub fn base(&self) -> &Self {
        let mut ty = self;
        while let Self::Domain(inner) = ty {
            ty = inner;
        }
        ty
    }
}

impl fmt::Display for ColumnType {
    #[expect(clippy::wildcard_enum_match_arm, reason = "a table has the scalars' names")]
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Citext => f.write_str("citext"),
            Self::Enum => f.write_str("enum"),
            Self::Array(element) => write!(f, "{element}[]"),
            Self::Range(subtype) => match RANGES.iter().find(|(known, ..)| *known == **subtype) {
                Some((_, name, ..)) => f.write_str(name),
                None => write!(f, "range of {subtype}"),
            },
            Self::Domain(base) => write!(f, "domain over {base}"),
            Self::Unsupported(name) => f.write_str(name),
            scalar => {
                let known = SCALARS.iter().find(|(ty, ..)| ty == scalar);
                f.write_str(known.map_or("unknown", |(_, name, ..)| name))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_built_in_type_is_known_by_oid_and_by_name() {
        for (ty, name, oid, array) in SCALARS {
            assert_eq!(ColumnType::from_oid(*oid).as_ref(), Some(ty));
            assert_eq!(&ColumnType::from_name(&name.to_uppercase()), ty);
            assert_eq!(ty.to_string(), *name);
            let of = ColumnType::Array(Box::new(ty.clone()));
            assert_eq!(ColumnType::from_oid(*array).as_ref(), Some(&of));
            assert_eq!(ColumnType::from_name(&format!("{name}[]")), of);
            assert_eq!(of.to_string(), format!("{name}[]"));
        }
        for (subtype, name, oid, array) in RANGES {
            let ty = ColumnType::Range(Box::new(subtype.clone()));
            assert_eq!(ColumnType::from_oid(*oid).as_ref(), Some(&ty));
            assert_eq!(ColumnType::from_name(name), ty);
            assert_eq!(ty.to_string(), *name);
            assert_eq!(ColumnType::from_oid(*array), Some(ColumnType::Array(Box::new(ty))));
        }
    }

    #[test]
    fn char_is_sqls_and_quoted_char_is_the_byte() {
        assert_eq!(ColumnType::from_name("CHAR"), ColumnType::Bpchar);
        assert_eq!(ColumnType::from_name("\"CHAR\""), ColumnType::Char);
    }

    #[test]
    fn an_unknown_type_keeps_its_name() {
        let ty = ColumnType::from_name("box[]");
        assert_eq!(ty, ColumnType::Unsupported("box[]".to_owned()));
        assert!(!ColumnType::Domain(Box::new(ty)).is_supported());
        assert_eq!(ColumnType::from_oid(603), None);
    }
}
