-- Which migrations were applied.

-- name: lock
-- One process at a time; the others wait. Let go of with the end of the transaction, so that it
-- works through a pooler. The number means nothing, but is the same everywhere.
SELECT pg_advisory_xact_lock(7382190455018236);

-- name: create
CREATE TABLE IF NOT EXISTS planton_schema (version integer NOT NULL);

-- name: version
SELECT coalesce(max(version), 0) FROM planton_schema;

-- name: applied
INSERT INTO planton_schema VALUES (%(version)s);

-- name: unlog
-- Faster, and empty after a crash of the server.
ALTER TABLE planton_cron SET UNLOGGED;
ALTER TABLE planton_task SET UNLOGGED;
ALTER TABLE planton_pending SET UNLOGGED;
ALTER TABLE planton_active SET UNLOGGED;
ALTER TABLE planton_ended SET UNLOGGED;

-- name: is_logged
SELECT bool_or(relpersistence = 'p') FROM pg_class WHERE oid = ANY (
    '{planton_task,planton_cron,planton_pending,planton_active,planton_ended}'::regclass[]
);
