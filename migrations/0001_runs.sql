-- One row a run that ended. The report is kept whole; what people ask for is lifted out of it.
create table preheat.runs (
  id             uuid primary key,
  job            text not null,
  trigger        text not null,
  outcome        text not null,
  due_at         timestamptz not null,
  started_at     timestamptz not null,
  finished_at    timestamptz not null,
  replica        text not null,
  version        text not null,
  report         jsonb not null,
  tenants_total  bigint generated always as ((report -> 'tenants' ->> 'total')::bigint) stored,
  tenants_ok     bigint generated always as ((report -> 'tenants' ->> 'ok')::bigint) stored,
  tenants_failed bigint generated always as ((report -> 'tenants' ->> 'failed')::bigint) stored,
  keys_written   bigint generated always as ((report -> 'keys' ->> 'written')::bigint) stored,
  keys_removed   bigint generated always as ((report -> 'keys' ->> 'removed')::bigint) stored,
  keys_failed    bigint generated always as ((report -> 'keys' ->> 'failed')::bigint) stored,
  bytes          bigint generated always as ((report ->> 'bytes')::bigint) stored,
  first_error    text generated always as (report -> 'failures' -> 0 ->> 'message') stored
);
create index runs_newest on preheat.runs (started_at desc, id desc);
create index runs_newest_of_job on preheat.runs (job, started_at desc, id desc);
create index runs_retention on preheat.runs (finished_at);
