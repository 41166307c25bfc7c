//! The layout decides which tenant owns a key, among the key templates of all jobs.
//!
//! The text of a key can have several readings. With the template `p:{tenant_id}:{kind}`, the key
//! `p:a:b:c` can belong to tenant `a` or to tenant `a:b`. preheat writes and removes a key for one
//! tenant at most. Two rules decide for which:
//!
//! - A template has one reading of a key: each value ends as early as it can. So in the example the key
//!   belongs to `a`, even if a tenant `a:b` exists.
//! - Two templates can read one key as keys of different tenants. If literal text of the second
//!   template lies within a value of the first template's reading, then the first template gives the
//!   key to nobody. So with `p:{tenant_id}` and `p:{tenant_id}:new`, the key `p:a:new` belongs to `a`
//!   by the second template, and never to a tenant `a:new` by the first.
//!
//! The decision depends only on the text of the key, the templates and the type of the tenants' ids. It
//! does not depend on which tenants exist, so it is the same in every batch, run and worker.

use std::cmp::Reverse;
use std::sync::Arc;

use super::job::{Job, Jobs, Key, KeyKind, Scope};
use super::key::pattern::{OwnerText, Pattern, Question};
use super::key::{KeyTemplate, Part, Placeholder, are_within};
use super::reading::Reading;
use super::tenant::{IdClass, Tenant};

/// The key templates of all enabled jobs.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    ids: IdClass,
    jobs: Vec<Arc<Job>>,
}

/// The owner of a key according to one template.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Owner<'k> {
    /// Nobody: the template does not make this key, or the key may belong to another tenant too.
    Nobody,
    /// The tenant with this id.
    Tenant(&'k str),
    /// The tenant that has, in this column of the tenant query, this text.
    WithColumn(&'k str, &'k str),
    /// The template makes this key, and the key's text names no tenant.
    Anyone,
}

/// Why a key may belong to more than one tenant.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Ambiguity {
    /// A value contains the literal text that follows it in the template. So a reader of the key ends
    /// the value earlier, and finds another tenant.
    #[error("its template reads it as a key of `{0}`")]
    Reading(String),
    /// Another template reads it as the key of another tenant.
    #[error("it may be a key of `{template}` in job `{job}`")]
    Template {
        /// The other template.
        template: String,
        /// The other template's job.
        job: String,
    },
}

impl Layout {
    /// The layout of these jobs without the disabled ones, which write nothing. `ids` is the class of
    /// the tenants' ids.
    pub fn new(jobs: &Jobs, ids: IdClass) -> Self {
        let jobs = jobs.values().filter(|job| job.enabled).cloned().collect();
        Self { ids, jobs }
    }

    /// The owner of a key according to the job's template at this position.
    pub fn owner<'k>(&self, job: &'k Job, index: usize, text: &'k str) -> Owner<'k> {
        let Some(key) = job.keys.get(index) else { return Owner::Nobody };
        let template = Template { job, index, key };
        let Some(reading) = template.read(text, self.ids) else { return Owner::Nobody };
        if self.beaten(template, &reading).is_some() {
            return Owner::Nobody;
        }
        let owner = reading.owner.unwrap_or_default();
        match says_owner(key) {
            Some(Part::Placeholder(Placeholder::Tenant)) => Owner::Tenant(owner),
            Some(Part::Placeholder(Placeholder::TenantColumn(name))) => {
                Owner::WithColumn(name, owner)
            }
            Some(
                Part::Placeholder(Placeholder::Date | Placeholder::Column(_)) | Part::Literal(_),
            )
            | None => Owner::Anyone,
        }
    }

    /// Whether a job may write a key for a tenant, judged by the key's text. `None` is any tenant, or a
    /// job without tenants.
    pub fn may_write(&self, job: &Job, tenant: Option<Tenant<'_>>, text: &str) -> bool {
        (0..job.keys.len()).any(|index| self.is_of(job, index, tenant, text))
    }

