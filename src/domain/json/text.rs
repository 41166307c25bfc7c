//! Postgres' own text of a value, made from its binary format: with `DateStyle` ISO, `IntervalStyle`
//! postgres and the time zone UTC.

use super::calendar::{
    DAY, Date, Moment, MomentStyle, write_date, write_fraction, write_moment, write_time,
    write_zone,
};
use super::column_type::ColumnType;
use super::nested::{ArrayText, write_array, write_range_text};
use super::number::{Kind, write_float4, write_float8, write_integer, write_numeric};
use super::string::hex;
use super::wire::{ValueError, Wire, exact, jsonb, utf8};

/// How Postgres writes moments in its text output.
const PLAIN: MomentStyle = MomentStyle { separator: b' ', zone: b"" };
const ZONED: MomentStyle = MomentStyle { separator: b' ', zone: b"+00" };

/// Appends Postgres' own text of a value that is not NULL: the text that `psql` shows if its time zone
/// is UTC. Keys contain this text, and the codec `string` writes it.
///
/// If the bytes are not a value of the type, nothing is appended.
pub fn write_text(ty: &ColumnType, wire: &[u8], out: &mut Vec<u8>) -> Result<(), ValueError> {
    let start = out.len();
    let written = append(ty, wire, out);
    if written.is_err() {
        out.truncate(start);
    }
    written
}

fn append(ty: &ColumnType, wire: &[u8], out: &mut Vec<u8>) -> Result<(), ValueError> {
    match ty {
        ColumnType::Bool => out.push(if boolean(wire)? { b't' } else { b'f' }),
        ColumnType::Int2 => write_integer(i16::from_be_bytes(exact(wire)?), out),
        ColumnType::Int4 => write_integer(i32::from_be_bytes(exact(wire)?), out),
        ColumnType::Int8 => write_integer(i64::from_be_bytes(exact(wire)?), out),
        ColumnType::Oid => write_integer(u32::from_be_bytes(exact(wire)?), out),
        ColumnType::Float4 => drop_kind(write_float4(f32::from_be_bytes(exact(wire)?), out)),
        ColumnType::Float8 => drop_kind(write_float8(f64::from_be_bytes(exact(wire)?), out)),
        ColumnType::Numeric => drop_kind(write_numeric(wire, out)?),
        ColumnType::Text
        | ColumnType::Varchar
        | ColumnType::Bpchar
        | ColumnType::Name
        | ColumnType::Citext
        | ColumnType::Enum
        | ColumnType::Xml
        | ColumnType::Json => out.extend_from_slice(utf8(wire)?.as_bytes()),
        ColumnType::Jsonb => out.extend_from_slice(utf8(jsonb(wire)?)?.as_bytes()),
        ColumnType::Char => write_char(exact(wire)?, out),
        ColumnType::Uuid => out.extend_from_slice(&uuid(exact(wire)?)),
        ColumnType::Date => write_date(&Date::from_wire(exact(wire)?), out),
        ColumnType::Time => write_time(time_of_day(i64::from_be_bytes(exact(wire)?))?, out),
        ColumnType::Timetz => write_timetz(wire, out)?,
        ColumnType::Timestamp => write_moment(&Moment::from_wire(exact(wire)?), PLAIN, out),
        ColumnType::Timestamptz => write_moment(&Moment::from_wire(exact(wire)?), ZONED, out),
        ColumnType::Interval => Interval::from_wire(wire)?.write_text(out),
        ColumnType::Bytea => write_bytea(wire, out),
        ColumnType::Inet | ColumnType::Cidr => write_address(wire, out)?,
        ColumnType::Macaddr => write_mac(&exact::<6>(wire)?, out),
        ColumnType::Macaddr8 => write_mac(&exact::<8>(wire)?, out),
        ColumnType::Bit | ColumnType::Varbit => write_bits(wire, out)?,
        ColumnType::Point => {
            let [x, y] = point(wire)?;
            out.push(b'(');
            write_float8(x, out);
            out.push(b',');
            write_float8(y, out);
            out.push(b')');
        }
        ColumnType::Array(element) => write_array(wire, &mut ArrayText { element }, out)?,
        ColumnType::Range(subtype) => write_range_text(subtype, wire, out)?,
        ColumnType::Domain(base) => append(base, wire, out)?,
        ColumnType::Unsupported(_) => return Err(ValueError::NoCodec),
    }
    Ok(())
}

