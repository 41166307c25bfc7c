//! Which node of a cluster serves which slot.

use std::sync::Arc;

use redis::Value;

use crate::adapter::ConnectError;
use crate::adapter::redis::link::{Access, Link};
use crate::adapter::redis::server::Server;
use crate::domain::server_url::Endpoint;
use crate::domain::slots::{SLOTS, Slots};

/// A node of the cluster.
#[derive(Debug)]
pub(super) struct Node {
    /// Where it is.
    pub(super) endpoint: Endpoint,
    /// The connections to it.
    pub(super) server: Server,
}

impl Node {
    /// A node at this address; it is not connected yet.
    pub(super) fn new(access: &Access, endpoint: Endpoint) -> Result<Self, ConnectError> {
        let server = Server::new(Link::to(access, &endpoint)?);
        Ok(Self { endpoint, server })
    }
}

/// The slots, each with the primary that serves it.
#[derive(Clone, Debug)]
pub(super) struct SlotMap {
    /// Tells it from the maps before it; it changes with the owner of any slot.
    pub(super) version: u8,
    /// The primaries that serve slots, in the order of their first slots.
    pub(super) primaries: Vec<Arc<Node>>,
    /// For each slot, the position of its owner among the primaries.
    owners: Box<[Option<u16>]>,
}

/// A range of slots with its primary, as a node names them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SlotRange {
    first: u16,
    last: u16,
    primary: Endpoint,
}

impl SlotMap {
    /// The map of these ranges. `node` finds or makes the node at an address.
    pub(super) fn new(
        ranges: &[SlotRange],
        version: u8,
        mut node: impl FnMut(&Endpoint) -> Result<Arc<Node>, ConnectError>,
    ) -> Result<Self, ConnectError> {
        let owners = vec![None; usize::from(SLOTS)].into_boxed_slice();
        let mut map = Self { version, primaries: Vec::new(), owners };
        let mut ranges: Vec<_> = ranges.iter().collect();
        ranges.sort_by_key(|range| range.first);
        for SlotRange { first, last, primary } in ranges {
            let owner = map.position(primary, &mut node)?;
            let range = usize::from(*first)..=usize::from(*last);
            if let Some(owners) = map.owners.get_mut(range) {
                owners.fill(Some(owner));
            }
        }
        Ok(map)
    }

    fn position(
        &mut self,
        endpoint: &Endpoint,
        node: &mut impl FnMut(&Endpoint) -> Result<Arc<Node>, ConnectError>,
    ) -> Result<u16, ConnectError> {
        let found = self.primaries.iter().position(|primary| primary.endpoint == *endpoint);
        let position = if let Some(position) = found {
            position
        } else {
            self.primaries.push(node(endpoint)?);
            self.primaries.len() - 1
        };
        // There are fewer primaries than slots.
        Ok(u16::try_from(position).unwrap_or(u16::MAX))
    }

    /// The primary that serves a slot; `None` if no node does.
    pub(super) fn owner(&self, slot: u16) -> Option<&Arc<Node>> {
        self.primaries.get(self.position_of(slot)?)
    }

    /// The position of the primary that serves a slot.
    pub(super) fn position_of(&self, slot: u16) -> Option<usize> {
        self.owners.get(usize::from(slot)).copied().flatten().map(usize::from)
    }

    /// The slots of each primary.
    pub(super) fn slots(&self) -> Vec<Slots> {
        let mut all = vec![Slots::default(); self.primaries.len()];
        for slot in 0..SLOTS {
            if let Some(slots) = self.position_of(slot).and_then(|position| all.get_mut(position)) {
                slots.insert(slot);
            }
        }
        all
    }

    /// The same map, but this slot belongs to that node.
    pub(super) fn with(mut self, slot: u16, node: &Arc<Node>) -> Self {
        let known = |_: &Endpoint| Ok(Arc::clone(node));
        if let Ok(owner) = self.position(&node.endpoint, &mut { known })
            && let Some(place) = self.owners.get_mut(usize::from(slot))
        {
            *place = Some(owner);
        }
        self
    }

