-- Who asked for a run, where somebody did over HTTP.
alter table preheat.runs add column requested_by text;

-- The jobs that are paused now. A job that is gone keeps its row, so that it is still paused when it comes back.
create table preheat.pauses (
  job       text primary key,
  note      text not null,
  paused_by text not null,
  paused_at timestamptz not null,
  until     timestamptz
);
