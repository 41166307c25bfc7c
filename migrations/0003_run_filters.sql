-- Whether a run was for all active tenants; null in records of versions that did not keep it.
alter table preheat.runs add column all_tenants boolean;
create index runs_newest_by_outcome on preheat.runs (outcome, started_at desc, id desc);
create index runs_newest_by_trigger on preheat.runs (trigger, started_at desc, id desc);
create index runs_over_all_tenants on preheat.runs (job, started_at desc, id desc)
  where outcome in ('ok', 'partial') and coalesce(all_tenants, trigger in ('schedule', 'startup'));