    /// Whether each slot has the same owner as in another map.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        let endpoint = |map: &Self, slot| map.owner(slot).map(|node| node.endpoint.clone());
        let names = |map: &Self| -> Vec<Endpoint> {
            map.primaries.iter().map(|node| node.endpoint.clone()).collect()
        };
        if names(self) == names(other) {
            return self.owners == other.owners;
        }
        (0..SLOTS).all(|slot| endpoint(self, slot) == endpoint(other, slot))
    }
}

/// The ranges in the reply to `CLUSTER SLOTS`. A node that does not know its own name is at the
/// address of the node that answered. Ranges whose primary has no known address are left out.
pub(super) fn ranges(reply: &Value, answered: &Endpoint) -> Option<Vec<SlotRange>> {
    let Value::Array(ranges) = reply else { return None };
    let number = |value: &Value| redis::from_redis_value_ref::<u16>(value).ok();
    let mut all = Vec::with_capacity(ranges.len());
    for range in ranges {
        let Value::Array(parts) = range else { return None };
        let [first, last, Value::Array(primary), ..] = parts.as_slice() else { return None };
        let [host, port, ..] = primary.as_slice() else { return None };
        let (first, last, port) = (number(first)?, number(last)?, number(port)?);
        if first > last || last >= SLOTS {
            return None;
        }
        if let Some(host) = host_of(host, answered) {
            all.push(SlotRange { first, last, primary: Endpoint { host, port } });
        }
    }
    Some(all)
}

fn host_of(host: &Value, answered: &Endpoint) -> Option<String> {
    let host: Option<String> = redis::from_redis_value_ref(host).ok()?;
    match host.as_deref() {
        None | Some("") => Some(answered.host.clone()),
        Some("?") => None,
        Some(host) => Some(host.to_owned()),
    }
}

/// The address in a redirection, such as `10.0.0.7:6381` or `:6381`, which is at the host of the
/// node that answered.
pub(super) fn redirected(address: &str, answered: &Endpoint) -> Option<Endpoint> {
    let (host, port) = address.rsplit_once(':')?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let host = if host.is_empty() { &answered.host } else { host };
    Some(Endpoint { host: host.to_owned(), port: port.parse().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(host: &str, port: u16) -> Endpoint {
        Endpoint { host: host.to_owned(), port }
    }

    fn text(text: &str) -> Value {
        Value::BulkString(text.as_bytes().to_vec())
    }

    fn range(first: i64, last: i64, host: Value) -> Value {
        let node = Value::Array(vec![host, Value::Int(7000), text("id")]);
        let replica = Value::Array(vec![text("10.0.0.9"), Value::Int(7009), text("id")]);
        Value::Array(vec![Value::Int(first), Value::Int(last), node, replica])
    }

    #[test]
    fn the_reply_names_primaries_also_by_the_address_of_whoever_answered() {
        let asked = at("seed", 6379);
        let reply = Value::Array(vec![
            range(0, 99, text("10.0.0.1")),
            range(100, 199, Value::Nil),
            range(200, 299, text("")),
            range(300, 399, text("?")),
        ]);
        let found = ranges(&reply, &asked).unwrap();
        let found: Vec<_> =
            found.iter().map(|range| (range.first, range.primary.clone())).collect();
        assert_eq!(
            found,
            [(0, at("10.0.0.1", 7000)), (100, at("seed", 7000)), (200, at("seed", 7000))]
        );
        assert_eq!(ranges(&Value::Array(Vec::new()), &asked), Some(Vec::new()));
        for odd in [Value::Nil, Value::Array(vec![Value::Int(1)])] {
            assert_eq!(ranges(&odd, &asked), None);
        }
        let reply = Value::Array(vec![range(0, 16_384, text("a"))]);
        assert_eq!(ranges(&reply, &asked), None, "there is no such slot");
    }

    #[test]
    fn a_redirection_names_an_address() {
        let asked = at("seed", 6379);
        let cases = [
            ("10.0.0.7:6381", Some(at("10.0.0.7", 6381))),
            ("::1:6381", Some(at("::1", 6381))),
            ("[::1]:6381", Some(at("::1", 6381))),
            ("node-1.cache:6379", Some(at("node-1.cache", 6379))),
            (":6381", Some(at("seed", 6381))),
            ("10.0.0.7", None),
            ("10.0.0.7:no", None),
        ];
        for (address, expected) in cases {
            assert_eq!(redirected(address, &asked), expected, "{address}");
        }
    }
}
