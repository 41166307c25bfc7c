//! Numbers in the text form of Postgres, and in JSON.

use std::io::Write as _;

use super::calendar::four;
use super::wire::{ValueError, Wire};

/// The kind of a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A finite number, whose text is also a JSON number.
    Finite,
    /// `NaN`, `Infinity` or `-Infinity`.
    Special,
}

pub(super) fn write_integer(number: impl itoa::Integer, out: &mut Vec<u8>) {
    out.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
}

/// The text of a `numeric`, from its digits in base 10,000 (`numeric_send`, `get_str_from_var`).
pub(super) fn write_numeric(bytes: &[u8], out: &mut Vec<u8>) -> Result<Kind, ValueError> {
    const NEGATIVE: u16 = 0x4000;
    let mut wire = Wire::new(bytes);
    let count = wire.u16()?;
    let weight = i32::from(wire.i16()?);
    let sign = wire.u16()?;
    let mut scale = usize::from(wire.u16()?);
    let special: &[u8] = match sign {
        0 | NEGATIVE => b"",
        0xC000 => b"NaN",
        0xD000 => b"Infinity",
        0xF000 => b"-Infinity",
        _ => return Err(ValueError::Malformed),
    };
    let (digits, odd) = wire.rest().as_chunks::<2>();
    if digits.len() != usize::from(count) || !odd.is_empty() {
        return Err(ValueError::Malformed);
    }
    if !special.is_empty() {
        out.extend_from_slice(special);
        return Ok(Kind::Special);
    }
    // JSON allows no zero at the front of a number.
    if digits.first().map_or(weight != 0, |first| *first == [0, 0]) {
        return Err(ValueError::Malformed);
    }
    let group = |index: i32| -> Result<[u8; 4], ValueError> {
        let digit = usize::try_from(index).ok().and_then(|index| digits.get(index));
        let digit = digit.map_or(0, |pair| u16::from_be_bytes(*pair));
        if digit > 9999 {
            return Err(ValueError::Malformed);
        }
        Ok(four(i64::from(digit)))
    };
    if sign == NEGATIVE {
        out.push(b'-');
    }
    if weight < 0 {
        out.push(b'0');
    } else {
        let first = group(0)?;
        let zeros = first.iter().take(3).take_while(|digit| **digit == b'0').count();
        out.extend_from_slice(first.get(zeros..).unwrap_or_default());
        for index in 1..=weight {
            out.extend_from_slice(&group(index)?);
        }
    }
    if scale > 0 {
        out.push(b'.');
    }
    let mut index = weight + 1;
    while scale > 0 {
        let digits = scale.min(4);
        out.extend_from_slice(group(index)?.get(..digits).unwrap_or_default());
        scale -= digits;
        index += 1;
    }
    Ok(Kind::Finite)
}

/// Like [`write_numeric`], but writes `null` for values that are not JavaScript numbers in JSON.
pub(super) fn write_js_numeric(bytes: &[u8], out: &mut Vec<u8>) -> Result<(), ValueError> {
    let start = out.len();
    match write_numeric(bytes, out)? {
        Kind::Finite => mend_js_number(start, out),
        Kind::Special => {
            out.truncate(start);
            out.extend_from_slice(b"null");
        }
    }
    Ok(())
}

/// Changes the JSON number at the end of `out` if `JSON.stringify(JSON.parse(…))` makes another value
/// of it: a number that is too large becomes Infinity and thus `null`, and minus zero becomes zero.
pub(super) fn mend_js_number(start: usize, out: &mut Vec<u8>) {
    if let Some(mended) = out.get(start..).and_then(mended_js_number) {
        out.truncate(start);
        out.extend_from_slice(mended);
    }
}

/// The JSON that `JSON.stringify(JSON.parse(…))` makes of a number; `None` if it is the same value.
pub(super) fn mended_js_number(number: &[u8]) -> Option<&'static [u8]> {
    /// A number with fewer digits can be neither too large nor too small for a double.
    const ORDINARY: usize = 300;
    let zero = |number: &[u8]| {
        number
            .iter()
            .take_while(|byte| !byte.eq_ignore_ascii_case(&b'e'))
            .all(|byte| !(b'1'..=b'9').contains(byte))
    };
    let negative = number.first() == Some(&b'-');
    let exponent = || number.iter().any(|byte| byte.eq_ignore_ascii_case(&b'e'));
    if number.len() <= ORDINARY && !exponent() {
        return (negative && zero(number)).then_some(b"0");
    }
    let value: f64 = str::from_utf8(number).ok()?.parse().ok()?;
    if value.is_infinite() {
        return Some(b"null");
    }
    (negative && value == 0.0).then_some(b"0")
}