/// A text may be `NaN` or `Infinity`, so the kind of the number does not matter.
fn drop_kind(_kind: Kind) {}

pub(super) fn boolean(wire: &[u8]) -> Result<bool, ValueError> {
    match wire {
        [0] => Ok(false),
        [1] => Ok(true),
        _ => Err(ValueError::Malformed),
    }
}

/// `8-4-4-4-12` hexadecimal digits in lower case.
#[expect(clippy::many_single_char_names, reason = "the bytes of a uuid have no names")]
pub(super) fn uuid(bytes: [u8; 16]) -> [u8; 36] {
    let mut text = [b'-'; 36];
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = bytes.map(hex);
    let mut place = |start: usize, digits: &[[u8; 2]]| {
        if let Some(place) = text.get_mut(start..start + 2 * digits.len()) {
            place.copy_from_slice(digits.as_flattened());
        }
    };
    place(0, &[a, b, c, d]);
    place(9, &[e, f]);
    place(14, &[g, h]);
    place(19, &[i, j]);
    place(24, &[k, l, m, n, o, p]);
    text
}

pub(super) fn point(wire: &[u8]) -> Result<[f64; 2], ValueError> {
    let mut wire = Wire::new(wire);
    let point = [f64::from_be_bytes(wire.take()?), f64::from_be_bytes(wire.take()?)];
    wire.end()?;
    Ok(point)
}

/// An `interval`: three separate fields, none of which carries over into another.
pub(super) struct Interval {
    pub(super) microseconds: i64,
    pub(super) days: i32,
    pub(super) months: i32,
}

impl Interval {
    pub(super) fn from_wire(wire: &[u8]) -> Result<Self, ValueError> {
        let mut wire = Wire::new(wire);
        let this = Self { microseconds: wire.i64()?, days: wire.i32()?, months: wire.i32()? };
        wire.end()?;
        Ok(this)
    }

    /// The text of an infinite interval, which exists since Postgres 17; `None` for a finite one.
    pub(super) fn infinity(&self) -> Option<&'static [u8]> {
        match (self.microseconds, self.days, self.months) {
            (i64::MAX, i32::MAX, i32::MAX) => Some(b"infinity"),
            (i64::MIN, i32::MIN, i32::MIN) => Some(b"-infinity"),
            _ => None,
        }
    }

    /// `EncodeInterval` in the style `postgres`: a positive field after a negative one gets a plus.
    fn write_text(&self, out: &mut Vec<u8>) {
        if let Some(infinity) = self.infinity() {
            out.extend_from_slice(infinity);
            return;
        }
        let start = out.len();
        let mut after_negative = false;
        let fields = [(self.months / 12, "year"), (self.months % 12, "mon"), (self.days, "day")];
        for (count, unit) in fields.into_iter().filter(|(count, _)| *count != 0) {
            if out.len() > start {
                out.push(b' ');
            }
            if after_negative && count > 0 {
                out.push(b'+');
            }
            write_integer(count, out);
            out.push(b' ');
            out.extend_from_slice(unit.as_bytes());
            if count != 1 {
                out.push(b's');
            }
            after_negative = count < 0;
        }
        if self.microseconds == 0 && out.len() > start {
            return;
        }
        if out.len() > start {
            out.push(b' ');
        }
        if self.microseconds < 0 {
            out.push(b'-');
        } else if after_negative {
            out.push(b'+');
        }
        self.write_clock(out);
    }

    fn write_clock(&self, out: &mut Vec<u8>) {
        let distance = self.microseconds.unsigned_abs();
        let seconds = distance / 1_000_000;
        let hours = seconds / 3600;
        if hours < 10 {
            out.push(b'0');
        }
        write_integer(hours, out);
        for part in [seconds / 60 % 60, seconds % 60] {
            out.push(b':');
            if part < 10 {
                out.push(b'0');
            }
            write_integer(part, out);
        }
        write_fraction(i64::try_from(distance % 1_000_000).unwrap_or_default(), out);
    }
}

fn time_of_day(microseconds: i64) -> Result<i64, ValueError> {
    if (0..=DAY).contains(&microseconds) { Ok(microseconds) } else { Err(ValueError::Malformed) }
}

fn write_timetz(wire: &[u8], out: &mut Vec<u8>) -> Result<(), ValueError> {
    let mut wire = Wire::new(wire);
    let time = time_of_day(wire.i64()?)?;
    let west = i64::from(wire.i32()?);
    wire.end()?;
    write_time(time, out);
    write_zone(-west, out);
    Ok(())
}

