//! A Redis Cluster: each command goes to the node that serves its key's slot.
//!
//! The client's own cluster connection repeats whole pipelines after a redirection and hides the
//! replies in between. Here every reply is read by itself, and only the commands that a node
//! redirected are sent again.

mod cursor;
mod map;
mod processes;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::future::{join_all, try_join_all};
use futures::stream::FuturesUnordered;
use redis::{Cmd, Value};

use super::link::Access;
use super::reply::{self, Failed, Reply};
use super::server::{Commands, OnBreak, Part, Role};
use super::slot::slot;
use crate::adapter::ConnectError;
use crate::domain::server_url::Endpoint;
use crate::domain::slots::{Extent, Slots};
use crate::engine::ports::{CacheError, CacheErrorKind, CacheStats, Slice};
use cursor::Cursor;
use map::{Node, SlotMap, SlotRange, ranges, redirected};
use processes::Processes;

/// How often a command is sent: a slot may move again while a redirection is followed.
const MOST_ROUNDS: u32 = 6;

/// The wait before a command is sent again to nodes that do not agree yet; each further wait is
/// twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(10);

/// How many primaries, and how many nodes of the URL, are asked for the slots at once: most nodes
/// can answer, and the first answer will do.
const MOST_ASKED: usize = 4;

/// How many nodes are remembered that serve no slot yet.
const MOST_OTHERS: usize = 64;

/// The nodes of a cluster, and who serves which slot.
pub(super) struct Cluster {
    access: Access,
    name: String,
    /// The nodes that the URL names.
    seeds: Vec<Arc<Node>>,
    known: Mutex<Known>,
    processes: Mutex<Processes>,
    redirections: AtomicU64,
}

#[derive(Default)]
struct Known {
    map: Option<Arc<SlotMap>>,
    /// Nodes that slots are moving to, and that serve none yet.
    others: Vec<Arc<Node>>,
    /// Whether the map may be wrong.
    is_stale: bool,
    /// How many questions for the slots were asked.
    asked: u64,
    /// The number of the question whose answer the map is.
    answered: u64,
}

/// A command that is not done yet.
struct Open {
    index: usize,
    /// The node that asks to be asked for this command alone, while the slot is moving to it.
    asking: Option<Arc<Node>>,
}

/// The commands for one node.
struct ForNode {
    node: Arc<Node>,
    parts: Vec<Part>,
}

/// What to do after a reply.
enum Next {
    /// Nothing: the reply is the caller's.
    Done,
    /// Send the command to the slot's new owner.
    Moved(u16, Arc<Node>),
    /// Send this command alone to the node that the slot is moving to.
    Ask(Arc<Node>),
    /// Send the command again a little later.
    Later,
}

impl Cluster {
    /// A cluster with these nodes and others. It does not connect yet.
    pub(super) fn new(
        access: Access,
        nodes: &[Endpoint],
        name: String,
    ) -> Result<Self, ConnectError> {
        let seed = |endpoint: &Endpoint| Ok(Arc::new(Node::new(&access, endpoint.clone())?));
        let seeds = nodes.iter().map(seed).collect::<Result<_, ConnectError>>()?;
        let (known, processes, redirections) =
            (Mutex::default(), Mutex::default(), AtomicU64::new(0));
        Ok(Self { access, name, seeds, known, processes, redirections })
    }

    /// The addresses in the URL, for messages.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Connects to every primary, to see whether it is ready.
    pub(super) async fn reach(&self) -> Result<(), ConnectError> {
        let map = self.refresh().await.map_err(ConnectError::from)?;
        try_join_all(map.primaries.iter().map(|node| node.server.reach())).await.map(drop)
    }

    /// The position of the primary that serves a key; 0 while that is not known. Keys with equal
    /// positions are on the same server.
    pub(super) fn server_of(&self, key: &[u8]) -> usize {
        let known = self.known();
        known.map.as_ref().and_then(|map| map.position_of(slot(key))).unwrap_or_default()
    }

