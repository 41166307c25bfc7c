//! The pauses of jobs in schema `preheat`, beside the run records.

use futures::future::BoxFuture;
use serde::Serialize;

use super::history::PostgresHistory;
use crate::domain::job::JobName;
use crate::domain::pause::{Pause, Pauses};
use crate::domain::server::Server;
use crate::engine::ports::{HistoryError, PauseChanges, PauseStore, PauseStoreError};

const ALL: &str = "select job, json_build_object('note', note, 'by', paused_by, \
     'since', paused_at, 'until', until)::text from preheat.pauses";

const REMOVE: &str = "delete from preheat.pauses where job = any($1)";

const KEEP: &str = "insert into preheat.pauses (job, note, paused_by, paused_at, until) \
     select job, note, by, since, until from jsonb_to_recordset($1::jsonb) \
     as p(job text, note text, by text, since timestamptz, until timestamptz) \
     on conflict (job) do update set note = excluded.note, paused_by = excluded.paused_by, \
     paused_at = excluded.paused_at, until = excluded.until";

/// A pause as a row.
#[derive(Serialize)]
struct PauseRow<'a> {
    job: &'a str,
    #[serde(flatten)]
    pause: &'a Pause,
}

impl PauseStore for PostgresHistory {
    fn pauses(&self) -> BoxFuture<'_, Result<Option<Pauses>, PauseStoreError>> {
        Box::pin(async move {
            let rows: Vec<(String, String)> = self
                .run("read the pauses", |connection| {
                    Box::pin(sqlx::query_as(ALL).persistent(false).fetch_all(connection))
                })
                .await?;
            // A row that a newer version wrote, and this one cannot read, does not hide the others.
            let read = |(job, pause): (String, String)| {
                Some((JobName::parse(&job).ok()?, serde_json::from_str(&pause).ok()?))
            };
            Ok(Some(rows.into_iter().filter_map(read).collect()))
        })
    }

    fn keep<'a>(&'a self, changes: &'a PauseChanges) -> BoxFuture<'a, Result<(), PauseStoreError>> {
        Box::pin(async move {
            let doing = "keep the pauses";
            let resumed = changes.iter().filter(|(_, pause)| pause.is_none());
            let resumed: Vec<String> = resumed.map(|(job, _)| job.to_string()).collect();
            let row = |(job, pause): (&'a JobName, &'a Option<Pause>)| {
                Some(PauseRow { job: job.as_str(), pause: pause.as_ref()? })
            };
            let rows: Vec<PauseRow<'_>> = changes.iter().filter_map(row).collect();
            let rows = serde_json::to_string(&rows)
                .map_err(|error| PauseStoreError(format!("could not {doing}: {error}")))?;
            self.run(doing, |connection| {
                Box::pin(async move {
                    let remove = sqlx::query(REMOVE).bind(resumed).persistent(false);
                    remove.execute(&mut *connection).await?;
                    let keep = sqlx::query(KEEP).bind(rows).persistent(false);
                    keep.execute(connection).await.map(drop)
                })
            })
            .await?;
            Ok(())
        })
    }

    fn server(&self) -> Server {
        Server::Database
    }
}

impl From<HistoryError> for PauseStoreError {
    fn from(HistoryError(message): HistoryError) -> Self {
        Self(message)
    }
}
