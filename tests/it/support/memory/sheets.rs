//! The sheets of a fleet in memory, by a clock that tests move.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use preheat::engine::ports::{CacheError, CacheErrorKind, Clock, Sheet, SheetKind, Sheets};

use super::lock;

/// The sheets of a fleet. Its clones are the same sheets, as for several members.
#[derive(Clone)]
pub(crate) struct MemorySheets {
    clock: Arc<dyn Clock>,
    sheets: Arc<Mutex<BTreeMap<(SheetKind, String), Lives>>>,
    is_away: Arc<AtomicBool>,
}

struct Lives {
    fields: BTreeMap<String, String>,
    until: Duration,
}

impl MemorySheets {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, sheets: Arc::default(), is_away: Arc::default() }
    }

    /// While they are away, every call fails.
    pub(crate) fn set_away(&self, is_away: bool) {
        self.is_away.store(is_away, Ordering::Relaxed);
    }

    /// Forgets all of them, as an emptied cache does.
    pub(crate) fn lose(&self) {
        lock(&self.sheets).clear();
    }

    fn answer<T>(
        &self,
        answer: impl FnOnce(&mut BTreeMap<(SheetKind, String), Lives>) -> T,
    ) -> Result<T, CacheError> {
        if self.is_away.load(Ordering::Relaxed) {
            let message = "connection refused".to_owned();
            return Err(CacheError { kind: CacheErrorKind::Unavailable, message });
        }
        let mut sheets = lock(&self.sheets);
        let now = self.clock.monotonic();
        sheets.retain(|_, sheet| sheet.until > now);
        Ok(answer(&mut sheets))
    }
}

impl Sheets for MemorySheets {
    fn put<'a>(
        &'a self,
        (kind, id): (SheetKind, &'a str),
        field: &'a str,
        text: &'a str,
        ttl: Duration,
    ) -> BoxFuture<'a, Result<(), CacheError>> {
        Box::pin(async move {
            let until = self.clock.monotonic() + ttl;
            self.answer(|sheets| {
                let new = || Lives { fields: BTreeMap::new(), until };
                let sheet = sheets.entry((kind, id.to_owned())).or_insert_with(new);
                sheet.until = until;
                sheet.fields.insert(field.to_owned(), text.to_owned());
            })
        })
    }

    fn read(&self, kind: SheetKind) -> BoxFuture<'_, Result<Vec<Sheet>, CacheError>> {
        Box::pin(async move {
            self.answer(|sheets| {
                let of_kind = sheets.iter().filter(|((of, _), _)| *of == kind);
                let sheet = |((_, id), lives): (&(SheetKind, String), &Lives)| Sheet {
                    id: id.clone(),
                    fields: lives.fields.clone(),
                };
                of_kind.map(sheet).collect()
            })
        })
    }

    fn remove<'a>(&'a self, kind: SheetKind, id: &'a str) -> BoxFuture<'a, Result<(), CacheError>> {
        Box::pin(async move { self.answer(|sheets| drop(sheets.remove(&(kind, id.to_owned())))) })
    }
}