    /// What may be lost since its [`CacheStats::process`] was another.
    pub(super) fn lost_between(&self, before: u64, now: u64) -> Extent {
        self.processes().lost_between(before, now)
    }

    /// How many commands were redirected so far.
    pub(super) fn redirections(&self) -> u64 {
        self.redirections.load(Ordering::Relaxed)
    }

    /// Sends commands and reads all replies, which come in the order of the commands. The nodes are
    /// asked side by side, each with one pipeline after the other. A command that was redirected is
    /// sent again, after those before it; commands on one key keep their order.
    pub(super) async fn each(
        &self,
        role: Role,
        on_break: OnBreak,
        commands: &dyn Commands,
    ) -> Vec<Reply> {
        let unsent = |_| Err(Failed::Lost(self.redirected_too_often()));
        let mut replies: Vec<Reply> = (0..commands.len()).map(unsent).collect();
        let mut open: Vec<Open> =
            (0..commands.len()).map(|index| Open { index, asking: None }).collect();
        for round in 0..MOST_ROUNDS {
            let divided = match self.map().await {
                Ok(map) => self.divide(&open, &map, commands, &mut replies),
                Err(error) => {
                    for Open { index, .. } in open {
                        lose(&mut replies, index, &error);
                    }
                    break;
                }
            };
            let answers = divided
                .iter()
                .map(|ForNode { node, parts }| node.server.each(role, on_break, commands, parts));
            let answers = join_all(answers).await;
            let redirected = self.keep(&divided, answers, &mut replies);
            open = redirected.open;
            if open.is_empty() {
                break;
            }
            self.follow(redirected.moved).await;
            if redirected.is_later || round > 0 {
                tokio::time::sleep(FIRST_PAUSE * 2_u32.pow(round)).await;
            }
        }
        replies
    }

    /// Divides commands among the nodes. Those of a slot that no node serves are lost.
    fn divide(
        &self,
        open: &[Open],
        map: &SlotMap,
        commands: &dyn Commands,
        replies: &mut [Reply],
    ) -> Vec<ForNode> {
        let mut all: Vec<ForNode> = Vec::new();
        let mut places: HashMap<*const Node, usize> = HashMap::new();
        for Open { index, asking } in open {
            let slot = commands.slot(*index);
            let Some(node) = asking.as_ref().or_else(|| map.owner(slot)) else {
                self.doubt();
                lose(replies, *index, &self.unserved(slot));
                continue;
            };
            let place = *places.entry(Arc::as_ptr(node)).or_insert_with(|| {
                all.push(ForNode { node: Arc::clone(node), parts: Vec::new() });
                all.len() - 1
            });
            if let Some(of_node) = all.get_mut(place) {
                of_node.parts.push(Part { index: *index, is_asking: asking.is_some() });
            }
        }
        all
    }

    /// Keeps the replies that are final; returns the commands that are to be sent again.
    fn keep(
        &self,
        sent: &[ForNode],
        answers: Vec<Vec<Reply>>,
        replies: &mut [Reply],
    ) -> Redirected {
        let mut redirected = Redirected::default();
        for (ForNode { node, parts }, answers) in sent.iter().zip(answers) {
            for (Part { index, .. }, reply) in parts.iter().zip(answers) {
                let (index, mut asking) = (*index, None);
                match self.next(node, &reply) {
                    Next::Done => {
                        if let Some(place) = replies.get_mut(index) {
                            *place = reply;
                        }
                        continue;
                    }
                    Next::Moved(slot, owner) => redirected.moved.push((slot, owner)),
                    Next::Ask(target) => asking = Some(target),
                    Next::Later => redirected.is_later = true,
                }
                redirected.open.push(Open { index, asking });
            }
        }
        redirected.open.sort_unstable_by_key(|open| open.index);
        redirected
    }

