-- Which migrations were applied, and where.

-- name: lock
-- One process at a time; the others wait. Let go of with the end of the transaction, so that it
-- works through a pooler. Of the schema, so that no other migration is in the way.
SELECT pg_advisory_xact_lock(7382190455018236 # hashtextextended(current_schema(), 0));

-- name: schema
-- The schema of our tables, NULL if the search_path leads to none; and the one where they would go.
SELECT (
    SELECT quote_ident(nspname) FROM pg_namespace AS n JOIN pg_class AS c ON c.relnamespace = n.oid
    WHERE c.oid = to_regclass('planton_schema')
), quote_ident(current_schema());

-- name: create
CREATE TABLE IF NOT EXISTS planton_schema (version integer NOT NULL);

-- name: version
SELECT coalesce(max(version), 0) FROM planton_schema;

-- name: applied
INSERT INTO planton_schema VALUES (%(version)s);

-- name: sequence
-- A sequence may lie behind after a failover or a restore: claims would fail.
SELECT setval('planton_claim_id', greatest(
    (SELECT last_value FROM planton_claim_id), (SELECT coalesce(max(id), 0) + 1 FROM planton_active)
));

-- name: unlog
-- Faster, and empty after a crash of the server.
ALTER TABLE planton_cron SET UNLOGGED;
ALTER TABLE planton_fired SET UNLOGGED;
ALTER TABLE planton_task SET UNLOGGED;
ALTER TABLE planton_pending SET UNLOGGED;
ALTER TABLE planton_active SET UNLOGGED;
ALTER TABLE planton_ended SET UNLOGGED;
