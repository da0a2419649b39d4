-- The dispatchers, and what they say of their tasks.

-- part: dead
SELECT id FROM planton_dispatcher WHERE id <> :id AND seen_at < :now - :silent

-- name: register
INSERT INTO planton_dispatcher (id, host, pid, version, started_at, seen_at)
VALUES (:id, :host, :pid, :version, :now, :now);

-- name: beat
-- All that a dispatcher has to say, and to hear, every few seconds; nothing if it is unknown.
INSERT INTO planton_decision (dispatcher_id, task_name, reported_at, report)
SELECT :id, key, :now, value FROM json_each(:reports)
WHERE EXISTS (SELECT 1 FROM planton_dispatcher WHERE id = :id)
ON CONFLICT (task_name, dispatcher_id)
DO UPDATE SET reported_at = excluded.reported_at, report = excluded.report;
DELETE FROM planton_decision
WHERE (:gone <> '[]' OR EXISTS ({dead})) AND (
    dispatcher_id IN ({dead})
    OR dispatcher_id = :id AND task_name IN (SELECT value FROM json_each(:gone))
);
DELETE FROM planton_dispatcher WHERE id IN ({dead});
-- Returns the column as it is: SQLite 3.40 returns true for `NULL IS NOT NULL` here (WITHOUT ROWID).
UPDATE planton_dispatcher SET seen_at = :now, tasks = :tasks WHERE id = :id
RETURNING stop_requested_at;

-- name: deregister
DELETE FROM planton_decision WHERE dispatcher_id = :id;
DELETE FROM planton_dispatcher WHERE id = :id;

-- name: dispatchers
SELECT id, host, pid, version, started_at, seen_at, max(:now - seen_at, 0.0) AS silent_for,
    stop_requested_at, tasks
FROM planton_dispatcher ORDER BY started_at, id;

-- name: request_stop
UPDATE planton_dispatcher SET stop_requested_at = coalesce(stop_requested_at, :now)
WHERE :ids IS NULL OR id IN (SELECT value FROM json_each(:ids))
RETURNING id;

-- name: decisions
SELECT dispatcher_id, task_name, reported_at, report FROM planton_decision
WHERE :task_name IS NULL OR task_name = :task_name
ORDER BY task_name, dispatcher_id;
