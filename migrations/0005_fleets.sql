-- Which fleet's run a run is a part of: the prefix of the fleet's cache. Null for a cache without a prefix, and for a run that is
-- no part of another.
alter table preheat.runs add column fleet text;
