//! The codecs, and which of them writes which type in which profile.
//!
//! The results of `pg` and `drizzle-orm` come from running them; the parity test compares these codecs
//! with them.

use super::calendar::{
    Date, Moment, MomentStyle, write_drizzle_moment, write_fraction, write_js_date,
    write_js_moment, write_moment,
};
use super::column_type::ColumnType;
use super::document;
use super::nested::{ArrayStyle, write_array};
use super::number::{
    Kind, write_float4, write_integer, write_js_float4, write_js_float8, write_js_numeric,
    write_numeric,
};
use super::string::{quote_tail, write_string};
use super::text::{Interval, boolean, point, uuid, write_text};
use super::wire::{ValueError, exact, jsonb};
use super::{ColumnCodec, Profile};

/// How a value becomes JSON.
#[derive(Clone, Debug)]
pub(super) enum Codec {
    Bool,
    Int2,
    Int4,
    Int8,
    Oid,
    Uuid,
    /// A float as a JavaScript number.
    JsFloat4,
    JsFloat8,
    /// A numeric as a JavaScript number.
    JsNumeric,
    /// A number with all its digits; a string for NaN and the infinities.
    Float4,
    Float8,
    Numeric,
    /// Text, unchanged.
    String,
    /// Postgres' text of a value of this type, which never needs an escape.
    Quoted(ColumnType),
    /// Postgres' text of a value of this type.
    Escaped(ColumnType),
    /// Postgres' text of a value of this type without its backslashes: `drizzle-orm` loses them in some
    /// arrays.
    WithoutBackslashes(ColumnType),
    /// `JSON.stringify` of the `Date` that `pg` makes.
    JsDate,
    JsMoment,
    /// `JSON.stringify` of the `Date` that `drizzle-orm` makes.
    DrizzleTimestamp,
    DrizzleTimestamptz,
    /// A moment in the form of XML Schema, as a string.
    XsdTimestamp,
    XsdTimestamptz,
    /// An object with the fields of an interval that are not zero.
    IntervalObject,
    /// Node's `Buffer`.
    Buffer,
    /// `{"x":1,"y":2}`
    PointObject,
    /// `[1,2]`
    PointPair,
    Json(JsonText, Numbers),
    Array(Box<ArrayCodec>),
}

/// The type that holds the text of a JSON value.
#[derive(Clone, Copy, Debug)]
pub(super) enum JsonText {
    /// A `json`.
    Json,
    /// A `jsonb`, where a version number precedes the text.
    Jsonb,
    /// A text type, whose text may not be JSON.
    Text,
}

/// How the values within a JSON value are changed.
#[derive(Clone, Copy, Debug)]
pub(super) enum Numbers {
    /// They stay as they are.
    AsTheyAre,
    /// They become what `JSON.stringify(JSON.parse(…))` makes of them.
    Js,
    /// The same, and a string is parsed by `JSON.parse` a second time if that succeeds.
    Drizzle,
}

#[derive(Clone, Debug)]
pub(super) struct ArrayCodec {
    element: Codec,
    null: &'static [u8],
}

impl ArrayCodec {
    pub(super) fn element(&self) -> &Codec {
        &self.element
    }

    /// Whether a NULL in the array becomes `null`.
    pub(super) fn has_nulls(&self) -> bool {
        self.null == NULL
    }
}

impl ArrayStyle for &ArrayCodec {
    const BRACKETS: [u8; 2] = *b"[]";
    const BOUNDS: bool = false;

    fn element(&mut self, wire: Option<&[u8]>, out: &mut Vec<u8>) -> Result<(), ValueError> {
        if let Some(wire) = wire {
            return self.element.write(wire, out);
        }
        out.extend_from_slice(self.null);
        Ok(())
    }
}

impl Codec {
    /// The codec of a type in a profile.
    pub(super) fn of(profile: Profile, ty: &ColumnType) -> Self {
        let [drizzle, node_postgres, postgres] = of_all_profiles(ty);
        match profile {
            Profile::Drizzle => drizzle,
            Profile::NodePostgres => node_postgres,
            Profile::Postgres => postgres,
        }
    }