/// A `float8` as a JSON number: `null` for NaN and the infinities, and zero for minus zero.
pub(super) fn write_js_float8(number: f64, out: &mut Vec<u8>) {
    if number == 0.0 {
        out.push(b'0');
    } else if number.is_finite() {
        out.extend_from_slice(ryu::Buffer::new().format_finite(number).as_bytes());
    } else {
        out.extend_from_slice(b"null");
    }
}

/// A `float4`, like [`write_js_float8`]. Its digits are Postgres' digits, because JavaScript reads that
/// text.
pub(super) fn write_js_float4(number: f32, out: &mut Vec<u8>) {
    if number == 0.0 {
        out.push(b'0');
    } else if number.is_finite() {
        write_float4(number, out);
    } else {
        out.extend_from_slice(b"null");
    }
}

/// The text of a `float8`.
pub(super) fn write_float8(number: f64, out: &mut Vec<u8>) -> Kind {
    if write_special(number, out) {
        return Kind::Special;
    }
    let bits = number.to_bits();
    let parts = Binary::new(bits & ((1 << 52) - 1), (bits >> 52) & 0x7FF, 52, 1075);
    let mut digits = Digits::read(ryu::Buffer::new().format_finite(number.abs()));
    digits.make_strict(&parts, 17, |text| text.parse() == Ok(number.abs()), number.abs());
    digits.write(number.is_sign_negative(), 15, out);
    Kind::Finite
}

/// The text of a `float4`.
pub(super) fn write_float4(number: f32, out: &mut Vec<u8>) -> Kind {
    if write_special(f64::from(number), out) {
        return Kind::Special;
    }
    let bits = u64::from(number.to_bits());
    let parts = Binary::new(bits & ((1 << 23) - 1), (bits >> 23) & 0xFF, 23, 150);
    let mut digits = Digits::read(ryu::Buffer::new().format_finite(number.abs()));
    digits.make_strict(&parts, 9, |text| text.parse() == Ok(number.abs()), f64::from(number.abs()));
    digits.write(number.is_sign_negative(), 6, out);
    Kind::Finite
}

fn write_special(number: f64, out: &mut Vec<u8>) -> bool {
    if number.is_nan() {
        out.extend_from_slice(b"NaN");
    } else if number.is_infinite() {
        out.extend_from_slice(if number > 0.0 { b"Infinity" } else { b"-Infinity" });
    }
    !number.is_finite()
}

/// A positive float: `mantissa × 2^exponent`.
struct Binary {
    mantissa: u64,
    exponent: i32,
    /// The next lower float is only half as far away as the next higher one.
    is_power_of_two: bool,
}

impl Binary {
    #[expect(clippy::cast_possible_truncation, reason = "an exponent has at most eleven bits")]
    fn new(fraction: u64, exponent: u64, fraction_bits: u32, bias: i32) -> Self {
        let hidden = u64::from(exponent != 0) << fraction_bits;
        Self {
            mantissa: fraction | hidden,
            exponent: exponent.max(1) as i32 - bias,
            is_power_of_two: fraction == 0 && exponent > 1,
        }
    }

    /// Whether a decimal is exactly in the middle between this float and a neighbour.
    fn has_boundary(&self, decimal: u64, exponent: i32) -> bool {
        let above = (2 * self.mantissa + 1, self.exponent - 1);
        let below = if self.is_power_of_two {
            (4 * self.mantissa - 1, self.exponent - 2)
        } else {
            ((2 * self.mantissa).saturating_sub(1), self.exponent - 1)
        };
        [above, below].iter().any(|(odd, power)| equals(decimal, exponent, *odd, *power))
    }
}

/// Whether `decimal × 10^exponent == odd × 2^power`, for an odd `odd`.
fn equals(decimal: u64, exponent: i32, odd: u64, power: i32) -> bool {
    if decimal == 0 {
        return false;
    }
    let twos = decimal.trailing_zeros();
    let Some(fives) = 5_u128.checked_pow(exponent.unsigned_abs()) else { return false };
    let (left, right) = (u128::from(decimal >> twos), u128::from(odd));
    let (left, right) = if exponent >= 0 {
        (left.checked_mul(fives), Some(right))
    } else {
        (Some(left), right.checked_mul(fives))
    };
    left.is_some() && left == right && i32::try_from(twos) == Ok(power - exponent)
}