    fn next(&self, node: &Node, reply: &Reply) -> Next {
        let error = match reply {
            Ok(_) => return Next::Done,
            Err(Failed::Lost(_)) => {
                self.doubt();
                return Next::Done;
            }
            Err(Failed::Refused(error)) => error,
        };
        let code = error.code().unwrap_or_default();
        if code == "TRYAGAIN" {
            return Next::Later;
        }
        if code == "CLUSTERDOWN" || code == "MASTERDOWN" {
            self.doubt();
        }
        let Some((address, slot)) = error.redirect_node() else { return Next::Done };
        let target = redirected(address, &node.endpoint);
        let Some(Ok(target)) = target.map(|endpoint| self.node_at(endpoint)) else {
            return Next::Done;
        };
        self.redirections.fetch_add(1, Ordering::Relaxed);
        if code == "ASK" { Next::Ask(target) } else { Next::Moved(slot, target) }
    }

    /// The node at an address, which the map may not have.
    fn node_at(&self, endpoint: Endpoint) -> Result<Arc<Node>, ConnectError> {
        let mut known = self.known();
        let primaries = known.map.iter().flat_map(|map| &map.primaries);
        let mut nodes = primaries.chain(&known.others).chain(&self.seeds);
        if let Some(node) = nodes.find(|node| node.endpoint == endpoint) {
            return Ok(Arc::clone(node));
        }
        let node = Arc::new(Node::new(&self.access, endpoint)?);
        if known.others.len() >= MOST_OTHERS {
            known.others.clear();
        }
        known.others.push(Arc::clone(&node));
        Ok(node)
    }

    /// Takes up what redirections said about slots. The nodes may not agree yet: what the owner
    /// before says of its slot counts.
    async fn follow(&self, moved: Vec<(u16, Arc<Node>)>) {
        if moved.is_empty() {
            return;
        }
        // If that fails, the redirections tell enough.
        let _map = self.refresh().await;
        let mut known = self.known();
        let Some(before) = known.map.clone() else { return };
        let mut map = SlotMap::clone(&before);
        for (slot, owner) in &moved {
            map = map.with(*slot, owner);
        }
        known.take(map);
    }
}

/// Which node serves which slot.
impl Cluster {
    /// The slots as they are known; asks for them if that is not certain.
    async fn map(&self) -> Result<Arc<SlotMap>, CacheError> {
        let certain = {
            let known = self.known();
            known.map.clone().filter(|_| !known.is_stale)
        };
        match certain {
            Some(map) => Ok(map),
            None => self.refresh().await,
        }
    }

    /// Asks some nodes for the slots. The first answer of a node that has contact with the others
    /// is taken: a node that was cut off names owners of yesterday.
    async fn refresh(&self) -> Result<Arc<SlotMap>, CacheError> {
        let (question, nodes) = {
            let mut known = self.known();
            known.asked += 1;
            known.is_stale = false;
            (known.asked, self.nodes_to_ask(&known))
        };
        let mut asked: FuturesUnordered<_> = nodes.iter().map(|node| look(node)).collect();
        let mut best: Option<Result<View, CacheError>> = None;
        while let Some(answer) = asked.next().await {
            let is_ok = answer.as_ref().is_ok_and(|view| view.is_ok);
            if is_ok || !best.as_ref().is_some_and(Result::is_ok) {
                best = Some(answer);
            }
            if is_ok {
                break;
            }
        }
        let view = best.unwrap_or_else(|| Err(self.unserved(0)));
        let learned = view.and_then(|view| self.learn(question, &view.ranges));
        if learned.is_err() {
            self.doubt();
        }
        learned
    }

    /// Some of the primaries and some of the URL's nodes; others at the next question.
    fn nodes_to_ask(&self, known: &Known) -> Vec<Arc<Node>> {
        let primaries = known.map.as_ref().map(|map| map.primaries.as_slice()).unwrap_or_default();
        let mut nodes: Vec<Arc<Node>> = Vec::new();
        for some in [primaries, &self.seeds] {
            let start = usize::try_from(known.asked).unwrap_or_default() % some.len().max(1);
            let in_turn = some.iter().cycle().skip(start).take(some.len());
            let new = in_turn.filter(|node| !nodes.iter().any(|one| one.endpoint == node.endpoint));
            let new: Vec<_> = new.take(MOST_ASKED).cloned().collect();
            nodes.extend(new);
        }
        nodes
    }

