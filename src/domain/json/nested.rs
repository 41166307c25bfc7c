//! Arrays and ranges: values that contain other values.

use super::column_type::ColumnType;
use super::string::rewrite_tail;
use super::text::write_text;
use super::wire::{ValueError, Wire};

/// The most dimensions of an array in Postgres (`MAXDIM`).
const MOST_DIMENSIONS: usize = 6;

/// How an array is written.
pub(super) trait ArrayStyle {
    /// The brackets around every dimension.
    const BRACKETS: [u8; 2];

    /// Whether the text begins with the array's bounds if a lower bound is not 1.
    const BOUNDS: bool;

    /// Writes an element, which may be NULL.
    fn element(&mut self, wire: Option<&[u8]>, out: &mut Vec<u8>) -> Result<(), ValueError>;
}

/// Postgres' own text of an array.
pub(super) struct ArrayText<'a> {
    pub(super) element: &'a ColumnType,
}

impl ArrayStyle for ArrayText<'_> {
    const BRACKETS: [u8; 2] = *b"{}";
    const BOUNDS: bool = true;

    fn element(&mut self, wire: Option<&[u8]>, out: &mut Vec<u8>) -> Result<(), ValueError> {
        let Some(wire) = wire else {
            out.extend_from_slice(b"NULL");
            return Ok(());
        };
        let start = out.len();
        write_text(self.element, wire, out)?;
        let text = out.get(start..).unwrap_or_default();
        let special = |byte: &u8| b"\"\\{},".contains(byte) || is_space(*byte);
        if text.is_empty() || text.eq_ignore_ascii_case(b"null") || text.iter().any(special) {
            let escaped = |byte| usize::from(byte == b'"' || byte == b'\\');
            rewrite_tail(start, out, escaped, |byte, place| match place {
                [backslash, itself] => [*backslash, *itself] = [b'\\', byte],
                place => place.fill(byte),
            });
        }
        Ok(())
    }
}

#[derive(Clone, Copy, Default)]
struct Dimension {
    length: usize,
    lower_bound: i32,
}

/// Writes an array of any dimensions.
pub(super) fn write_array<S: ArrayStyle>(
    wire: &[u8],
    style: &mut S,
    out: &mut Vec<u8>,
) -> Result<(), ValueError> {
    let mut wire = Wire::new(wire);
    let count = usize::try_from(wire.i32()?).or(Err(ValueError::Malformed))?;
    let [_flags, _element_oid] = [wire.i32()?, wire.i32()?];
    let mut dimensions = [Dimension::default(); MOST_DIMENSIONS];
    let dimensions = dimensions.get_mut(..count).ok_or(ValueError::Malformed)?;
    for dimension in dimensions.iter_mut() {
        dimension.length = usize::try_from(wire.i32()?).or(Err(ValueError::Malformed))?;
        dimension.lower_bound = wire.i32()?;
    }
    if dimensions.iter().all(|dimension| dimension.length > 0) && count > 0 {
        // Every element takes bytes for its length, so an array cannot have more elements than bytes.
        let elements = dimensions.iter().try_fold(1_usize, |n, dim| n.checked_mul(dim.length));
        if elements.is_none_or(|elements| elements > wire.rest().len() / 4) {
            return Err(ValueError::Malformed);
        }
    } else {
        out.extend_from_slice(&S::BRACKETS);
        return wire.end();
    }
    if S::BOUNDS && dimensions.iter().any(|dimension| dimension.lower_bound != 1) {
        write_bounds(dimensions, out)?;
    }
    write_dimension(dimensions, &mut wire, style, out)?;
    wire.end()
}

fn write_dimension<S: ArrayStyle>(
    dimensions: &[Dimension],
    wire: &mut Wire<'_>,
    style: &mut S,
    out: &mut Vec<u8>,
) -> Result<(), ValueError> {
    let Some((dimension, inner)) = dimensions.split_first() else {
        return style.element(wire.field()?, out);
    };
    let [open, close] = S::BRACKETS;
    out.push(open);
    for index in 0..dimension.length {
        if index > 0 {
            out.push(b',');
        }
        write_dimension(inner, wire, style, out)?;
    }
    out.push(close);
    Ok(())
}

fn write_bounds(dimensions: &[Dimension], out: &mut Vec<u8>) -> Result<(), ValueError> {
    for dimension in dimensions {
        let length = i32::try_from(dimension.length).or(Err(ValueError::Malformed))?;
        let upper = dimension.lower_bound.checked_add(length - 1).ok_or(ValueError::Malformed)?;
        out.push(b'[');
        super::number::write_integer(dimension.lower_bound, out);
        out.push(b':');
        super::number::write_integer(upper, out);
        out.push(b']');
    }
    out.push(b'=');
    Ok(())
}

/// Postgres' text of a range: `[1,5)`, `["2026-01-01 00:00:00",)`, `empty`.
pub(super) fn write_range_text(
    subtype: &ColumnType,
    wire: &[u8],
    out: &mut Vec<u8>,
) -> Result<(), ValueError> {
    const EMPTY: u8 = 0x01;
    const LOWER_INCLUSIVE: u8 = 0x02;
    const UPPER_INCLUSIVE: u8 = 0x04;
    const NO_LOWER: u8 = 0x08 | 0x20;
    const NO_UPPER: u8 = 0x10 | 0x40;
    let mut wire = Wire::new(wire);
    let [flags] = wire.take()?;
    if flags & EMPTY != 0 {
        out.extend_from_slice(b"empty");
        return wire.end();
    }
    out.push(if flags & LOWER_INCLUSIVE != 0 { b'[' } else { b'(' });
    if flags & NO_LOWER == 0 {
        write_bound(subtype, wire.field()?, out)?;
    }
    out.push(b',');
    if flags & NO_UPPER == 0 {
        write_bound(subtype, wire.field()?, out)?;
    }
    out.push(if flags & UPPER_INCLUSIVE != 0 { b']' } else { b')' });
    wire.end()
}

fn write_bound(
    subtype: &ColumnType,
    wire: Option<&[u8]>,
    out: &mut Vec<u8>,
) -> Result<(), ValueError> {
    let start = out.len();
    write_text(subtype, wire.ok_or(ValueError::Malformed)?, out)?;
    let text = out.get(start..).unwrap_or_default();
    let special = |byte: &u8| b"\"\\()[],".contains(byte) || is_space(*byte);
    if text.is_empty() || text.iter().any(special) {
        let doubled = |byte| usize::from(byte == b'"' || byte == b'\\');
        rewrite_tail(start, out, doubled, |byte, place| place.fill(byte));
    }
    Ok(())
}

/// Whether Postgres' parser of arrays takes a byte for white space.
fn is_space(byte: u8) -> bool {
    matches!(byte, b' ' | b'\t' | b'\n' | b'\r' | 0x0B | 0x0C)
}