    /// The same for the template at this position alone.
    pub fn is_of(&self, job: &Job, index: usize, tenant: Option<Tenant<'_>>, text: &str) -> bool {
        match self.owner(job, index, text) {
            Owner::Nobody => false,
            Owner::Tenant(id) => tenant.is_none_or(|tenant| tenant.id() == id),
            Owner::WithColumn(name, owner) => {
                tenant.is_none_or(|tenant| tenant.column(name) == Some(owner))
            }
            Owner::Anyone => true,
        }
    }

    /// Whether the manifest of this job and tenant wrongly names a key: the key belongs to another
    /// tenant or job, or manifests do not name such keys (it is a static key, or a shared key in a
    /// manifest of an older version).
    pub fn is_anothers(&self, job: &Job, tenant: Option<&str>, text: &str) -> bool {
        let mut templates = self.templates(job);
        templates.any(|Template { job: other, index, key }| {
            let unnamed = other.name != job.name || job.kind(key) != KeyKind::Data;
            match self.owner(other, index, text) {
                Owner::Nobody => false,
                Owner::Tenant(id) => unnamed || tenant != Some(id),
                Owner::WithColumn(..) | Owner::Anyone => unnamed,
            }
        })
    }

    /// Why a template must not make the key with this text for `owner`. The owner is the tenant's id,
    /// or the value that identifies the tenant in the key.
    fn ambiguity(&self, own: Template<'_>, text: &str, owner: &str) -> Option<Ambiguity> {
        let reading = own.read(text, self.ids)?;
        if let Some(read) = reading.owner.filter(|read| *read != owner) {
            return Some(Ambiguity::Reading(read.escape_debug().to_string()));
        }
        let other = self.beaten(own, &reading)?;
        let (template, job) = (other.key.template.to_string(), other.job.name.to_string());
        Some(Ambiguity::Template { template, job })
    }

    /// The templates of this job as it is given here, and those of all other enabled jobs.
    fn templates<'a>(&'a self, job: &'a Job) -> impl Iterator<Item = Template<'a>> {
        let others = self.jobs.iter().map(AsRef::as_ref).filter(|other| other.name != job.name);
        others.chain([job]).flat_map(|job| {
            job.keys.iter().enumerate().map(move |(index, key)| Template { job, index, key })
        })
    }

    /// The first template that takes this key away from `own`, because it reads the key as another
    /// owner's.
    fn beaten<'a>(&'a self, own: Template<'a>, reading: &Reading<'_>) -> Option<Template<'a>> {
        let mut makers =
            self.templates(own.job).filter(|other| other.key.template.may_make(reading.text));
        makers.find(|other| {
            let rivalry = Rivalry::between(own, *other);
            rivalry.is_some_and(|rivalry| other.beats(rivalry, reading, self.ids))
        })
    }
}

/// A key template of a job.
#[derive(Clone, Copy, Debug)]
pub(super) struct Template<'a> {
    pub(super) job: &'a Job,
    /// Its position among the job's templates.
    pub(super) index: usize,
    pub(super) key: &'a Key,
}

/// How one template may take keys away from another.
#[derive(Clone, Copy, Debug)]
struct Rivalry {
    /// Both templates name the owner by the same placeholder, so that their owners can be compared.
    comparable: bool,
    /// Whether the other template gets the key if the literal texts of both are in the same places.
    comes_first: bool,
}

impl Rivalry {
    /// `None` if `other` cannot take a key away from `own`: both write for the same owner.
    fn between(own: Template<'_>, other: Template<'_>) -> Option<Self> {
        let same_job = own.job.name == other.job.name;
        let same_template = same_job && own.index == other.index;
        let of_global = |one: Template<'_>| one.job.scope == Scope::Global;
        if same_template || same_job && of_global(own) {
            return None;
        }
        let (of_own, of_other) = (says_owner(own.key), says_owner(other.key));
        let is_tenant = of_own == Some(&Part::Placeholder(Placeholder::Tenant));
        let comparable = of_own.is_some() && of_own == of_other && (is_tenant || same_job);
        // A job's columns that are unique over all tenants identify the same tenant in each of its keys.
        let trusted = same_job && !comparable && !is_tenant;
        let comes_first = !trusted && other.rank() < own.rank();
        Some(Self { comparable, comes_first })
    }

