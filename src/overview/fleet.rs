//! The fleet, seen as one. Each member publishes a summary of itself and reads those of the others, so that each of them can
//! answer for all.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use chrono::{DateTime, Utc};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::elsewhere::RunsNow;
use super::facts::Facts;
use super::{Moment, NotWarmTenant, NotWarmTenants};
use crate::domain::job::{JobName, Scope};
use crate::domain::member::MemberId;
use crate::domain::run::RunRecord;
use crate::domain::share::Shares;
use crate::domain::tenant::TenantId;
use crate::engine::ports::{Sheet, SheetKind, Sheets};
use crate::engine::run::not_warm::{Entry, Wanted};
use crate::engine::run::ownership::Ownership;
use crate::observe::figures::Share;

/// How long a summary is shown without a newer one: its member is gone then.
const SUMMARY_TTL: Duration = Duration::from_secs(8);

/// What a worker says about itself to the other members of its fleet.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Summary {
    pub(super) id: String,
    pub(super) replica: String,
    pub(super) version: String,
    pub(super) address: String,
    pub(super) since: DateTime<Utc>,
    pub(super) shares: Shares,
    /// Versions that do not say it leave it out.
    #[serde(default)]
    pub(super) lease_ends_at: Option<DateTime<Utc>>,
    pub(super) jobs: BTreeMap<String, OfJob>,
    /// How many of its tenants are not warm in some job.
    pub(super) tenants_not_warm: u64,
    /// The first of its tenants that are not warm, in the order of their jobs and ids.
    pub(super) not_warm: Vec<NotWarmTenant>,
    /// The runs that ended on it lately. Their reports have the first failure alone.
    pub(super) ended: Vec<RunRecord>,
}

/// What a member says about one job.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct OfJob {
    /// How many of the keys in a sample were in the cache, and how many there were.
    pub(super) coverage: (u64, u64),
    pub(super) not_warm: u64,
    pub(super) next_due_at: Option<DateTime<Utc>>,
    pub(super) running: Option<RunsNow>,
}

/// This worker as a member of its fleet.
pub struct FleetMember {
    /// Its id.
    pub id: MemberId,
    /// Where it listens.
    pub address: String,
    /// The shares that it holds.
    pub ownership: Arc<Ownership>,
    /// Where members find each other's summaries.
    pub sheets: Arc<dyn Sheets>,
}

/// The fleet as this worker knows it.
pub(super) struct Fleet {
    pub(super) me: FleetMember,
    /// `None` before they were read for the first time.
    pub(super) others: Mutex<Option<Arc<[Summary]>>>,
}

impl Fleet {
    pub(super) fn new(me: FleetMember) -> Self {
        Self { me, others: Mutex::default() }
    }

    /// What the other members said last; `None` before they were heard for the first time.
    pub(super) fn others(&self) -> Option<Arc<[Summary]>> {
        self.others.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) async fn publish(&self, summary: &Summary) {
        let Ok(text) = serde_json::to_string(summary) else { return };
        let sheet = (SheetKind::Summary, self.me.id.as_str());
        // While the cache is away, the others do without: they see it themselves.
        drop(self.me.sheets.put(sheet, "", &text, SUMMARY_TTL).await);
    }

    /// Reads what the others say now. What cannot be read stays as it was for as long as nobody can lease a share.
    pub(super) async fn read(&self) -> Option<Arc<[Summary]>> {
        let sheets = self.me.sheets.read(SheetKind::Summary).await.ok()?;
        let others = sheets.iter().filter(|sheet| sheet.id != self.me.id.as_str());
        let mut others: Vec<Summary> = others.filter_map(summary).collect();
        others.sort_by(|one, other| (one.since, &one.id).cmp(&(other.since, &other.id)));
        let others: Arc<[Summary]> = others.into();
        *self.others.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&others));
        Some(others)
    }
}

/// A summary that a newer version wrote, and this one cannot read, does not hide the others.
fn summary(sheet: &Sheet) -> Option<Summary> {
    serde_json::from_str(sheet.fields.get("")?).ok()
}

/// The fleet.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct FleetView {
    /// Whether this worker is a member of a fleet. If not, it is the only member here: it does everything itself, or has a
    /// fixed part of the tenants.
    pub enabled: bool,
    /// When the members were listed.
    pub as_of: Moment,
    /// The members, longest first.
    pub members: Vec<MemberView>,
    /// The shares of the tenants that no member holds, as ranges: `0-20, 40`; null if there are none, or if this worker is not
    /// a member of a fleet.
    pub vacant: Option<String>,
}

/// A member of a fleet.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
pub struct MemberView {
    /// Its id, which each process draws for itself.
    pub id: String,
    /// Its name in run records.
    pub replica: String,
    /// Its version.
    pub version: String,
    /// Where it listens.
    pub address: String,
    /// When it started.
    pub since: Moment,
    /// The shares of the tenants that it holds, as ranges: `0-20, 40`; empty for a member that stands by.
    pub shares: String,
    /// How many of the 64 shares these are.
    pub share_count: u32,
    /// When its leases of these shares end unless it renews them, by its own clock; null if it leases none. It renews
    /// them every two seconds.
    pub lease_ends_at: Option<Moment>,
    /// Whether it is the member that answers.
    pub is_this: bool,
    /// How many of its tenants are not warm in some job.
    pub tenants_not_warm: u64,
    /// The jobs that it runs at this moment.
    pub running: Vec<String>,
}

/// The shares that no member holds.
pub(super) fn vacant(own: Shares, others: &[Summary]) -> Shares {
    others.iter().fold(Shares::ALL - own, |vacant, member| vacant - member.shares)
}

