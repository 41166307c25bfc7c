//! A simulated fleet: replicas with clocks of their own, a network that delays and loses messages, and a server whose
//! clock is another one. Everything follows from a seed.
//!
//! Each replica does what `engine::tasks::fleet` does, on the same `Membership`.

use std::collections::BTreeMap;
use std::time::Duration;

use preheat::domain::fleet::{
    ANSWER_WITHIN, Beat, LEASE, MARGIN, Membership, RETRY, Release, Standing, View,
};
use preheat::domain::member::MemberId;
use preheat::domain::share::{SHARES, Share, Shares};

use crate::support::dice::Dice;
use crate::support::memory::LeaseServer;

/// What is done wrongly on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sabotage {
    /// Nothing.
    None,
    /// A holder counts on its lease until the very end.
    NoMargin,
    /// A lease counts from its answer.
    CountsFromAnswer,
    /// Shares are handed over while batches for them are in flight.
    HandsOverBusy,
    /// A holder that cannot renew goes on.
    NeverLoses,
}

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

#[derive(Clone, Debug)]
enum Event {
    /// A replica wakes to beat.
    Wake { pause: u64 },
    /// A message arrives at the server.
    Arrives(Question),
    /// The answer to a beat.
    Viewed { question: u64, view: View },
    /// The answer to a release.
    Released { question: u64, done: bool },
    /// A replica stops waiting for an answer.
    TimesOut { question: u64 },
    /// A replica begins a batch, and then the next one.
    Begins,
    /// Batches may have ended.
    Ends,
    /// A suspended replica goes on.
    Resumes,
}

#[derive(Clone, Debug)]
enum Question {
    Beat { question: u64, beat: Beat },
    Release { question: u64, release: Release },
}

/// What a replica waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waits {
    Pause(u64),
    Beat { question: u64, asked_at: Duration },
    Release { question: u64 },
    Gone,
}

pub(super) struct Replica {
    pub(super) id: MemberId,
    machine: Membership,
    /// How fast its monotonic clock goes.
    rate: f64,
    waits: Waits,
    batches: Vec<(Shares, Duration)>,
    suspended_until: Option<Duration>,
    /// Messages are lost until then: of the member, to the member.
    mute_until: Duration,
    deaf_until: Duration,
    is_away: bool,
    is_leaving: bool,
    /// Until when it works on.
    until: Duration,
}

pub(super) struct World {
    pub(super) dice: Dice,
    pub(super) now: Duration,
    pub(super) server: LeaseServer,
    pub(super) replicas: Vec<Replica>,
    sabotage: Sabotage,
    /// How many of the messages, per cent, take long.
    slow_messages: u64,
    events: BTreeMap<(Duration, u64), (usize, Event)>,
    number: u64,
    /// How often a share was taken.
    pub(super) takes: u32,
    /// Since when nobody works for a share, and the longest such time.
    vacant: Shares,
    vacant_since: Vec<Duration>,
    pub(super) longest_vacant: Duration,
    /// What went wrong first.
    pub(super) wrong: Option<String>,
    /// Whether two holders at once are wrong.
    pub(super) is_strict: bool,
}

impl World {
    pub(super) fn new(seed: u64, sabotage: Sabotage) -> Self {
        Self {
            dice: Dice::new(seed),
            now: SECOND * 1_000,
            server: LeaseServer::default(),
            replicas: Vec::new(),
            sabotage,
            slow_messages: 0,
            events: BTreeMap::new(),
            number: 0,
            takes: 0,
            vacant: Shares::NONE,
            vacant_since: vec![Duration::ZERO; usize::from(SHARES)],
            longest_vacant: Duration::ZERO,
            wrong: None,
            is_strict: true,
        }
    }

    pub(super) fn with_slow_messages(mut self, per_cent: u64) -> Self {
        self.slow_messages = per_cent;
        self
    }

    /// A replica starts. It can work at once.
    pub(super) fn join(&mut self) -> usize {
        let id = MemberId::parse(&format!("m{}", self.replicas.len())).unwrap();
        let mut machine = Membership::new(id.clone(), None);
        machine.gets_ready();
        #[expect(clippy::cast_precision_loss, reason = "small numbers")]
        let rate = self.dice.between(95, 106) as f64 / 100.0;
        self.replicas.push(Replica {
            id,
            machine,
            rate,
            waits: Waits::Gone,
            batches: Vec::new(),
            suspended_until: None,
            mute_until: Duration::ZERO,
            deaf_until: Duration::ZERO,
            is_away: true,
            is_leaving: false,
            until: Duration::ZERO,
        });
        let place = self.replicas.len() - 1;
        self.pause(place, Duration::ZERO);
        self.plan(place, MS, Event::Begins);
        place
    }