/// Decimal digits: `0.d₁d₂d₃… × 10^point`.
struct Digits {
    digits: [u8; 17],
    count: usize,
    point: i32,
}

impl Digits {
    /// Reads the digits of a positive number from its text by Rust or ryu.
    fn read(text: &str) -> Self {
        let (mantissa, exponent) = text.split_once('e').unwrap_or((text, "0"));
        let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
        let mut this = Self { digits: [b'0'; 17], count: 0, point: exponent.parse().unwrap_or(0) };
        let mut seen = false;
        for (digit, whole) in
            whole.bytes().map(|digit| (digit, 1)).chain(fraction.bytes().map(|digit| (digit, 0)))
        {
            seen |= digit != b'0';
            if seen {
                if let Some(place) = this.digits.get_mut(this.count) {
                    *place = digit;
                    this.count += 1;
                }
                this.point += whole;
            } else {
                this.point -= 1 - whole;
            }
        }
        while this.count > 0 && this.digits.get(this.count - 1) == Some(&b'0') {
            this.count -= 1;
        }
        this
    }

    fn significant(&self) -> &[u8] {
        self.digits.get(..self.count).unwrap_or_default()
    }

    /// The digits as an integer, and the power of ten by which to multiply it.
    fn scaled(&self) -> (u64, i32) {
        let number = self.significant().iter().fold(0, |n, digit| n * 10 + u64::from(digit - b'0'));
        (number, self.point - i32::try_from(self.count).unwrap_or_default())
    }

    /// Postgres takes the shortest digits that are strictly between the middles to both neighbours.
    /// Those of ryu may be exactly on a middle (see `STRICTLY_SHORTEST` in Postgres' `d2s.c`). Then
    /// more digits are needed.
    fn make_strict(
        &mut self,
        parts: &Binary,
        most: usize,
        reads_back: impl Fn(&str) -> bool,
        number: f64,
    ) {
        let (decimal, exponent) = self.scaled();
        if !parts.mantissa.is_multiple_of(2) || !parts.has_boundary(decimal, exponent) {
            return;
        }
        for count in self.count + 1..=most {
            let mut buffer = [0_u8; 32];
            let mut rest = buffer.as_mut_slice();
            if write!(rest, "{number:.0$e}", count - 1).is_err() {
                return;
            }
            let length = 32 - rest.len();
            let text = str::from_utf8(buffer.get(..length).unwrap_or_default()).unwrap_or_default();
            let candidate = Self::read(text);
            let (decimal, exponent) = candidate.scaled();
            if reads_back(text) && !parts.has_boundary(decimal, exponent) {
                *self = candidate;
                return;
            }
        }
    }