    /// The codec that a job chose for a column of this type; `None` if that codec cannot write the type.
    pub(super) fn chosen(chosen: ColumnCodec, ty: &ColumnType) -> Option<Self> {
        match chosen {
            ColumnCodec::Number => number(ty),
            ColumnCodec::String => Some(string(ty)),
            ColumnCodec::Json => json(ty),
        }
    }

    /// Appends the JSON of a value that is not NULL. After an error, the appended bytes have no
    /// meaning.
    pub(super) fn write(&self, wire: &[u8], out: &mut Vec<u8>) -> Result<(), ValueError> {
        match self {
            Self::Bool => out.extend_from_slice(if boolean(wire)? { b"true" } else { b"false" }),
            Self::Int2 => write_integer(i16::from_be_bytes(exact(wire)?), out),
            Self::Int4 => write_integer(i32::from_be_bytes(exact(wire)?), out),
            Self::Int8 => write_integer(i64::from_be_bytes(exact(wire)?), out),
            Self::Oid => write_integer(u32::from_be_bytes(exact(wire)?), out),
            Self::Uuid => quote(&uuid(exact(wire)?), out),
            Self::JsFloat4 => write_js_float4(f32::from_be_bytes(exact(wire)?), out),
            Self::JsFloat8 => write_js_float8(f64::from_be_bytes(exact(wire)?), out),
            Self::JsNumeric => write_js_numeric(wire, out)?,
            Self::Float4 => {
                let number = f32::from_be_bytes(exact(wire)?);
                number_or_string(out, |out| Ok(write_float4(number, out)))?;
            }
            Self::Float8 => write_float8(f64::from_be_bytes(exact(wire)?), out),
            Self::Numeric => number_or_string(out, |out| write_numeric(wire, out))?,
            Self::String => write_string(wire, out)?,
            Self::Quoted(ty) => {
                out.push(b'"');
                write_text(ty, wire, out)?;
                out.push(b'"');
            }
            Self::Escaped(ty) => {
                let start = out.len();
                write_text(ty, wire, out)?;
                quote_tail(start, out);
            }
            Self::WithoutBackslashes(ty) => write_without_backslashes(ty, wire, out)?,
            Self::JsDate => write_js_date(&Date::from_wire(exact(wire)?), out),
            Self::JsMoment => write_js_moment(&Moment::from_wire(exact(wire)?), out),
            Self::DrizzleTimestamp => {
                write_drizzle_moment(&Moment::from_wire(exact(wire)?), ZONE_ONLY, out);
            }
            Self::DrizzleTimestamptz => {
                write_drizzle_moment(&Moment::from_wire(exact(wire)?), NULL, out);
            }
            Self::XsdTimestamp => write_xsd(exact(wire)?, b"", out),
            Self::XsdTimestamptz => write_xsd(exact(wire)?, b"+00:00", out),
            Self::IntervalObject => write_interval_object(&Interval::from_wire(wire)?, out),
            Self::Buffer => write_buffer(wire, out),
            Self::PointObject => write_point(wire, [b"{\"x\":", b",\"y\":", b"}"], out)?,
            Self::PointPair => write_point(wire, [b"[", b",", b"]"], out)?,
            Self::Json(place, numbers) => write_json(*place, *numbers, wire, out)?,
            Self::Array(codec) => write_array(wire, &mut codec.as_ref(), out)?,
        }
        Ok(())
    }
}

const NULL: &[u8] = b"null";

/// The JSON of an array's NULL, which `drizzle-orm` takes for text.
const NULL_TEXT: &[u8] = b"\"NULL\"";

/// The date that V8 reads from `infinity+0000` and `NULL+0000`, the texts that `drizzle-orm` gives to
/// it.
const ZONE_ONLY: &[u8] = b"\"2000-01-01T00:00:00.000Z\"";