    /// Asks for the keys that the other template takes away.
    fn question(self) -> Question {
        Question { same_owner: self.comparable, literal_in_value: !self.comes_first }
    }
}

impl<'a> Template<'a> {
    /// The order of templates: those with more literal text come first.
    fn rank(&self) -> impl Ord + use<'a> {
        let text = self.key.template.parts().iter().map(|part| match part {
            Part::Literal(text) => text.len(),
            Part::Placeholder(_) => 0,
        });
        (Reverse(text.sum::<usize>()), &self.job.name, self.index)
    }

    /// Whether this template takes a key away from the template that has this reading of it.
    fn beats(&self, rivalry: Rivalry, reading: &Reading<'_>, ids: IdClass) -> bool {
        let owner = reading.owner.filter(|_| rivalry.comparable);
        let marks = self.key.template.marks(reading, owner_part(self.key), owner, ids);
        marks.iter().any(|mark| mark.owners_differ && (rivalry.comes_first || mark.literal))
    }

    /// Whether the other template, if it reads a key of this one in one way only, finds the same owner: both
    /// begin with the same parts up to the owner, and the other one can make what follows.
    fn keeps_owner(&self, other: Template<'_>, ids: IdClass) -> bool {
        fn split(key: &Key) -> Option<(&[Part], &[Part])> {
            key.template.parts().split_at_checked(owner_part(key)? + 1)
        }
        let (Some((own, rest)), Some((others, others_rest))) = (split(self.key), split(other.key))
        else {
            return false;
        };
        own == others && are_within(rest, others_rest, ids)
    }

    fn read<'k>(&self, text: &'k str, ids: IdClass) -> Option<Reading<'k>> {
        Reading::new(&self.key.template, owner_part(self.key), text, ids)
    }

    fn pattern(&self, ids: IdClass, text: OwnerText<'_>) -> Pattern {
        Pattern::new(&self.key.template, owner_part(self.key), ids, text)
    }
}