    fn learn(&self, question: u64, ranges: &[SlotRange]) -> Result<Arc<SlotMap>, CacheError> {
        if ranges.is_empty() {
            return Err(self.unserved(0));
        }
        let mut known = self.known();
        let before = known.map.clone();
        // A later question was answered sooner.
        if let Some(map) = before.as_ref().filter(|_| question < known.answered) {
            return Ok(Arc::clone(map));
        }
        let present = before.iter().flat_map(|map| &map.primaries);
        let present: Vec<_> =
            present.chain(&known.others).chain(&self.seeds).map(Arc::clone).collect();
        let node = |endpoint: &Endpoint| match present.iter().find(|one| one.endpoint == *endpoint)
        {
            Some(node) => Ok(Arc::clone(node)),
            None => Node::new(&self.access, endpoint.clone()).map(Arc::new),
        };
        let map = SlotMap::new(ranges, 0, node).map_err(|error| CacheError {
            kind: CacheErrorKind::Refused,
            message: error.message,
        })?;
        known.answered = question;
        Ok(known.take(map))
    }

    /// The next command asks for the slots first.
    fn doubt(&self) {
        self.known().is_stale = true;
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn unserved(&self, slot: u16) -> CacheError {
        let message = format!("no node of the cluster `{}` serves slot {slot}", self.name);
        CacheError { kind: CacheErrorKind::Transient, message }
    }

    fn redirected_too_often(&self) -> CacheError {
        let message = format!("the nodes of the cluster `{}` redirect without end", self.name);
        CacheError { kind: CacheErrorKind::Transient, message }
    }
}

/// Questions to every node.
impl Cluster {
    /// The figures of all primaries together.
    pub(super) async fn stats(&self, sections: &[&str]) -> Result<CacheStats, CacheError> {
        let mut map = self.map().await?;
        let question = self.processes().ask();
        let mut texts = self.infos(&map, sections).await?;
        let is_replica = |text: &String| text.lines().any(|line| line.trim_end() == "role:slave");
        if texts.iter().any(is_replica) {
            map = self.refresh().await?;
            texts = self.infos(&map, sections).await?;
        }
        if texts.iter().any(is_replica) {
            self.doubt();
            let message = format!("a primary of the cluster `{}` became a replica", self.name);
            return Err(CacheError { kind: CacheErrorKind::Transient, message });
        }
        let all: Vec<CacheStats> = texts.iter().map(|text| reply::stats(text)).collect();
        let processes =
            all.iter().zip(map.slots()).map(|(stats, slots)| Some((stats.process?, slots)));
        let processes: Option<BTreeMap<u64, Slots>> = processes.collect();
        let process = processes.map(|now| self.processes().answered(question, now));
        Ok(CacheStats { process, ..sum(&all) })
    }

    async fn infos(&self, map: &SlotMap, sections: &[&str]) -> Result<Vec<String>, CacheError> {
        let sections: Vec<&str> = sections.iter().copied().chain(["replication"]).collect();
        let infos = map.primaries.iter().map(|node| node.server.info(&sections));
        let infos = try_join_all(infos).await;
        if infos.is_err() {
            self.doubt();
        }
        infos
    }

    /// One page of a scan of all primaries, one after the other. `command` makes the `SCAN` from a
    /// node's own cursor.
    pub(super) async fn scan(
        &self,
        cursor: u64,
        command: impl FnOnce(u64) -> Cmd,
    ) -> Result<Slice, CacheError> {
        let (map, at) = if cursor == 0 {
            let map = self.refresh().await?;
            let at = Cursor { version: map.version, node: 0, own: 0 };
            (map, at)
        } else {
            (self.map().await?, Cursor::of(cursor))
        };
        let node = map.primaries.get(usize::from(at.node));
        let node = node.filter(|_| map.version == at.version).ok_or_else(|| self.changed())?;
        let commands = vec![command(at.own)];
        let mut slice = Slice::default();
        for reply in node.server.each_of(&commands).await {
            if reply.as_ref().is_err_and(|failed| matches!(failed, Failed::Lost(_))) {
                self.doubt();
            }
            slice = reply::page(reply?)?;
        }
        let next = if slice.next != 0 {
            Cursor { own: slice.next, ..at }
        } else {
            // Keys of a slot that has moved since may be missing.
            if self.refresh().await?.version != at.version {
                return Err(self.changed());
            }
            if usize::from(at.node) + 1 == map.primaries.len() {
                return Ok(slice);
            }
            Cursor { node: at.node + 1, own: 0, ..at }
        };
        let next = next.number().ok_or_else(|| self.changed())?;
        Ok(Slice { next, ..slice })
    }

