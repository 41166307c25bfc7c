//! Order keys: bytes whose order is Postgres' order of the values.
//!
//! Each value has a form that no other value's form begins with, so that the forms of several columns
//! can stand one after the other in one key. `desc` inverts a form's bytes.

use super::{Direction, Nulls, OrderColumn, quoted, quoted_in_sql};
use crate::domain::json::wire::{Wire, exact};
use crate::domain::json::{ColumnType, ValueError};

/// How the values of one column of a query are compared.
#[derive(Clone, Debug)]
pub struct Comparison {
    form: Form,
    is_text: bool,
    direction: Direction,
    nulls: Nulls,
}

/// Why rows cannot be ordered by a column.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotComparable {
    /// preheat knows no order of the column's type.
    #[error("rows cannot be ordered by the column `{name}`, which is {ty}")]
    Type {
        /// The column.
        name: String,
        /// Its type.
        ty: String,
    },
    /// The order of an enum's labels is known to the server only.
    #[error("rows cannot be ordered by the column `{name}`, which is {ty}")]
    Enum {
        /// The column.
        name: String,
        /// Its type.
        ty: String,
    },
    /// The entry has `collate C`, and the column holds no text.
    #[error("`collate C` is for text, and the column `{name}` is {ty}")]
    NoText {
        /// The column.
        name: String,
        /// Its type.
        ty: String,
    },
}

impl NotComparable {
    /// What to do about it.
    pub fn hint(&self) -> String {
        match self {
            Self::Type { .. } => {
                "take it out of `order` and sort in the SQL, or cast it in the query to a type that \
                 preheat can order: a number, a time, a uuid or text"
                    .to_owned()
            }
            Self::Enum { name, .. } => {
                let (column, position) = (quoted_in_sql(name), format!("{name}_order"));
                format!(
                    "let the query return `array_position(enum_range({column}), {column}) as {}`, \
                     order by `{}`, and name it in `encode.omit`",
                    quoted_in_sql(&position),
                    quoted(&position)
                )
            }
            Self::NoText { .. } => "leave out `collate C`".to_owned(),
        }
    }
}

impl Comparison {
    /// How an entry of `query.order` compares the values of a column of this type.
    pub fn new(column: &OrderColumn, ty: &ColumnType) -> Result<Self, NotComparable> {
        let (name, base) = (column.name().to_owned(), ty.base());
        let Some(form) = form(base) else {
            let ty = ty.to_string();
            return Err(if *base == ColumnType::Enum {
                NotComparable::Enum { name, ty }
            } else {
                NotComparable::Type { name, ty }
            });
        };
        let is_text = is_text(base);
        if column.is_by_bytes() && !is_text {
            return Err(NotComparable::NoText { name, ty: ty.to_string() });
        }
        Ok(Self { form, is_text, direction: column.direction, nulls: column.nulls })
    }

    /// Whether the column holds text, whose order depends on a collation.
    pub fn is_of_text(&self) -> bool {
        self.is_text
    }

    /// Appends the order key of a value in Postgres' binary format; `None` is NULL.
    ///
    /// If the bytes are not a value of the type, nothing is appended.
    pub fn append(&self, value: Option<&[u8]>, out: &mut Vec<u8>) -> Result<(), ValueError> {
        const VALUE: u8 = 1;
        let Some(wire) = value else {
            out.push(match self.nulls {
                Nulls::First => VALUE - 1,
                Nulls::Last => VALUE + 1,
            });
            return Ok(());
        };
        let start = out.len();
        out.push(VALUE);
        if let Err(error) = (self.form)(wire, out) {
            out.truncate(start);
            return Err(error);
        }
        match self.direction {
            Direction::Ascending => {}
            Direction::Descending => invert(out, start + 1),
        }
        Ok(())
    }
}

fn invert(out: &mut [u8], start: usize) {
    for byte in out.iter_mut().skip(start) {
        *byte = !*byte;
    }
}

fn is_text(ty: &ColumnType) -> bool {
    matches!(ty, ColumnType::Text | ColumnType::Varchar | ColumnType::Bpchar | ColumnType::Name)
}

/// Appends a value's form.
type Form = fn(&[u8], &mut Vec<u8>) -> Result<(), ValueError>;

/// The form of a type's values; `None` if preheat knows no order of the type.
fn form(ty: &ColumnType) -> Option<Form> {
    Some(match ty {
        ColumnType::Bool | ColumnType::Char => append_as_it_is::<1>,
        ColumnType::Oid => append_as_it_is::<4>,
        ColumnType::Macaddr => append_as_it_is::<6>,
        ColumnType::Macaddr8 => append_as_it_is::<8>,
        ColumnType::Uuid => append_as_it_is::<16>,
        // The infinities of dates and moments are the type's least and greatest number.
        ColumnType::Int2 => append_number::<2>,
        ColumnType::Int4 | ColumnType::Date => append_number::<4>,
        ColumnType::Int8 | ColumnType::Time | ColumnType::Timestamp | ColumnType::Timestamptz => {
            append_number::<8>
        }
        ColumnType::Float4 => append_float4,
        ColumnType::Float8 => append_float8,
        ColumnType::Numeric => append_numeric,
        ColumnType::Text | ColumnType::Varchar | ColumnType::Name | ColumnType::Bytea => {
            append_bytes
        }
        ColumnType::Bpchar => append_bpchar,
        ColumnType::Timetz => append_timetz,
        ColumnType::Interval => append_interval,
        ColumnType::Inet | ColumnType::Cidr => append_address,
        // The order of an enum's labels is not on the wire, and `citext` has rules of its own.
        ColumnType::Citext
        | ColumnType::Enum
        | ColumnType::Xml
        | ColumnType::Json
        | ColumnType::Jsonb
        | ColumnType::Bit
        | ColumnType::Varbit
        | ColumnType::Point
        | ColumnType::Array(_)
        | ColumnType::Range(_)
        | ColumnType::Domain(_)
        | ColumnType::Unsupported(_) => return None,
    })
}

