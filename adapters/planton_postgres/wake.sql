-- Wake-ups; the functions are made by migration 5.

-- name: channel
SELECT planton_channel();

-- name: notify
-- Tells whether what is sent is heard.
SELECT pg_notify(%(channel)s, %(payload)s);

-- name: table
-- What a name stands for; NULL if it is none of a table.
SELECT relkind IN ('r', 'p') FROM pg_class WHERE oid = to_regclass(%(table)s);

-- name: wake_on_change
SELECT planton_wake_on_change(to_regclass(%(table)s), %(task_name)s);

-- name: ignore_changes
SELECT planton_ignore_changes(to_regclass(%(table)s), %(task_name)s);
