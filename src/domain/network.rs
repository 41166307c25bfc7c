//! Where a worker is in its network, as settings write it: ranges of addresses such as `10.0.0.0/8`, and
//! the path that a proxy gives it.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// A range of IP addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    /// How many leading bits of an address have to be the same.
    bits: u8,
}

/// A text is no range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an IP address, or a range such as `10.0.0.0/8`")]
pub struct NoNetwork;

impl Network {
    /// Whether the address is in the range. An IPv4 address is the same when it is written as IPv6.
    pub fn contains(&self, address: IpAddr) -> bool {
        let (own, other) = (bits_of(self.address), bits_of(address.to_canonical()));
        let differ = match (own, other) {
            ((own, 32), (other, 32)) | ((own, 128), (other, 128)) => own ^ other,
            _ => return false,
        };
        differ.checked_shr(u32::from(own.1 - self.bits)).is_none_or(|left| left == 0)
    }
}

/// The bits of an address, and how many there are.
fn bits_of(address: IpAddr) -> (u128, u8) {
    match address {
        IpAddr::V4(address) => (u128::from(u32::from(address)), 32),
        IpAddr::V6(address) => (u128::from(address), 128),
    }
}

impl FromStr for Network {
    type Err = NoNetwork;

    fn from_str(text: &str) -> Result<Self, NoNetwork> {
        let (address, bits) = match text.split_once('/') {
            Some((address, bits)) => (address, Some(bits)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_no_address| NoNetwork)?;
        let most = bits_of(address).1;
        let bits = match bits {
            Some(bits) => bits.parse().ok().filter(|bits| *bits <= most).ok_or(NoNetwork)?,
            None => most,
        };
        Ok(Self { address, bits })
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { address, bits } = self;
        if *bits == bits_of(*address).1 { address.fmt(f) } else { write!(f, "{address}/{bits}") }
    }
}

/// Whether a text can be a base path: empty, or segments that need no escapes.
pub fn is_base_path(text: &str) -> bool {
    let is_plain = |char: char| char.is_ascii_alphanumeric() || "-._~".contains(char);
    let is_segment =
        |segment: &str| !matches!(segment, "" | "." | "..") && segment.chars().all(is_plain);
    let segments = || text.strip_prefix('/').map(|path| path.split('/').all(is_segment));
    text.is_empty() || segments().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_has_the_addresses_that_begin_like_it() {
        for (range, inside, outside) in [
            ("10.0.0.0/8", "10.255.3.4", "11.0.0.0"),
            ("10.1.2.3", "10.1.2.3", "10.1.2.4"),
            ("10.1.2.3/31", "10.1.2.2", "10.1.2.4"),
            ("10.0.0.0/8", "::ffff:10.0.0.1", "::ffff:11.0.0.1"),
            ("::1", "::1", "::2"),
            ("fd00::/8", "fdff::1", "fe00::1"),
            ("0.0.0.0/0", "9.9.9.9", "::1"),
            ("::/0", "fe80::1", "1.2.3.4"),
        ] {
            let network: Network = range.parse().unwrap();
            assert!(network.contains(inside.parse().unwrap()), "{inside} in {range}");
            assert!(!network.contains(outside.parse().unwrap()), "{outside} in {range}");
            assert_eq!(network.to_string(), range);
        }
        for wrong in ["", "10.0.0", "10.0.0.0/33", "::1/129", "10.0.0.0/", "a/8", "10.0.0.0/-1"] {
            assert_eq!(wrong.parse::<Network>(), Err(NoNetwork), "{wrong}");
        }
    }

    #[test]
    fn a_base_path_needs_no_escapes() {
        for right in ["", "/preheat", "/a/b-c_d.e~f"] {
            assert!(is_base_path(right), "{right}");
        }
        for wrong in ["/", "preheat", "/a/", "//a", "/a b", "/%41", "/..", "/a/../b", "/ä"] {
            assert!(!is_base_path(wrong), "{wrong}");
        }
    }
}