/// What has to be true of a key that an application makes from a template, because of another template of the
/// jobs. Then no other template makes the key, and a run may write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition<'a> {
    /// The other template does not make the key.
    NotOf(&'a KeyTemplate),
    /// The other template makes every key of this one, and reads the key in one way only. If it could read
    /// it in several ways, the key might belong to another tenant.
    ReadOnce(&'a KeyTemplate),
    /// There is no such key: the other template makes every key of this one, and gets it.
    Never(&'a KeyTemplate),
}

impl Layout {
    /// The conditions for the keys that an application makes from the template at this position.
    pub fn conditions<'a>(&'a self, job: &'a Job, index: usize) -> Vec<Condition<'a>> {
        let Some(key) = job.keys.get(index) else { return Vec::new() };
        let own = Template { job, index, key };
        let is_own = |other: &Template<'_>| other.job.name == job.name && other.index == index;
        let others = self.templates(job).filter(|other| !is_own(other));
        others.filter_map(|other| self.condition(own, other)).collect()
    }

    fn condition<'a>(&self, own: Template<'_>, other: Template<'a>) -> Option<Condition<'a>> {
        let (template, others) = (&own.key.template, &other.key.template);
        if !template.may_equal(others, self.ids) {
            return None;
        }
        if !template.is_within(others, self.ids) {
            return Some(Condition::NotOf(others));
        }
        let rivalry = Rivalry::between(own, other);
        let takes_all = rivalry.is_some_and(|rivalry| {
            rivalry.comes_first && !(rivalry.comparable && own.keeps_owner(other, self.ids))
        });
        if takes_all || others.is_within(template, self.ids) {
            return Some(Condition::Never(others));
        }
        let of_other = other.pattern(self.ids, OwnerText::Ids);
        let of_own = own.pattern(self.ids, OwnerText::Ids);
        let takes_some = of_own.meets(&of_other, rivalry?.question());
        takes_some.then_some(Condition::ReadOnce(others))
    }
}

/// The checks of a job's keys before a run writes them: does a key belong to its tenant alone? If the
/// templates and the type of the ids already prove it for all keys of a template, no key of it needs a
/// check.
#[derive(Debug, Default)]
pub struct Checks {
    layout: Layout,
    /// The check for each template of the job; `None` if no key of the template can belong to another
    /// tenant.
    keys: Vec<Option<Check>>,
}

/// The checks of the keys of one template.
#[derive(Debug)]
struct Check {
    /// The keys that the template itself may read as another tenant's.
    own: Option<Risk>,
    /// The templates that may take keys away from this one, and which keys.
    rivals: Vec<(Risk, KeyTemplate)>,
    /// The characters in the literal texts of all these templates that are neither letters nor digits.
    special: Vec<char>,
}

/// The tenants whose keys may belong to another tenant too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Risk {
    /// Tenants whose ids contain a special character.
    OfSomeTenants,
    /// All tenants.
    OfAnyTenant,
}

impl Checks {
    /// The checks for the keys of this job.
    pub fn new(layout: Layout, job: &Job) -> Self {
        let check = |(index, key)| Check::new(&layout, Template { job, index, key });
        let keys = job.keys.iter().enumerate().map(check).collect();
        Self { layout, keys }
    }

    /// The layout of all jobs.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Whether keys of the template at this position need a check.
    pub fn needs_check(&self, index: usize) -> bool {
        self.keys.get(index).is_some_and(Option::is_some)
    }

    /// Whether this template's keys for a tenant need a check; ask once per tenant.
    pub fn tenant_needs_check(&self, index: usize, id: &str) -> bool {
        let Some(Some(check)) = self.keys.get(index) else { return false };
        check.has(Risk::OfAnyTenant) || id.contains(check.special.as_slice())
    }

    /// Why a run must not write a template's key for this owner. Ask only for keys that need a check.
    pub(super) fn ambiguity(
        &self,
        own: Template<'_>,
        text: &str,
        owner: &str,
    ) -> Option<Ambiguity> {
        let check = self.keys.get(own.index)?.as_ref()?;
        let is_possible =
            check.own.is_some() || check.rivals.iter().any(|(_, rival)| rival.may_make(text));
        is_possible.then(|| self.layout.ambiguity(own, text, owner)).flatten()
    }
}

impl Check {
    /// `None` if no key of the template can belong to another tenant.
    fn new(layout: &Layout, own: Template<'_>) -> Option<Self> {
        let begins_like =
            |other: &Template<'_>| own.key.template.may_begin_like(&other.key.template);
        let templates: Vec<_> = layout.templates(own.job).filter(begins_like).collect();
        let texts = templates.iter().flat_map(|one| one.key.template.parts());
        let texts = texts.filter_map(|part| match part {
            Part::Literal(text) => Some(text),
            Part::Placeholder(_) => None,
        });
        let special: Vec<char> =
            texts.flat_map(|text| text.chars()).filter(|char| !char.is_alphanumeric()).collect();
        let patterns = [OwnerText::IdsWithout(&special), OwnerText::Ids]
            .map(|text| own.pattern(layout.ids, text));
        let risk = |other: &Template<'_>, question| {
            let other = other.pattern(layout.ids, OwnerText::Ids);
            let [without, any] = &patterns;
            any.meets(&other, question).then(|| {
                if without.meets(&other, question) {
                    Risk::OfAnyTenant
                } else {
                    Risk::OfSomeTenants
                }
            })
        };
        let has_owner = own.job.scope == Scope::Tenants && owner_part(own.key).is_some();
        let another = Question { same_owner: true, literal_in_value: false };
        let own_risk = has_owner.then(|| risk(&own, another)).flatten();
        let rivals = templates.iter().filter_map(|other| {
            let question = Rivalry::between(own, *other)?.question();
            Some((risk(other, question)?, other.key.template.clone()))
        });
        let check = Self { own: own_risk, rivals: rivals.collect(), special: special.clone() };
        (check.own.is_some() || !check.rivals.is_empty()).then_some(check)
    }

    fn has(&self, risk: Risk) -> bool {
        self.own == Some(risk) || self.rivals.iter().any(|(other, _)| *other == risk)
    }
}