    /// Writes like `%g` with this precision, which decides when it uses an exponent.
    fn write(&self, negative: bool, precision: i32, out: &mut Vec<u8>) {
        if negative {
            out.push(b'-');
        }
        if self.count == 0 {
            out.push(b'0');
            return;
        }
        let digits = self.significant();
        let exponent = self.point - 1;
        if !(-4..precision).contains(&exponent) {
            let (first, others) = digits.split_at_checked(1).unwrap_or_default();
            out.extend_from_slice(first);
            if !others.is_empty() {
                out.push(b'.');
                out.extend_from_slice(others);
            }
            out.extend_from_slice(if exponent < 0 { b"e-" } else { b"e+" });
            if exponent.abs() < 10 {
                out.push(b'0');
            }
            write_integer(exponent.abs(), out);
            return;
        }
        let zeros = |out: &mut Vec<u8>, count: i32| {
            out.extend(std::iter::repeat_n(b'0', usize::try_from(count).unwrap_or_default()));
        };
        let whole = usize::try_from(self.point).unwrap_or_default();
        if let Some((before, after)) = digits.split_at_checked(whole) {
            out.extend_from_slice(if before.is_empty() { b"0" } else { before });
            if !after.is_empty() {
                out.push(b'.');
                zeros(out, -self.point);
                out.extend_from_slice(after);
            }
        } else {
            out.extend_from_slice(digits);
            zeros(out, exponent + 1 - i32::try_from(self.count).unwrap_or_default());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The binary format of a decimal with all its digits (`set_var_from_str`).
    fn numeric(text: &str) -> Vec<u8> {
        let (sign, digits) = text.strip_prefix('-').map_or((0, text), |digits| (0x4000, digits));
        let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
        let padded_whole = format!("{}{whole}", "0".repeat((4 - whole.len() % 4) % 4));
        let padded =
            format!("{padded_whole}{fraction}{}", "0".repeat((4 - fraction.len() % 4) % 4));
        let mut groups: Vec<u16> = padded
            .as_bytes()
            .chunks(4)
            .map(|group| str::from_utf8(group).unwrap().parse().unwrap())
            .collect();
        let mut weight = i16::try_from(padded_whole.len() / 4).unwrap() - 1;
        while groups.first() == Some(&0) {
            groups.remove(0);
            weight -= 1;
        }
        while groups.last() == Some(&0) {
            groups.pop();
        }
        let count = u16::try_from(groups.len()).unwrap();
        let scale = u16::try_from(fraction.len()).unwrap();
        let weight = if groups.is_empty() { 0 } else { weight };
        let head = [count, weight.cast_unsigned(), sign, scale];
        head.iter().chain(&groups).flat_map(|part| part.to_be_bytes()).collect()
    }

    fn text(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    proptest! {
        #[test]
        fn a_numeric_has_the_digits_that_it_was_made_of(
            decimal in "-?(0|[1-9][0-9]{0,30})(\\.[0-9]{1,30})?",
        ) {
            let written = text(|out| assert_eq!(write_numeric(&numeric(&decimal), out), Ok(Kind::Finite)));
            prop_assert_eq!(written, decimal);
        }

        #[test]
        fn hostile_numerics_are_refused_or_written(bytes in prop::collection::vec(any::<u8>(), 0..40)) {
            let mut out = Vec::new();
            if write_js_numeric(&bytes, &mut out).is_ok() {
                serde_json::from_slice::<serde::de::IgnoredAny>(&out).unwrap();
            }
        }

        #[test]
        fn floats_come_back_as_they_were(bits: u64) {
            let float8 = f64::from_bits(bits);
            prop_assume!(float8.is_finite());
            prop_assert_eq!(text(|out| { write_float8(float8, out); }).parse(), Ok(float8));
            let float4 = f32::from_bits((bits >> 32) as u32);
            prop_assume!(float4.is_finite());
            prop_assert_eq!(text(|out| { write_float4(float4, out); }).parse(), Ok(float4));
        }
    }

    #[test]
    fn floats_look_as_postgres_prints_them() {
        let cases = [
            (0.0, "0"),
            (-0.0, "-0"),
            (1.0, "1"),
            (0.0001, "0.0001"),
            (0.000_01, "1e-05"),
            (123_456_789_012_345.0, "123456789012345"),
            (1e15, "1e+15"),
            (-1.5e300, "-1.5e+300"),
            (5e-324, "5e-324"),
            (f64::NAN, "NaN"),
            (f64::NEG_INFINITY, "-Infinity"),
        ];
        for (number, expected) in cases {
            assert_eq!(
                text(|out| {
                    write_float8(number, out);
                }),
                expected
            );
        }
        // The shortest digits, 3.355445e7, are just as near to the neighbour.
        assert_eq!(
            text(|out| {
                write_float4(33_554_448.0, out);
            }),
            "3.3554448e+07"
        );
    }

    #[test]
    fn numbers_that_javascript_cannot_hold_become_what_it_makes_of_them() {
        let cases: [(&str, Option<&str>); 12] = [
            ("0", None),
            ("-0", Some("0")),
            ("-0.000", Some("0")),
            ("-0e5", Some("0")),
            ("-0.10", None),
            ("-10", None),
            ("1e400", Some("null")),
            ("-1E400", Some("null")),
            ("1e308", None),
            ("-1e-400", Some("0")),
            ("1e-400", None),
            ("12345678901234567890", None),
        ];
        for (number, expected) in cases {
            let mended = mended_js_number(number.as_bytes());
            assert_eq!(mended, expected.map(str::as_bytes), "{number}");
        }
        assert_eq!(mended_js_number("9".repeat(309).as_bytes()), Some(&b"null"[..]));
        assert_eq!(mended_js_number("9".repeat(308).as_bytes()), None);
    }
}