/// The codecs of a type in the profiles `drizzle`, `node-postgres` and `postgres`, in this order.
fn of_all_profiles(ty: &ColumnType) -> [Codec; 3] {
    let text = || string(ty);
    let same = |codec: Codec| [codec.clone(), codec.clone(), codec];
    let json = |place| {
        [Numbers::Drizzle, Numbers::Js, Numbers::AsTheyAre].map(|how| Codec::Json(place, how))
    };
    match ty {
        ColumnType::Bool => same(Codec::Bool),
        ColumnType::Int2 => same(Codec::Int2),
        ColumnType::Int4 => same(Codec::Int4),
        ColumnType::Int8 => [Codec::Int8, text(), Codec::Int8],
        ColumnType::Oid => [Codec::Oid, Codec::Oid, text()],
        ColumnType::Float4 => [Codec::JsFloat4, Codec::JsFloat4, Codec::Float4],
        ColumnType::Float8 => [Codec::JsFloat8, Codec::JsFloat8, Codec::Float8],
        ColumnType::Numeric => [text(), text(), Codec::Numeric],
        ColumnType::Date => [text(), Codec::JsDate, text()],
        ColumnType::Timestamp => [Codec::DrizzleTimestamp, Codec::JsMoment, Codec::XsdTimestamp],
        ColumnType::Timestamptz => {
            [Codec::DrizzleTimestamptz, Codec::JsMoment, Codec::XsdTimestamptz]
        }
        ColumnType::Interval => [text(), Codec::IntervalObject, text()],
        ColumnType::Json => json(JsonText::Json),
        ColumnType::Jsonb => json(JsonText::Jsonb),
        ColumnType::Bytea => [Codec::Buffer, Codec::Buffer, text()],
        ColumnType::Point => [Codec::PointPair, Codec::PointObject, text()],
        ColumnType::Array(element) => [
            drizzle_array(element),
            node_postgres_array(element).unwrap_or_else(text),
            array(Codec::of(Profile::Postgres, element), NULL),
        ],
        ColumnType::Domain(base) => of_all_profiles(base),
        ColumnType::Text
        | ColumnType::Varchar
        | ColumnType::Bpchar
        | ColumnType::Name
        | ColumnType::Citext
        | ColumnType::Enum
        | ColumnType::Xml
        | ColumnType::Char
        | ColumnType::Uuid
        | ColumnType::Time
        | ColumnType::Timetz
        | ColumnType::Inet
        | ColumnType::Cidr
        | ColumnType::Macaddr
        | ColumnType::Macaddr8
        | ColumnType::Bit
        | ColumnType::Varbit
        | ColumnType::Range(_)
        | ColumnType::Unsupported(_) => same(text()),
    }
}

/// `pg` parses arrays of the types that it knows, and leaves other arrays as text.
fn node_postgres_array(element: &ColumnType) -> Option<Codec> {
    if *element == ColumnType::Numeric {
        return Some(array(Codec::JsNumeric, NULL));
    }
    pg_parses_arrays_of(element).then(|| array(Codec::of(Profile::NodePostgres, element), NULL))
}

/// `drizzle-orm` itself parses the arrays that `pg` leaves as text, including types for which it tells
/// `pg` to do so. It does not recognize NULL in these arrays. In other arrays it passes a NULL to the
/// column's decoder.
#[expect(clippy::wildcard_enum_match_arm, reason = "the rest follows what `pg` does")]
fn drizzle_array(element: &ColumnType) -> Codec {
    let codec = Codec::of(Profile::Drizzle, element);
    match element {
        ColumnType::Numeric | ColumnType::Date | ColumnType::Interval => array(codec, NULL_TEXT),
        ColumnType::Timestamp => array(codec, ZONE_ONLY),
        ColumnType::Int8 => array(codec, b"0"),
        _ if pg_parses_arrays_of(element) => array(codec, NULL),
        _ => array(Codec::WithoutBackslashes(element.clone()), NULL_TEXT),
    }
}

