//! The slot of a key: the part of a Redis Cluster that the key belongs to.
//!
//! [The specification](https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/):
//! CRC16 of the key, or of its hash tag, modulo the number of slots.

use redis::{Arg, Cmd};

use crate::domain::slots::SLOTS;

/// CRC-16/XMODEM of each byte.
const CRC: [u16; 256] = {
    const POLYNOMIAL: u16 = 0x1021;
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < table.len() {
        #[expect(clippy::cast_possible_truncation, reason = "it is below 256")]
        let mut sum = (byte as u16) << 8;
        let mut bit = 0;
        while bit < 8 {
            let carry = sum & 0x8000 != 0;
            sum <<= 1;
            if carry {
                sum ^= POLYNOMIAL;
            }
            bit += 1;
        }
        #[expect(clippy::indexing_slicing, reason = "the loop ends at the table's length")]
        {
            table[byte] = sum;
        }
        byte += 1;
    }
    table
};

/// The slot of a key.
pub(super) fn slot(key: &[u8]) -> u16 {
    let sum = hashed(key).iter().fold(0_u16, |sum, byte| {
        let [high, low] = sum.to_be_bytes();
        let of_byte = CRC.get(usize::from(high ^ byte)).copied().unwrap_or_default();
        (u16::from(low) << 8) ^ of_byte
    });
    sum % SLOTS
}

/// The part of a key that decides about its slot: what stands between the first `{` and the next
/// `}`, unless that is nothing; else the whole key.
fn hashed(key: &[u8]) -> &[u8] {
    let tag = || {
        let start = key.iter().position(|byte| *byte == b'{')? + 1;
        let rest = key.get(start..)?;
        let end = rest.iter().position(|byte| *byte == b'}')?;
        rest.get(..end).filter(|tag| !tag.is_empty())
    };
    tag().unwrap_or(key)
}

/// The slot of a command's first key. A script's keys follow its text and their number, and those of
/// a read of streams follow a word.
pub(super) fn slot_of(command: &Cmd) -> u16 {
    let mut arguments = command
        .args_iter()
        .map(|argument| if let Arg::Simple(bytes) = argument { bytes } else { b"".as_slice() });
    let name = arguments.next().unwrap_or_default().to_ascii_uppercase();
    let before_key = match name.as_slice() {
        b"EVAL" | b"EVALSHA" => 2,
        b"XREAD" => {
            let is_last_word = |word: &[u8]| word.eq_ignore_ascii_case(b"STREAMS");
            arguments.clone().position(is_last_word).map_or(0, |position| position + 1)
        }
        _ => 0,
    };
    slot(arguments.nth(before_key).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The slots are a server's answers to `CLUSTER KEYSLOT`.
    #[test]
    fn slots_are_those_of_the_server() {
        let cases: [(&str, u16); 10] = [
            ("", 0),
            ("123456789", 12739),
            ("foo", 12182),
            ("{user1000}.following", 3443),
            ("user1000", 3443),
            ("foo{}{bar}", 8363),
            ("foo{{bar}}zap", 4015),
            ("foo{bar}{zap}", 5061),
            ("bar", 5061),
            ("{bar", 4015),
        ];
        for (key, expected) in cases {
            assert_eq!(slot(key.as_bytes()), expected, "{key}");
        }
    }

    #[test]
    fn a_commands_slot_is_that_of_its_first_key() {
        let of = |words: &[&str]| {
            let mut command = redis::cmd(words[0]);
            command.arg(&words[1..]);
            slot_of(&command)
        };
        assert_eq!(of(&["SET", "foo", "bar"]), slot(b"foo"));
        assert_eq!(of(&["EVALSHA", "a0", "1", "foo", "bar"]), slot(b"foo"));
        assert_eq!(of(&["eval", "return 1", "2", "bar", "foo"]), slot(b"bar"));
        assert_eq!(of(&["XREAD", "COUNT", "9", "STREAMS", "foo", "0"]), slot(b"foo"));
        assert_eq!(of(&["PING"]), 0);
    }
}
