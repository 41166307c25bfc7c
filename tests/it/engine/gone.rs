//! Shared keys that the change feed names as gone: they are removed after the fences have moved and before
//! any tenant is warmed.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use preheat::domain::job::{Job, Key, Shape, Table};
use preheat::engine::ports::CacheErrorKind;

use super::changes::{Fed, watching};
use super::ledger::{Answer, Around, CacheCall, Call, Rules};
use super::{SECOND, Setup, cache_error, key, tenants};
use crate::support::memory::{MemoryCache, MemoryRow};

/// Records the commands to the cache, and refuses removals on request.
#[derive(Default)]
struct Noted {
    calls: Mutex<Vec<String>>,
    refuses: Mutex<Option<CacheErrorKind>>,
}

impl Noted {
    fn note(&self, call: String) {
        self.calls.lock().unwrap().push(call);
    }

    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.calls.lock().unwrap())
    }

    fn refuse(&self, kind: Option<CacheErrorKind>) {
        *self.refuses.lock().unwrap() = kind;
    }
}

impl Rules for Noted {
    fn on_ledger<'a, T: Send + 'a>(&'a self, call: Call, then: Answer<'a, T>) -> Answer<'a, T> {
        if call == Call::MoveFences {
            self.note("move fences".to_owned());
        }
        then
    }

    fn on_cache<'a, T: Send + 'a>(
        &'a self,
        call: CacheCall<'a>,
        then: Answer<'a, T>,
    ) -> Answer<'a, T> {
        match call {
            CacheCall::Remove(keys) => {
                self.note(format!("remove {}", keys.join(" ")));
                match *self.refuses.lock().unwrap() {
                    Some(kind) => Box::pin(std::future::ready(Err(cache_error(kind)))),
                    None => then,
                }
            }
            CacheCall::Write(entries) => {
                let keys: Vec<_> = entries.iter().map(|entry| entry.key.as_str()).collect();
                self.note(format!("write {}", keys.join(" ")));
                then
            }
            CacheCall::Expire
            | CacheCall::Look
            | CacheCall::Exist
            | CacheCall::Scan
            | CacheCall::Stats => then,
        }
    }
}

/// A job of pets and its feed; the trigger names values of the column `id`.
async fn pets() -> (Fed, Arc<Around<Noted>>) {
    let pet =
        Key { unique: Some("category".to_owned()), shape: Shape::Object, ..key("pet:{category}") };
    let table = Table { key: Some("id".to_owned()), ..Table::named("pets") };
    let job = Job { keys: vec![pet], tables: vec![table], ..watching("pets") };
    let setup = Setup::new([job], tenants(2));
    let memory = Arc::new(MemoryCache::new(Arc::new(setup.clock.clone())));
    let cache = Around::with(memory, Noted::default());
    let (as_cache, as_ledger) = (Arc::clone(&cache) as _, Arc::clone(&cache) as _);
    let fed = Fed::of(Setup { cache: Some(as_cache), ledger: Some(as_ledger), ..setup }).await;
    fed.set_rows("pets", vec![pet_of("t0", "7", 1), pet_of("t0", "8", 1), pet_of("t1", "9", 1)]);
    fed.warm("pets").await;
    assert!(cache.inner.get("pet:7").is_some() && cache.inner.get("pet:9").is_some());
    cache.take();
    (fed, cache)
}

fn pet_of(tenant: &str, id: &str, version: u32) -> MemoryRow {
    MemoryRow::new(tenant, &version.to_string(), [("category", id)])
}

/// Within this time, the keys that are gone are removed and the tenants are warmed.
const AT_ONCE: Duration = Duration::from_millis(20);

#[tokio::test]
async fn hazard_07_a_shared_key_that_is_gone_is_removed_after_the_fences_moved_and_before_warming()
{
    let (fed, cache) = pets().await;
    // One pet is deleted, and one goes to the other tenant.
    fed.set_rows("pets", vec![pet_of("t1", "8", 2), pet_of("t1", "9", 1)]);
    fed.tell_gone("pets", &["t0", "t1"], "id", &["7", "8"]);
    fed.clock.advance(AT_ONCE).await;
    assert_eq!(cache.take(), ["move fences", "remove pet:7 pet:8", "write pet:8 pet:9"]);
    assert_eq!(cache.inner.get("pet:7"), None);
    assert_eq!(cache.inner.get("pet:8").as_deref(), Some(&b"2"[..]));
}

#[tokio::test]
async fn a_removal_that_fails_is_tried_again_before_anything_is_warmed() {
    let (fed, cache) = pets().await;
    cache.refuse(Some(CacheErrorKind::Unavailable));
    fed.set_rows("pets", vec![pet_of("t0", "8", 2), pet_of("t1", "9", 1)]);
    fed.tell_gone("pets", &["t0"], "id", &["7"]);
    fed.clock.advance(SECOND * 20).await;
    let tries = cache.take();
    assert_eq!(tries[0], "move fences");
    assert!((3..20).contains(&tries.len()), "{tries:?}");
    assert!(tries[1..].iter().all(|call| call == "remove pet:7"), "{tries:?}");
    cache.refuse(None);
    fed.clock.advance(SECOND * 12).await;
    assert_eq!(cache.inner.get("pet:7"), None);
    assert_eq!(cache.inner.get("pet:8").as_deref(), Some(&b"2"[..]));
}

#[tokio::test]
async fn a_cache_that_lets_nobody_remove_keys_keeps_no_change_waiting() {
    let (fed, cache) = pets().await;
    cache.refuse(Some(CacheErrorKind::Permission));
    fed.set_rows("pets", vec![pet_of("t0", "8", 2), pet_of("t1", "9", 1)]);
    fed.tell_gone("pets", &["t0"], "id", &["7"]);
    fed.clock.advance(AT_ONCE).await;
    assert_eq!(cache.take(), ["move fences", "remove pet:7", "write pet:8"]);
    assert!(cache.inner.get("pet:7").is_some(), "it ends by its TTL");
    assert_eq!(cache.inner.get("pet:8").as_deref(), Some(&b"2"[..]));
}

#[tokio::test]
async fn values_of_a_column_that_no_job_names_remove_nothing() {
    let (fed, cache) = pets().await;
    fed.tell_gone("pets", &["t0"], "chip", &["7", "8"]);
    fed.clock.advance(AT_ONCE).await;
    assert_eq!(cache.take(), ["move fences", "write pet:7 pet:8"]);
}

#[tokio::test]
async fn many_keys_are_removed_in_several_pipelines() {
    let (fed, cache) = pets().await;
    let ids: Vec<_> = (0..2_500).map(|number| number.to_string()).collect();
    let ids: Vec<_> = ids.iter().map(String::as_str).collect();
    fed.tell_gone("pets", &["t0"], "id", &ids);
    fed.clock.advance(AT_ONCE).await;
    let calls = cache.take();
    let removals = calls.iter().filter(|call| call.starts_with("remove "));
    assert_eq!(removals.count(), 3, "a thousand with each");
    assert_eq!(calls.last().map(String::as_str), Some("write pet:7 pet:8"));
}