/// The codec `string`: a string with the value's text.
fn string(ty: &ColumnType) -> Codec {
    match ty {
        ColumnType::Text
        | ColumnType::Varchar
        | ColumnType::Bpchar
        | ColumnType::Name
        | ColumnType::Citext
        | ColumnType::Enum
        | ColumnType::Xml => Codec::String,
        ColumnType::Uuid => Codec::Uuid,
        ColumnType::Bool
        | ColumnType::Int2
        | ColumnType::Int4
        | ColumnType::Int8
        | ColumnType::Oid
        | ColumnType::Float4
        | ColumnType::Float8
        | ColumnType::Numeric
        | ColumnType::Date
        | ColumnType::Time
        | ColumnType::Timetz
        | ColumnType::Timestamp
        | ColumnType::Timestamptz
        | ColumnType::Interval
        | ColumnType::Inet
        | ColumnType::Cidr
        | ColumnType::Macaddr
        | ColumnType::Macaddr8
        | ColumnType::Bit
        | ColumnType::Varbit
        | ColumnType::Point => Codec::Quoted(ty.clone()),
        ColumnType::Char
        | ColumnType::Json
        | ColumnType::Jsonb
        | ColumnType::Bytea
        | ColumnType::Array(_)
        | ColumnType::Range(_)
        | ColumnType::Unsupported(_) => Codec::Escaped(ty.clone()),
        ColumnType::Domain(base) => string(base),
    }
}

/// The codec `number`.
#[expect(clippy::wildcard_enum_match_arm, reason = "the types named here are the numbers")]
fn number(ty: &ColumnType) -> Option<Codec> {
    match ty {
        ColumnType::Int2 => Some(Codec::Int2),
        ColumnType::Int4 => Some(Codec::Int4),
        ColumnType::Int8 => Some(Codec::Int8),
        ColumnType::Oid => Some(Codec::Oid),
        ColumnType::Float4 => Some(Codec::JsFloat4),
        ColumnType::Float8 => Some(Codec::JsFloat8),
        ColumnType::Numeric => Some(Codec::JsNumeric),
        _ => None,
    }
}

/// The codec `json`.
#[expect(clippy::wildcard_enum_match_arm, reason = "the types named here may hold JSON")]
fn json(ty: &ColumnType) -> Option<Codec> {
    let place = match ty {
        ColumnType::Json => JsonText::Json,
        ColumnType::Jsonb => JsonText::Jsonb,
        ColumnType::Text | ColumnType::Varchar | ColumnType::Bpchar | ColumnType::Citext => {
            JsonText::Text
        }
        _ => return None,
    };
    Some(Codec::Json(place, Numbers::AsTheyAre))
}

/// Whether `pg` has a parser for arrays of this type (`pg-types/lib/textParsers.js`). It leaves other
/// arrays as text.
fn pg_parses_arrays_of(element: &ColumnType) -> bool {
    match element {
        ColumnType::Bool
        | ColumnType::Bytea
        | ColumnType::Int2
        | ColumnType::Int4
        | ColumnType::Int8
        | ColumnType::Oid
        | ColumnType::Float4
        | ColumnType::Float8
        | ColumnType::Numeric
        | ColumnType::Text
        | ColumnType::Varchar
        | ColumnType::Bpchar
        | ColumnType::Uuid
        | ColumnType::Date
        | ColumnType::Time
        | ColumnType::Timetz
        | ColumnType::Timestamp
        | ColumnType::Timestamptz
        | ColumnType::Interval
        | ColumnType::Json
        | ColumnType::Jsonb
        | ColumnType::Inet
        | ColumnType::Cidr
        | ColumnType::Macaddr
        | ColumnType::Point => true,
        ColumnType::Range(subtype) => **subtype == ColumnType::Numeric,
        ColumnType::Name
        | ColumnType::Citext
        | ColumnType::Enum
        | ColumnType::Xml
        | ColumnType::Char
        | ColumnType::Macaddr8
        | ColumnType::Bit
        | ColumnType::Varbit
        | ColumnType::Array(_)
        | ColumnType::Domain(_)
        | ColumnType::Unsupported(_) => false,
    }
}

fn array(element: Codec, null: &'static [u8]) -> Codec {
    Codec::Array(Box::new(ArrayCodec { element, null }))
}

fn quote<const N: usize>(text: &[u8; N], out: &mut Vec<u8>) {
    out.push(b'"');
    out.extend_from_slice(text);
    out.push(b'"');
}