/// `charout`: nothing for zero, an octal escape for bytes that are not ASCII.
fn write_char([byte]: [u8; 1], out: &mut Vec<u8>) {
    match byte {
        0 => {}
        1..0x80 => out.push(byte),
        0x80.. => {
            let octal = [byte >> 6, byte >> 3 & 7, byte & 7].map(|digit| b'0' + digit);
            out.push(b'\\');
            out.extend_from_slice(&octal);
        }
    }
}

fn write_bytea(wire: &[u8], out: &mut Vec<u8>) {
    out.reserve(2 + 2 * wire.len());
    out.extend_from_slice(b"\\x");
    out.extend(wire.iter().flat_map(|byte| hex(*byte)));
}

fn write_mac(bytes: &[u8], out: &mut Vec<u8>) {
    for (index, byte) in bytes.iter().enumerate() {
        if index > 0 {
            out.push(b':');
        }
        out.extend_from_slice(&hex(*byte));
    }
}

fn write_bits(wire: &[u8], out: &mut Vec<u8>) -> Result<(), ValueError> {
    let mut wire = Wire::new(wire);
    let count = usize::try_from(wire.i32()?).or(Err(ValueError::Malformed))?;
    let bytes = wire.rest();
    if bytes.len() != count.div_ceil(8) {
        return Err(ValueError::Malformed);
    }
    let bits = bytes.iter().flat_map(|byte| (0..8).rev().map(move |bit| b'0' + (byte >> bit & 1)));
    out.extend(bits.take(count));
    Ok(())
}

/// An `inet` or `cidr`: family, bits of the mask, whether it is a `cidr`, length, bytes.
fn write_address(wire: &[u8], out: &mut Vec<u8>) -> Result<(), ValueError> {
    let mut wire = Wire::new(wire);
    let [family, bits, is_cidr, length] = wire.take()?;
    let most = match (family, length) {
        (2, 4) => {
            write_ipv4(exact(wire.rest())?, out);
            32
        }
        (3, 16) => {
            write_ipv6(exact(wire.rest())?, out);
            128
        }
        _ => return Err(ValueError::Malformed),
    };
    if bits > most || is_cidr > 1 {
        return Err(ValueError::Malformed);
    }
    if is_cidr == 1 || bits < most {
        out.push(b'/');
        write_integer(bits, out);
    }
    Ok(())
}

fn write_ipv4(bytes: [u8; 4], out: &mut Vec<u8>) {
    for (index, byte) in bytes.into_iter().enumerate() {
        if index > 0 {
            out.push(b'.');
        }
        write_integer(byte, out);
    }
}

/// Like Postgres' `inet_net_ntop_ipv6`: the longest run of at least two zero words becomes `::`, and an
/// embedded IPv4 address keeps its form.
fn write_ipv6(bytes: [u8; 16], out: &mut Vec<u8>) {
    let number = u128::from_be_bytes(bytes);
    #[expect(clippy::cast_possible_truncation, reason = "a word is the lowest sixteen bits")]
    let words: [u16; 8] = std::array::from_fn(|index| (number >> (112 - 16 * index)) as u16);
    let (mut best, mut run) = (0..0, 0..0);
    for (index, word) in words.into_iter().enumerate() {
        if word != 0 {
            run = index + 1..index + 1;
            continue;
        }
        run.end = index + 1;
        if run.len() >= 2 && run.len() > best.len() {
            best = run.clone();
        }
    }
    let [.., sixth, _, last] = words;
    let has_ipv4 = best.start == 0
        && (best.end == 6 || best.end == 7 && last != 1 || best.end == 5 && sixth == 0xFFFF);
    for (index, word) in words.into_iter().enumerate() {
        if best.contains(&index) {
            if index == best.start {
                out.push(b':');
            }
            continue;
        }
        if index > 0 {
            out.push(b':');
        }
        if index == 6 && has_ipv4 {
            let [.., a, b, c, d] = bytes;
            write_ipv4([a, b, c, d], out);
            return;
        }
        let digits = word.to_be_bytes().map(hex);
        let digits = digits.as_flattened();
        let zeros = digits.iter().take(3).take_while(|digit| **digit == b'0').count();
        out.extend_from_slice(digits.get(zeros..).unwrap_or_default());
    }
    if best.end == 8 {
        out.push(b':');
    }
}