/// The bytes on the wire have the type's order.
fn append_as_it_is<const N: usize>(wire: &[u8], out: &mut Vec<u8>) -> Result<(), ValueError> {
    out.extend(exact::<N>(wire)?);
    Ok(())
}

fn append_number<const N: usize>(wire: &[u8], out: &mut Vec<u8>) -> Result<(), ValueError> {
    out.extend(signed(exact::<N>(wire)?));
    Ok(())
}

/// A number in two's complement with its sign inverted, so that negative numbers come first.
fn signed<const N: usize>(mut bytes: [u8; N]) -> [u8; N] {
    if let Some(first) = bytes.first_mut() {
        *first ^= 0x80;
    }
    bytes
}

fn append_float4(wire: &[u8], out: &mut Vec<u8>) -> Result<(), ValueError> {
    append_float(f32::from_be_bytes(exact(wire)?).into(), out);
    Ok(())
}

fn append_float8(wire: &[u8], out: &mut Vec<u8>) -> Result<(), ValueError> {
    append_float(f64::from_be_bytes(exact(wire)?), out);
    Ok(())
}

/// NaN is greater than infinity, and both zeros are equal (`float8_cmp_internal`).
fn append_float(number: f64, out: &mut Vec<u8>) {
    const SIGN: u64 = 1 << 63;
    let bits = if number == 0.0 { 0 } else { number.to_bits() };
    let ordered = match () {
        () if number.is_nan() => u64::MAX,
        () if bits & SIGN == 0 => bits | SIGN,
        () => !bits,
    };
    out.extend(ordered.to_be_bytes());
}

/// The sign, the weight of the first digit and the digits in base 10,000, without zeros at the end:
/// equal numbers with different scales have equal keys.
fn append_numeric(wire: &[u8], out: &mut Vec<u8>) -> Result<(), ValueError> {
    const POSITIVE: u16 = 0;
    const NEGATIVE: u16 = 0x4000;
    let mut wire = Wire::new(wire);
    let count = wire.u16()?;
    let weight = wire.take::<2>()?;
    let sign = wire.u16()?;
    let _scale = wire.u16()?;
    let (digits, odd) = wire.rest().as_chunks::<2>();
    if digits.len() != usize::from(count) || !odd.is_empty() {
        return Err(ValueError::Malformed);
    }
    let zeros = digits.iter().rev().take_while(|digit| **digit == [0, 0]).count();
    let digits = digits.get(..digits.len() - zeros).unwrap_or_default();
    out.push(match sign {
        0xF000 => 0,
        POSITIVE | NEGATIVE if digits.is_empty() => 2,
        NEGATIVE => 1,
        POSITIVE => 3,
        0xD000 => 4,
        0xC000 => 5,
        _ => return Err(ValueError::Malformed),
    });
    let start = out.len();
    if sign == POSITIVE || sign == NEGATIVE {
        if digits.first() == Some(&[0, 0]) {
            return Err(ValueError::Malformed);
        }
        if !digits.is_empty() {
            out.extend(signed(weight));
        }
        // A digit is at most 9,999, so one more than it is never the end's zero.
        out.extend(
            digits
                .iter()
                .flat_map(|digit| u16::from_be_bytes(*digit).saturating_add(1).to_be_bytes()),
        );
        out.extend([0, 0]);
    }
    if sign == NEGATIVE {
        invert(out, start);
    }
    Ok(())
}

/// The bytes, and two zeros as their end; a zero within them is followed by a one.
#[expect(clippy::unnecessary_wraps, reason = "other forms refuse bytes, and all are of one type")]
fn append_bytes(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), ValueError> {
    for (index, piece) in bytes.split(|byte| *byte == 0).enumerate() {
        if index > 0 {
            out.extend([0, 1]);
        }
        out.extend_from_slice(piece);
    }
    out.extend([0, 0]);
    Ok(())
}

/// The blanks at the end of a `char(n)` do not count.
fn append_bpchar(wire: &[u8], out: &mut Vec<u8>) -> Result<(), ValueError> {
    let blanks = wire.iter().rev().take_while(|byte| **byte == b' ').count();
    append_bytes(wire.get(..wire.len() - blanks).unwrap_or_default(), out)
}