    pub(super) fn kill(&mut self, place: usize) {
        let replica = &mut self.replicas[place];
        replica.waits = Waits::Gone;
        replica.batches.clear();
        replica.machine.lose();
        self.look();
    }

    /// SIGTERM: the replica finishes its batches and leaves.
    pub(super) fn leave(&mut self, place: usize) {
        self.replicas[place].machine.leaves();
        self.replicas[place].is_leaving = true;
        if let Waits::Pause(_) = self.replicas[place].waits {
            self.pause(place, Duration::ZERO);
        }
    }

    /// SIGSTOP, for that long.
    pub(super) fn suspend(&mut self, place: usize, by: Duration) {
        let until = self.now + by;
        self.replicas[place].suspended_until = Some(until);
        self.plan(place, by, Event::Resumes);
        self.look();
    }

    /// Messages of the replica, or to it, are lost for that long.
    pub(super) fn part(&mut self, place: usize, by: Duration) {
        let until = self.now + by;
        let which = self.dice.below(3);
        let replica = &mut self.replicas[place];
        if which != 0 {
            replica.mute_until = until;
        }
        if which != 1 {
            replica.deaf_until = until;
        }
    }

    /// The replicas that live, whether suspended or not.
    pub(super) fn alive(&self) -> Vec<usize> {
        let lives = |place: &usize| {
            self.replicas[*place].waits != Waits::Gone && !self.replicas[*place].is_leaving
        };
        (0..self.replicas.len()).filter(lives).collect()
    }