    fn processes(&self) -> MutexGuard<'_, Processes> {
        self.processes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) -> CacheError {
        let message = format!(
            "slots of the cluster `{}` moved to other nodes during the scan, which may have missed \
             keys; start it again",
            self.name
        );
        CacheError { kind: CacheErrorKind::Refused, message }
    }
}

impl Known {
    /// Takes a newer map, unless it says the same.
    fn take(&mut self, mut map: SlotMap) -> Arc<SlotMap> {
        if let Some(before) = &self.map {
            if before.is_like(&map) {
                return Arc::clone(before);
            }
            map.version = before.version.wrapping_add(1);
        }
        self.others.clear();
        let map = Arc::new(map);
        self.map = Some(Arc::clone(&map));
        map
    }
}

/// Commands that are to be sent again, in their order.
#[derive(Default)]
struct Redirected {
    open: Vec<Open>,
    /// The slots with their new owners.
    moved: Vec<(u16, Arc<Node>)>,
    is_later: bool,
}

/// What a node says of the cluster.
struct View {
    /// Whether the node has contact with the others.
    is_ok: bool,
    ranges: Vec<SlotRange>,
}

/// Asks a node for the slots.
async fn look(node: &Node) -> Result<View, CacheError> {
    let mut commands = vec![redis::cmd("CLUSTER"), redis::cmd("CLUSTER")];
    for (command, question) in commands.iter_mut().zip(["INFO", "SLOTS"]) {
        command.arg(question);
    }
    let mut replies = node.server.each_of(&commands).await.into_iter();
    let (Some(info), Some(slots)) = (replies.next(), replies.next()) else {
        return Err(reply::unexpected(&Value::Nil));
    };
    // A user may be denied this question, which only helps to choose among answers.
    let is_ok = reply::text(info).map_or(true, |text| text.contains("cluster_state:ok"));
    let slots = slots.map_err(|failed| {
        let hint = match &failed {
            Failed::Refused(error) if reply::is_no_cluster(error) => {
                "; hint: it is no node of a Redis Cluster: write `redis://` in place of \
                 `redis+cluster://`"
            }
            Failed::Refused(_) | Failed::Lost(_) => "",
        };
        let error = CacheError::from(failed);
        CacheError { message: error.message + hint, ..error }
    })?;
    let ranges = ranges(&slots, &node.endpoint).ok_or_else(|| reply::unexpected(&slots))?;
    Ok(View { is_ok, ranges })
}

/// The figures of several servers together. There is a limit of memory only if each has one.
fn sum(all: &[CacheStats]) -> CacheStats {
    let total = |figure: fn(&CacheStats) -> u64| all.iter().map(figure).sum();
    let has_limit = all.iter().all(|stats| stats.maxmemory > 0);
    CacheStats {
        process: None,
        used_memory: total(|stats| stats.used_memory),
        maxmemory: if has_limit { total(|stats| stats.maxmemory) } else { 0 },
        hits: total(|stats| stats.hits),
        misses: total(|stats| stats.misses),
        evicted: total(|stats| stats.evicted),
        keys: all.iter().map(|stats| stats.keys).sum(),
    }
}

fn lose(replies: &mut [Reply], index: usize, error: &CacheError) {
    if let Some(place) = replies.get_mut(index) {
        *place = Err(Failed::Lost(error.clone()));
    }
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").field("name", &self.name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
