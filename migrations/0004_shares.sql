-- For which shares of the tenants a run was, as ranges: `0-20, 40`; null for a run that is no part of another: that of a
-- worker without a fleet, or of a job without tenants.
alter table preheat.runs add column shares text;
-- The parts of one run: its job was due, or requested, at the same moment.
create index runs_parts on preheat.runs (due_at) where shares is not null;