/// The position of the part that names the owner: the tenant's id, or the placeholder that identifies
/// the tenant in its place.
pub(super) fn owner_part(key: &Key) -> Option<usize> {
    let mut parts = key.template.parts().iter();
    let tenant = parts.position(|part| *part == Part::Placeholder(Placeholder::Tenant));
    let is_column = |part: &Part| matches!(part, Part::Placeholder(Placeholder::TenantColumn(_)));
    let unique = || {
        let unique = key.unique.as_deref()?;
        let is_unique = |part: &Part| match part {
            Part::Literal(_) => false,
            Part::Placeholder(placeholder) => placeholder.name("") == unique,
        };
        key.template.parts().iter().position(is_unique)
    };
    let column = || key.template.parts().iter().position(is_column);
    tenant.or_else(unique).or_else(column)
}

/// The part that names the owner.
pub(super) fn says_owner(key: &Key) -> Option<&Part> {
    key.template.parts().get(owner_part(key)?)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::domain::job::Shape;
    use crate::domain::job::tests::example;

    fn job(name: &str, templates: &[&str]) -> Arc<Job> {
        let key = |text: &&str| {
            let template = KeyTemplate::parse(text, "t").unwrap();
            let unique = (!template.has_tenant()).then(|| "id".to_owned());
            Key { template, shape: Shape::List, unique }
        };
        Arc::new(example(name, templates.iter().map(key).collect()))
    }

    fn layout(ids: IdClass, jobs: &[&Arc<Job>]) -> Layout {
        let jobs = jobs.iter().map(|job| (job.name.clone(), Arc::clone(job)));
        Layout::new(&jobs.collect(), ids)
    }

    /// The owner of a key according to each template of a job.
    fn owners<'k>(layout: &Layout, job: &'k Job, key: &'k str) -> Vec<Owner<'k>> {
        (0..job.keys.len()).map(|index| layout.owner(job, index, key)).collect()
    }

    #[test]
    fn a_template_reads_a_key_in_one_way() {
        let of = Owner::Tenant;
        let cases = [
            ("services:{t}", "services:7", of("7")),
            ("services:{t}", "services:a:*[é]", of("a:*[é]")),
            ("services:{t}", "service:7", Owner::Nobody),
            ("a:{t}:{kind}", "a:7:dog", of("7")),
            ("a:{t}:{kind}", "a:7:dog:food", of("7")),
            ("a:{kind}:{t}:z", "a:x:7:z", of("7")),
            ("a:{kind}:{t}:z", "a:x:y:7:z", of("y:7")),
            ("a:{kind}:{t}:z", "a:x:7", Owner::Nobody),
            ("slots:{t}:{date}", "slots:7:2026-03-01", of("7")),
            ("slots:{t}:{date}", "slots:7:8:2026-03-01", of("7:8")),
            ("slots:{t}:{date}", "slots:7:today", Owner::Nobody),
            ("slots:{t}:{date}", "slots:7:2026-3-001", Owner::Nobody),
            ("{t}:{t}", "7:7", of("7")),
            ("{t}", "", of("")),
            ("{t}:x", "1:x:2:x", of("1:x:2")),
            ("pet:{id}", "pet:9", Owner::Anyone),
            ("pet:{id}", "pat:9", Owner::Nobody),
            ("site:{tenant.slug}", "site:north", Owner::WithColumn("slug", "north")),
        ];
        for (text, key, expected) in cases {
            let job = job("one", &[text]);
            let layout = layout(IdClass::Text, &[&job]);
            assert_eq!(owners(&layout, &job, key), [expected], "{text} {key}");
        }
        let uuid = "6f1c0c6e-5f0f-4e55-9f53-0f7f4f1f8a11";
        let key = format!("x:{uuid}dog");
        let job = job("one", &["x:{t}{kind}"]);
        assert_eq!(owners(&layout(IdClass::Uuid, &[&job]), &job, &key), [of(uuid)]);
    }

    #[test]
    fn hazard_37_a_key_of_two_templates_is_one_tenants_or_nobodys() {
        let of = Owner::Tenant;
        let lists = job("lists", &["p:{t}:all", "p:{t}:{kind}"]);
        let text = layout(IdClass::Text, &[&lists]);
        assert_eq!(owners(&text, &lists, "p:a:all"), [of("a"), of("a")], "one tenant's");
        assert_eq!(owners(&text, &lists, "p:a:b:x"), [Owner::Nobody, of("a")]);
        assert_eq!(owners(&text, &lists, "p:a:b:all"), [Owner::Nobody, Owner::Nobody]);
        let integer = layout(IdClass::Integer, &[&lists]);
        assert_eq!(owners(&integer, &lists, "p:7:b:all"), [Owner::Nobody, of("7")]);

        let (all, new) = (job("all", &["p:{t}"]), job("new", &["p:{t}:new"]));
        let both = layout(IdClass::Text, &[&all, &new]);
        assert_eq!(owners(&both, &all, "p:a:new"), [Owner::Nobody]);
        assert_eq!(owners(&both, &new, "p:a:new"), [of("a")]);
        assert_eq!(owners(&both, &all, "p:a:b"), [of("a:b")]);

        let swapped = job("swapped", &["p:{t}:{kind}", "p:{kind}:{t}"]);
        let text = layout(IdClass::Text, &[&swapped]);
        assert_eq!(owners(&text, &swapped, "p:a:b"), [of("a"), Owner::Nobody]);
    }

    #[test]
    fn what_a_manifest_names_may_be_anothers() {
        let lists = job("lists", &["p:{t}:all", "p:{t}:{kind}", "pet:{id}"]);
        let new = job("new", &["p:{t}:new:{kind}"]);
        let layout = layout(IdClass::Text, &[&lists, &new]);
        let is_anothers = |tenant, key| layout.is_anothers(&lists, Some(tenant), key);
        assert!(!is_anothers("a", "p:a:x") && !is_anothers("a", "p:a:b:x"));
        assert!(is_anothers("a:b", "p:a:b:x"), "it is that of `a`");
        assert!(is_anothers("a", "p:a:all"), "no manifest names it");
        assert!(is_anothers("a", "p:a:new:x"), "it is that of the other job");
        assert!(is_anothers("a", "pet:7"), "no manifest names a shared key");
        assert!(!is_anothers("a", "old:a:x"));
    }

    #[test]
    fn what_the_class_of_the_ids_rules_out_costs_nothing() {
        let lists = job("lists", &["p:{t}:all", "p:{t}:{kind}"]);
        let (all, new) = (job("all", &["q:{t}"]), job("new", &["q:{t}:new"]));
        let needs_check = |ids, job: &Arc<Job>| -> Vec<bool> {
            let checks = Checks::new(layout(ids, &[&lists, &all, &new]), job);
            (0..job.keys.len()).map(|index| checks.needs_check(index)).collect()
        };
        for ids in [IdClass::Uuid, IdClass::Integer] {
            assert_eq!(needs_check(ids, &lists), [false, false], "{ids:?}");
            assert_eq!(
                (needs_check(ids, &all), needs_check(ids, &new)),
                (vec![false], vec![false])
            );
        }
        assert_eq!(needs_check(IdClass::Text, &lists), [true, true]);
        // A key that the one job must not write belongs to the other.
        let of_text = (needs_check(IdClass::Text, &all), needs_check(IdClass::Text, &new));
        assert_eq!(of_text, (vec![true], vec![false]));
        let checks = Checks::new(layout(IdClass::Text, &[&lists]), &lists);
        assert!(!checks.tenant_needs_check(0, "a-b") && checks.tenant_needs_check(0, "a:b"));
        // A category may be `b:all` for any tenant.
        assert!(checks.tenant_needs_check(1, "a-b"));
    }

    /// A template of a job, with the values that fill it.
    #[derive(Clone, Debug)]
    struct Filled {
        job: usize,
        index: usize,
        tenant: String,
        values: Vec<String>,
    }

    impl Filled {
        fn key(&self, template: &KeyTemplate) -> String {
            let mut values = self.values.iter().cycle();
            let text = |part: &Part| match part {
                Part::Literal(text) => text.clone(),
                Part::Placeholder(Placeholder::Tenant) => self.tenant.clone(),
                Part::Placeholder(_) => values.next().unwrap().clone(),
            };
            template.parts().iter().map(text).collect()
        }
    }

    fn any_template() -> impl Strategy<Value = String> {
        let literal = prop::sample::select(vec![":", "::", "a", "1", "-", ":a", "a:1"]);
        let part = prop_oneof![
            4 => literal.prop_map(str::to_owned),
            2 => prop::sample::select(vec!["{k}", "{l}"]).prop_map(str::to_owned),
        ];
        let parts = || prop::collection::vec(part.clone(), 0..3).prop_map(|parts| parts.concat());
        (parts(), parts()).prop_map(|(before, after)| format!("{before}{{t}}{after}"))
    }

    fn any_filled(ids: IdClass) -> impl Strategy<Value = Vec<Filled>> {
        let tenant = match ids {
            IdClass::Text => "[a1:-]{0,4}",
            IdClass::Integer => "-?[1-9][0-9]{0,2}",
            IdClass::Uuid => "[a1]{8}-0000-4000-8000-00000000000[01]",
        };
        let one = (0..2_usize, 0..2_usize, tenant, prop::collection::vec("[a1:-]{0,4}", 4));
        let filled =
            one.prop_map(|(job, index, tenant, values)| Filled { job, index, tenant, values });
        prop::collection::vec(filled, 30)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        #[test]
        fn hazard_37_two_tenants_never_have_one_key(
            templates in prop::collection::vec(any_template(), 4),
            (ids, filled) in prop::sample::select(IdClass::ALL.to_vec())
                .prop_flat_map(|ids| (Just(ids), any_filled(ids))),
        ) {
            let texts: Vec<&str> = templates.iter().map(String::as_str).collect();
            let jobs = [job("one", &texts[..2]), job("other", &texts[2..])];
            let layout = layout(ids, &[&jobs[0], &jobs[1]]);
            let checks = jobs.each_ref().map(|job| Checks::new(layout.clone(), job));
            let mut owners: BTreeMap<String, String> = BTreeMap::new();
            for one in filled {
                let (job, index) = (&jobs[one.job], one.index);
                let (checks, tenant) = (&checks[one.job], one.tenant.as_str());
                let key = one.key(&job.keys[index].template);
                let full = layout.owner(job, index, &key);
                let template = Template { job, index, key: &job.keys[index] };
                let ambiguity = layout.ambiguity(template, &key, tenant);
                prop_assert_eq!(ambiguity.is_none(), full == Owner::Tenant(tenant), "{}", key);
                let is_looked_at = checks.needs_check(index) && checks.tenant_needs_check(index, tenant);
                let looked = checks.ambiguity(template, &key, tenant).filter(|_| is_looked_at);
                prop_assert_eq!(&looked, &ambiguity, "nothing is spared that is needed: {}", key);
                if looked.is_none() {
                    let owner = owners.entry(key.clone()).or_insert_with(|| tenant.to_owned());
                    prop_assert_eq!(owner.as_str(), tenant, "{}", key);
                    let manifest = |id| layout.is_anothers(job, Some(id), &key);
                    prop_assert!(manifest("another"));
                }
            }
        }

        #[test]
        fn two_templates_that_have_no_key_in_common_are_no_rivals(
            templates in prop::collection::vec(any_template(), 2),
            (ids, filled) in prop::sample::select(IdClass::ALL.to_vec())
                .prop_flat_map(|ids| (Just(ids), any_filled(ids))),
        ) {
            let [one, other] = [0, 1].map(|index| KeyTemplate::parse(&templates[index], "t").unwrap());
            let may_equal = one.may_equal(&other, ids);
            let keys = |template: &KeyTemplate| -> std::collections::BTreeSet<String> {
                filled.iter().map(|filled| filled.key(template)).collect()
            };
            prop_assert!(may_equal || keys(&one).is_disjoint(&keys(&other)));
        }
    }
}