fn number_or_string(
    out: &mut Vec<u8>,
    write: impl FnOnce(&mut Vec<u8>) -> Result<Kind, ValueError>,
) -> Result<(), ValueError> {
    let start = out.len();
    if write(out)? == Kind::Special {
        quote_tail(start, out);
    }
    Ok(())
}

/// Any digits that read as the same number will do, so these are ryu's.
fn write_float8(number: f64, out: &mut Vec<u8>) {
    if number.is_finite() {
        out.extend_from_slice(ryu::Buffer::new().format_finite(number).as_bytes());
        return;
    }
    let start = out.len();
    super::number::write_float8(number, out);
    quote_tail(start, out);
}

fn write_without_backslashes(
    ty: &ColumnType,
    wire: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), ValueError> {
    let start = out.len();
    write_text(ty, wire, out)?;
    let mut kept = start;
    for index in start..out.len() {
        let Some(&byte) = out.get(index) else { break };
        if byte != b'\\' {
            if let Some(place) = out.get_mut(kept) {
                *place = byte;
            }
            kept += 1;
        }
    }
    out.truncate(kept);
    quote_tail(start, out);
    Ok(())
}

fn write_xsd(wire: [u8; 8], zone: &'static [u8], out: &mut Vec<u8>) {
    out.push(b'"');
    write_moment(&Moment::from_wire(wire), MomentStyle { separator: b'T', zone }, out);
    out.push(b'"');
}

/// The object of npm's `postgres-interval`. It leaves out fields that are zero, and all fields of an
/// infinite interval.
fn write_interval_object(interval: &Interval, out: &mut Vec<u8>) {
    out.push(b'{');
    if interval.infinity().is_none() {
        let start = out.len();
        let seconds = interval.microseconds / 1_000_000;
        let fields = [
            ("\"years\":", i64::from(interval.months / 12)),
            ("\"months\":", i64::from(interval.months % 12)),
            ("\"days\":", i64::from(interval.days)),
            ("\"hours\":", seconds / 3600),
            ("\"minutes\":", seconds / 60 % 60),
            ("\"seconds\":", seconds % 60),
        ];
        let comma = |out: &mut Vec<u8>| {
            if out.len() > start {
                out.push(b',');
            }
        };
        for (name, count) in fields.into_iter().filter(|(_, count)| *count != 0) {
            comma(out);
            out.extend_from_slice(name.as_bytes());
            write_integer(count, out);
        }
        let fraction = interval.microseconds % 1_000_000;
        if fraction != 0 {
            comma(out);
            out.extend_from_slice(b"\"milliseconds\":");
            if fraction < 0 {
                out.push(b'-');
            }
            write_integer(fraction.abs() / 1000, out);
            write_fraction(fraction.abs() % 1000 * 1000, out);
        }
    }
    out.push(b'}');
}

fn write_buffer(wire: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(b"{\"type\":\"Buffer\",\"data\":[");
    for (index, byte) in wire.iter().enumerate() {
        if index > 0 {
            out.push(b',');
        }
        write_integer(*byte, out);
    }
    out.extend_from_slice(b"]}");
}

fn write_point(
    wire: &[u8],
    [open, between, close]: [&[u8]; 3],
    out: &mut Vec<u8>,
) -> Result<(), ValueError> {
    let [x, y] = point(wire)?;
    out.extend_from_slice(open);
    write_js_float8(x, out);
    out.extend_from_slice(between);
    write_js_float8(y, out);
    out.extend_from_slice(close);
    Ok(())
}

fn write_json(
    place: JsonText,
    numbers: Numbers,
    wire: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), ValueError> {
    let text = match place {
        JsonText::Json => wire,
        JsonText::Jsonb => jsonb(wire)?,
        JsonText::Text => return document::write_checked(wire, out),
    };
    match numbers {
        Numbers::AsTheyAre => document::write_as_it_is(text, out),
        Numbers::Js => document::write_js(text, out),
        Numbers::Drizzle => document::write_drizzle(text, out),
    }
}