impl FleetView {
    pub(super) fn of(enabled: bool, own: &Summary, others: &[Summary], now: DateTime<Utc>) -> Self {
        let mut members: Vec<MemberView> =
            others.iter().map(|member| MemberView::of(member, false)).collect();
        members.push(MemberView::of(own, true));
        members.sort_by(|one, other| (one.since, &one.id).cmp(&(other.since, &other.id)));
        let vacant = vacant(own.shares, others);
        let vacant = (enabled && !vacant.is_empty()).then(|| vacant.to_string());
        Self { enabled, as_of: Moment(now), members, vacant }
    }
}

impl MemberView {
    fn of(member: &Summary, is_this: bool) -> Self {
        let Summary { id, replica, version, address, since, shares, jobs, .. } = member;
        let running = jobs.iter().filter(|(_, job)| job.running.is_some());
        Self {
            id: id.clone(),
            replica: replica.clone(),
            version: version.clone(),
            address: address.clone(),
            since: Moment(*since),
            shares: shares.to_string(),
            share_count: shares.len(),
            lease_ends_at: member.lease_ends_at.filter(|_| !shares.is_empty()).map(Moment),
            is_this,
            tenants_not_warm: member.tenants_not_warm,
            running: running.map(|(job, _)| job.clone()).collect(),
        }
    }
}

/// Adds what the other members say to the facts of this one.
pub(super) fn add(facts: &mut Facts, others: &[Summary]) {
    for member in others {
        facts.tenants_not_warm += member.tenants_not_warm;
        for (job, of_job) in &member.jobs {
            let Ok(name) = JobName::parse(job) else { continue };
            let Some(status) = facts.status.jobs.get(&name) else { continue };
            let (is_paused, scope) = (status.pause.is_some(), status.job.scope);
            let (part, whole) = of_job.coverage;
            if whole > 0 && facts.cache_down.is_none() {
                let known = facts.coverage.entry(name.clone()).or_default();
                *known = known.and(Share { part, whole });
            }
            add_not_warm(facts, (&name, scope), member, of_job.not_warm);
            let elsewhere = facts.elsewhere.entry(name).or_default();
            let next = of_job.next_due_at.filter(|at| !is_paused && *at > facts.now);
            elsewhere.next_due_at = [elsewhere.next_due_at, next].into_iter().flatten().min();
            elsewhere.note(of_job.running.as_ref());
        }
    }
}

fn add_not_warm(facts: &mut Facts, (job, scope): (&JobName, Scope), member: &Summary, more: u64) {
    if more == 0 {
        return;
    }
    let first = member.not_warm.iter().find(|tenant| tenant.job == job.as_str());
    let known = facts.not_warm.entry(job.clone()).or_default();
    known.tenants = match scope {
        Scope::Tenants => known.tenants + more,
        // Two members may remember the one slot of a job without tenants for a while.
        Scope::Global => known.tenants.max(more),
    };
    let theirs = first.map(NotWarmTenant::entry);
    known.summary = match (known.summary.take(), theirs) {
        (Some(own), Some(theirs)) => {
            let (since, tries) = (own.since.min(theirs.since), own.tries.max(theirs.tries));
            Some(Entry { since, tries, ..own })
        }
        (own, theirs) => own.or(theirs),
    };
    let next = first.and_then(|first| first.next_try_at).map(|Moment(at)| at);
    known.next_try_at = [known.next_try_at, next].into_iter().flatten().min();
}

/// Adds to a page of this worker's tenants that are not warm those that the other members name.
pub(super) fn add_page(page: &mut NotWarmTenants, others: &[Summary], wanted: &Wanted) {
    let Wanted { job, reason, after, limit } = wanted;
    let is_job = |name: &str| job.as_ref().is_none_or(|job| job.as_str() == name);
    let is_wanted = |tenant: &&NotWarmTenant| {
        let of_tenant = tenant.entry().reason.as_str();
        is_job(&tenant.job) && reason.as_deref().is_none_or(|reason| reason == of_tenant)
    };
    let place = |tenant: &NotWarmTenant| (tenant.job.clone(), tenant.tenant.clone());
    let after = after
        .as_ref()
        .map(|(job, owner)| (job.to_string(), owner.as_ref().map(ToString::to_string)));
    for member in others {
        let named: Vec<&NotWarmTenant> = member.not_warm.iter().filter(is_wanted).collect();
        let jobs = member.jobs.iter().filter(|(name, _)| is_job(name));
        let all: u64 = jobs.map(|(_, of_job)| of_job.not_warm).sum();
        if reason.is_none() {
            page.more += all.saturating_sub(named.len() as u64);
        }
        page.total += named.len() as u64;
        let later = named.into_iter().filter(|tenant| Some(place(tenant)) > after);
        page.tenants.extend(later.cloned());
    }
    page.tenants.sort_by_cached_key(place);
    let has_more = page.next.is_some() || page.tenants.len() > *limit;
    page.tenants.truncate(*limit);
    page.next = page.tenants.last().filter(|_| has_more).map(NotWarmTenant::cursor);
}

/// The jobs in which another member says that a tenant is not warm.
pub(super) fn not_warm_in(others: &[Summary], id: &TenantId) -> BTreeMap<JobName, NotWarmTenant> {
    let named = others.iter().flat_map(|member| &member.not_warm);
    let own = named.filter(|tenant| tenant.tenant.as_deref() == Some(id.as_str()));
    own.filter_map(|tenant| Some((JobName::parse(&tenant.job).ok()?, tenant.clone()))).collect()
}