/// The moment of the day in UTC, and for equal moments the zone (`timetz_cmp_internal`).
fn append_timetz(wire: &[u8], out: &mut Vec<u8>) -> Result<(), ValueError> {
    let mut wire = Wire::new(wire);
    let (time, west) = (wire.i64()?, wire.i32()?);
    wire.end()?;
    let moment = time.saturating_add(i64::from(west) * 1_000_000);
    out.extend(signed(moment.to_be_bytes()));
    out.extend(signed(west.to_be_bytes()));
    Ok(())
}

/// The length with months of 30 days and days of 24 hours (`interval_cmp_value`). An infinite interval
/// has the greatest or the least number in each field, and so the greatest or the least length.
fn append_interval(wire: &[u8], out: &mut Vec<u8>) -> Result<(), ValueError> {
    const DAY: i128 = 86_400_000_000;
    let mut wire = Wire::new(wire);
    let (microseconds, days, months) = (wire.i64()?, wire.i32()?, wire.i32()?);
    wire.end()?;
    let days = i128::from(months) * 30 + i128::from(days);
    let length = i128::from(microseconds) + days * DAY;
    out.extend(signed(length.to_be_bytes()));
    Ok(())
}

/// The family, the bits of the network, and the whole address: a network comes before the networks
/// within it (`network_cmp_internal`).
fn append_address(wire: &[u8], out: &mut Vec<u8>) -> Result<(), ValueError> {
    let mut wire = Wire::new(wire);
    let [family, bits, _is_cidr, length] = wire.take()?;
    let address = wire.rest();
    let bits = usize::from(bits);
    if address.len() != usize::from(length) || bits > 8 * address.len() || address.len() > 16 {
        return Err(ValueError::Malformed);
    }
    out.push(family);
    let all = address.iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1));
    // One byte a bit, and an end that is smaller than both.
    out.extend(all.take(bits).map(|bit| bit + 1).chain([0]));
    out.extend_from_slice(address);
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(entry: &str, ty: &ColumnType, value: Option<&[u8]>) -> Vec<u8> {
        let comparison = Comparison::new(&OrderColumn::parse(entry).unwrap(), ty).unwrap();
        let mut out = Vec::new();
        comparison.append(value, &mut out).unwrap();
        out
    }

    #[test]
    fn a_shorter_text_comes_first_and_last_if_the_order_is_descending() {
        let of = |entry, text: &str| key(entry, &ColumnType::Text, Some(text.as_bytes()));
        // The next column's key must not decide before the text's end does.
        let with_next = |entry, text, next: u8| [of(entry, text), vec![next]].concat();
        assert!(with_next("a", "ab", 255) < with_next("a", "abc", 0));
        assert!(with_next("a desc", "ab", 0) > with_next("a desc", "abc", 255));
        assert!(of("a", "") < of("a", "\u{1}"));
    }

    #[test]
    fn nulls_are_where_postgres_puts_them_unless_the_entry_says_where() {
        let cases =
            [("a", false), ("a desc", true), ("a nulls first", true), ("a desc nulls last", false)];
        for (entry, is_first) in cases {
            let null = key(entry, &ColumnType::Int4, None);
            for value in [i32::MIN, 0, i32::MAX] {
                let value = key(entry, &ColumnType::Int4, Some(&value.to_be_bytes()));
                assert_eq!(null < value, is_first, "{entry}");
            }
        }
    }

    #[test]
    fn types_without_an_order_are_refused_and_so_is_a_collation_without_text() {
        let new =
            |entry, ty: &ColumnType| Comparison::new(&OrderColumn::parse(entry).unwrap(), ty).err();
        let domain = |ty| ColumnType::Domain(Box::new(ty));
        for ty in [ColumnType::Jsonb, domain(ColumnType::Citext)] {
            assert!(matches!(new("a", &ty), Some(NotComparable::Type { .. })));
        }
        assert!(matches!(new("a", &ColumnType::Enum), Some(NotComparable::Enum { .. })));
        assert_eq!(new("a collate C", &domain(ColumnType::Bpchar)), None);
        let refused = new("a collate C", &ColumnType::Int8);
        assert!(matches!(refused, Some(NotComparable::NoText { .. })));
    }

    proptest! {
        #[test]
        fn bytes_keep_their_order(one: Vec<u8>, other: Vec<u8>) {
            let of = |entry, bytes: &[u8]| key(entry, &ColumnType::Bytea, Some(bytes));
            prop_assert_eq!(of("a", &one).cmp(&of("a", &other)), one.cmp(&other));
            prop_assert_eq!(of("a desc", &one).cmp(&of("a desc", &other)), other.cmp(&one));
        }

        #[test]
        fn any_bytes_are_a_value_or_refused(wire: Vec<u8>) {
            for ty in [ColumnType::Numeric, ColumnType::Interval, ColumnType::Inet] {
                let entry = OrderColumn::parse("a desc").unwrap();
                let mut out = vec![7];
                let done = Comparison::new(&entry, &ty).unwrap().append(Some(&wire), &mut out);
                prop_assert_eq!(done.is_ok(), out.len() > 1);
            }
        }
    }
}