    /// Goes on for that long.
    pub(super) fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        while let Some(first) = self.events.first_entry() {
            if first.key().0 > until {
                break;
            }
            let ((at, _), (place, event)) = first.remove_entry();
            self.now = at;
            self.happens(place, event);
        }
        self.now = until;
        self.look();
    }

    fn happens(&mut self, place: usize, event: Event) {
        let replica = &mut self.replicas[place];
        if let Event::Arrives(question) = event {
            self.arrives(place, question);
            return;
        }
        if replica.waits == Waits::Gone {
            return;
        }
        if let Some(until) = replica.suspended_until {
            if until > self.now {
                // It happens when the replica goes on.
                self.number += 1;
                self.events.insert((until, self.number), (place, event));
                return;
            }
            replica.suspended_until = None;
        }
        match event {
            Event::Wake { pause } if replica.waits == Waits::Pause(pause) => self.turn(place),
            Event::Viewed { question, view } => self.viewed(place, question, view),
            Event::Released { question, done } => {
                if replica.waits == (Waits::Release { question }) {
                    self.released(place, done);
                }
            }
            Event::TimesOut { question } => self.times_out(place, question),
            Event::Begins => self.begins(place),
            Event::Ends => {
                let now = self.now;
                replica.batches.retain(|(_, ends)| *ends > now);
                if let Waits::Pause(_) = replica.waits
                    && !replica.machine.giving().is_empty()
                    && !replica.is_away
                {
                    self.turn(place);
                }
            }
            Event::Wake { .. } | Event::Resumes | Event::Arrives(_) => {}
        }
        self.look();
    }

    /// A replica's turn: it loses what is over, hands over what it can, or beats.
    fn turn(&mut self, place: usize) {
        self.lose_if_over(place);
        let mono = self.mono(place);
        let is_busy = self.sabotage != Sabotage::HandsOverBusy
            && self.replicas[place].is_busy(self.replicas[place].machine.giving());
        let replica = &mut self.replicas[place];
        if replica.is_leaving && replica.batches.is_empty() && !replica.is_away {
            let release = replica.machine.departs();
            self.ask_release(place, release);
        } else if !replica.machine.giving().is_empty() && !is_busy && !replica.is_away {
            let release = replica.machine.hands_over();
            self.ask_release(place, release);
        } else {
            let beat = replica.machine.beat(0);
            let question = self.next();
            self.replicas[place].waits = Waits::Beat { question, asked_at: mono };
            self.send(place, Question::Beat { question, beat });
            self.expect_answer(place, question);
        }
    }

    fn ask_release(&mut self, place: usize, release: Release) {
        let question = self.next();
        self.replicas[place].waits = Waits::Release { question };
        self.send(place, Question::Release { question, release });
        self.expect_answer(place, question);
    }

    fn expect_answer(&mut self, place: usize, question: u64) {
        let replica = &self.replicas[place];
        let left = replica.until.saturating_sub(self.mono(place));
        let patience = if left.is_zero() { ANSWER_WITHIN } else { left.min(ANSWER_WITHIN) };
        let patience = self.really(place, patience);
        self.plan(place, patience, Event::TimesOut { question });
    }

    fn send(&mut self, place: usize, question: Question) {
        if self.replicas[place].mute_until > self.now {
            return;
        }
        let delay = self.delay();
        self.plan(place, delay, Event::Arrives(question));
    }

    fn arrives(&mut self, place: usize, question: Question) {
        let answer = match question {
            Question::Beat { question, beat } => {
                let view = self.server.beat(self.now, &beat);
                view.map(|view| Event::Viewed { question, view })
            }
            Question::Release { question, release } => {
                let done = self.server.release(self.now, &release);
                Some(Event::Released { question, done })
            }
        };
        let Some(answer) = answer else { return };
        if self.replicas[place].deaf_until <= self.now {
            let delay = self.delay();
            self.plan(place, delay, answer);
        }
    }

    fn viewed(&mut self, place: usize, number: u64, view: View) {
        let Waits::Beat { question, asked_at } = self.replicas[place].waits else { return };
        if question != number {
            return;
        }
        let mono = self.mono(place);
        let asked_at = if self.sabotage == Sabotage::CountsFromAnswer { mono } else { asked_at };
        let sabotage = self.sabotage;
        let replica = &mut self.replicas[place];
        let Some(orders) = replica.machine.answered(asked_at, mono, view) else {
            self.fails(place);
            return;
        };
        replica.is_away = false;
        replica.until = replica.machine.until();
        match sabotage {
            Sabotage::NoMargin => replica.until += MARGIN,
            Sabotage::NeverLoses => replica.until += LEASE,
            Sabotage::None | Sabotage::CountsFromAnswer | Sabotage::HandsOverBusy => {}
        }
        let taken = orders.take.len();
        let pause = if !replica.machine.giving().is_empty()
            && (sabotage == Sabotage::HandsOverBusy || !replica.is_busy(replica.machine.giving()))
            || replica.is_leaving && replica.batches.is_empty()
        {
            Duration::ZERO
        } else {
            replica.machine.next_beat()
        };
        self.takes += taken;
        self.pause(place, pause);
    }

    fn released(&mut self, place: usize, done: bool) {
        let replica = &mut self.replicas[place];
        if replica.is_leaving && replica.batches.is_empty() {
            // It goes, whether or not that was answered.
            replica.waits = Waits::Gone;
            replica.machine.lose();
            return;
        }
        if done {
            replica.machine.handed_over();
        } else {
            replica.is_away = true;
        }
        self.pause(place, Duration::ZERO);
    }

    fn times_out(&mut self, place: usize, number: u64) {
        match self.replicas[place].waits {
            Waits::Beat { question, .. } if question == number => self.fails(place),
            Waits::Release { question } if question == number => self.released(place, false),
            Waits::Pause(_) | Waits::Beat { .. } | Waits::Release { .. } | Waits::Gone => {}
        }
    }

    fn fails(&mut self, place: usize) {
        self.replicas[place].is_away = true;
        let left = self.replicas[place].until.saturating_sub(self.mono(place));
        let pause = if self.replicas[place].machine.has_any() { RETRY.min(left) } else { RETRY };
        self.pause(place, pause);
    }

    fn begins(&mut self, place: usize) {
        let held = self.held(place);
        let some = Shares::from_bits(self.dice.next() | self.dice.next());
        let takes = MS * u32::try_from(self.dice.between(10, 1_500)).unwrap();
        if !(held & some).is_empty() && !self.replicas[place].is_leaving {
            let ends = self.now + takes;
            self.replicas[place].batches.push((held & some, ends));
            self.plan(place, takes, Event::Ends);
        }
        let next = MS * u32::try_from(self.dice.between(300, 3_000)).unwrap();
        self.plan(place, next, Event::Begins);
    }

    fn lose_if_over(&mut self, place: usize) {
        let mono = self.mono(place);
        let replica = &mut self.replicas[place];
        if replica.machine.has_any() && replica.until <= mono {
            replica.machine.lose();
            replica.batches.clear();
        }
    }

    fn pause(&mut self, place: usize, pause: Duration) {
        let number = self.next();
        self.replicas[place].waits = Waits::Pause(number);
        let left = self.replicas[place].until.saturating_sub(self.mono(place));
        let has_any = self.replicas[place].machine.has_any();
        let pause = if has_any { pause.min(left) } else { pause };
        let pause = self.really(place, pause);
        self.plan(place, pause, Event::Wake { pause: number });
    }

    fn plan(&mut self, place: usize, after: Duration, event: Event) {
        let number = self.next();
        self.events.insert((self.now + after, number), (place, event));
    }

    fn next(&mut self) -> u64 {
        self.number += 1;
        self.number
    }

    fn delay(&mut self) -> Duration {
        let ms = if self.dice.chance(self.slow_messages) {
            self.dice.between(50, 20_000)
        } else {
            self.dice.between(1, 30)
        };
        Duration::from_millis(ms)
    }

    /// The monotonic clock of a replica.
    fn mono(&self, place: usize) -> Duration {
        self.now.mul_f64(self.replicas[place].rate)
    }

    /// How long something takes that takes that long by the clock of a replica.
    fn really(&self, place: usize, time: Duration) -> Duration {
        time.div_f64(self.replicas[place].rate) + Duration::from_micros(1)
    }

    /// The shares that a replica holds, as its `Ownership` answers.
    pub(super) fn held(&self, place: usize) -> Shares {
        let replica = &self.replicas[place];
        let lives = replica.waits != Waits::Gone && replica.until > self.mono(place);
        if lives { replica.machine.held() } else { Shares::NONE }
    }

    /// The shares that a replica holds, or does something for within its leases.
    fn used(&self, place: usize) -> Shares {
        let replica = &self.replicas[place];
        if replica.waits == Waits::Gone || replica.until <= self.mono(place) {
            return Shares::NONE;
        }
        let now = self.now;
        let busy = replica.batches.iter().filter(|(_, ends)| *ends > now);
        busy.fold(self.held(place), |all, (shares, _)| all | *shares)
    }

    /// Looks whether anything is wrong at this moment.
    fn look(&mut self) {
        let mut worked = Shares::NONE;
        let mut all = Shares::NONE;
        for place in 0..self.replicas.len() {
            let used = self.used(place);
            if self.is_strict && !(used & all).is_empty() && self.wrong.is_none() {
                let (id, shares) = (&self.replicas[place].id, used & all);
                self.wrong = Some(format!("{id} and another use {shares} at {:?}", self.now));
            }
            all = all | used;
            if self.replicas[place].suspended_until.is_none() {
                worked = worked | self.held(place);
            }
        }
        let vacant = Shares::ALL - worked;
        for share in (self.vacant & worked).iter() {
            let since = self.vacant_since[usize::from(share.number())];
            self.longest_vacant = self.longest_vacant.max(self.now.saturating_sub(since));
        }
        for share in (vacant - self.vacant).iter() {
            self.vacant_since[usize::from(share.number())] = self.now;
        }
        self.vacant = vacant;
    }

    /// Begins to measure anew. All shares are held at that moment.
    pub(super) fn forget(&mut self) {
        assert!(self.vacant.is_empty());
        self.takes = 0;
        self.longest_vacant = Duration::ZERO;
    }

    /// Who holds each share, by the replicas' places.
    pub(super) fn holders(&self) -> BTreeMap<Share, usize> {
        let mut holders = BTreeMap::new();
        for place in 0..self.replicas.len() {
            for share in self.held(place).iter() {
                let other = holders.insert(share, place);
                assert_eq!(other, None, "share {share} has two holders");
            }
        }
        holders
    }

    /// All shares are held, by the replicas that live and as evenly as can be; the server knows the same.
    pub(super) fn check_rest(&self) {
        let alive = self.alive();
        let view = self.server.view(self.now);
        let loads: Vec<u32> = alive.iter().map(|place| self.held(*place).len()).collect();
        assert_eq!(loads.iter().sum::<u32>(), u32::from(SHARES), "{loads:?}");
        let apart = loads.iter().max().unwrap() - loads.iter().min().unwrap();
        assert!(apart <= 1, "{loads:?}");
        assert_eq!(self.holders().len(), usize::from(SHARES));
        for place in alive {
            let replica = &self.replicas[place];
            assert_eq!(view.held_by(&replica.id), self.held(place), "{}", replica.id);
            assert_eq!(replica.machine.standing(), Standing::Works);
        }
    }
}

impl Replica {
    fn is_busy(&self, shares: Shares) -> bool {
        self.batches.iter().any(|(batch, _)| !(*batch & shares).is_empty())
    }
}
