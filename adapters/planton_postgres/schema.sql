-- Which migrations were applied, and where.

-- name: lock
-- One process at a time; the others try again. Let go of with the end of the transaction, so that it
-- works through a pooler. Of the schema, so that no other migration is in the way.
SELECT pg_try_advisory_xact_lock(7382190455018236 # hashtextextended(current_schema(), 0));

-- name: holders
-- Who has that lock, or one of our tables.
SELECT coalesce(string_agg(DISTINCT format(
    '%%s (pid %%s%%s)', held.usename, held.pid, nullif(', ' || held.application_name, ', ')
), '; '), '?')
FROM pg_locks JOIN pg_stat_activity AS held USING (pid)
WHERE granted AND pid <> pg_backend_pid() AND CASE locktype
    WHEN 'advisory' THEN (classid::bigint << 32 | objid::bigint)
        = 7382190455018236 # hashtextextended(current_schema(), 0)
    WHEN 'relation' THEN relation IN (
        SELECT oid FROM pg_class
        WHERE relnamespace = quote_ident(current_schema())::regnamespace AND relname LIKE 'planton\_%%'
    )
    ELSE false
END;

-- name: patience
SET LOCAL lock_timeout = '5s';

-- name: encoding
SELECT current_setting('server_encoding');

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

-- name: is_ours
-- Whether this role may change the sequences; then it owns the tables, too.
SELECT has_sequence_privilege('planton_claim_id', 'UPDATE')
    AND has_table_privilege('planton_active', 'SELECT, UPDATE');

-- name: is_behind
-- A sequence may lie behind after a failover or a restore: claims, or enqueuing, would fail.
SELECT coalesce((SELECT max(id) FROM planton_active) >= (
    SELECT last_value + is_called::integer FROM planton_claim_id
), false) OR coalesce((SELECT max(id) FROM planton_pending) >= (
    SELECT last_value + is_called::integer FROM planton_pending_id_seq
), false);

-- name: hold
LOCK TABLE planton_active, planton_pending IN SHARE ROW EXCLUSIVE MODE;

-- name: advance_sequences
SELECT setval('planton_claim_id', greatest(
    (SELECT last_value FROM planton_claim_id), (SELECT coalesce(max(id), 0) FROM planton_active)
)), setval('planton_pending_id_seq', greatest(
    (SELECT last_value FROM planton_pending_id_seq),
    (SELECT coalesce(max(id), 0) FROM planton_pending)
));

-- name: is_logged
SELECT relpersistence = 'p' FROM pg_class WHERE oid = 'planton_pending'::regclass;

-- name: unlog
-- Faster, and empty after a crash of the server.
ALTER TABLE planton_cron SET UNLOGGED;
ALTER TABLE planton_fired SET UNLOGGED;
ALTER TABLE planton_task SET UNLOGGED;
ALTER TABLE planton_pending SET UNLOGGED;
ALTER TABLE planton_active SET UNLOGGED;
ALTER TABLE planton_ended SET UNLOGGED;
