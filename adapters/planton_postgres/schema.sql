-- Which migrations were applied, and where.

-- name: patience
SELECT set_config('lock_timeout', %(milliseconds)s::text, true);

-- name: lock
-- One process at a time; the others wait. Nobody can take it who may not write to the table.
LOCK TABLE planton_schema IN SHARE ROW EXCLUSIVE MODE;

-- name: holders
-- Who has locks on our tables, those first that lock more than reading does.
SELECT activity.pid, activity.usename, activity.application_name, activity.state,
       extract(epoch FROM clock_timestamp() - activity.xact_start)::double precision
FROM pg_stat_activity AS activity JOIN (
    SELECT pid, bool_or(mode <> 'AccessShareLock') AS is_strong
    FROM pg_locks JOIN pg_class ON pg_class.oid = pg_locks.relation
    WHERE granted AND pg_locks.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND starts_with(relname, 'planton_')
    GROUP BY pid
) AS held USING (pid)
WHERE pid <> pg_backend_pid() ORDER BY is_strong DESC, activity.xact_start LIMIT 3;

-- name: settings
-- Those of the server, the database or the role with which other things would be stored than given.
SELECT name, current_setting(name), needed
FROM (VALUES
    ('server_encoding', 'UTF8'), ('default_transaction_read_only', 'off'), ('array_nulls', 'on'),
    ('extra_float_digits', '1')
) AS setting (name, needed)
WHERE current_setting(name) <> needed
  AND NOT (name = 'extra_float_digits' AND current_setting(name)::integer > 1);

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

-- name: unlog
-- Faster, and empty after a crash of the server.
ALTER TABLE planton_cron SET UNLOGGED;
ALTER TABLE planton_fired SET UNLOGGED;
ALTER TABLE planton_task SET UNLOGGED;
ALTER TABLE planton_pending SET UNLOGGED;
ALTER TABLE planton_active SET UNLOGGED;
ALTER TABLE planton_ended SET UNLOGGED;
