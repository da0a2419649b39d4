-- The dispatchers, and what they say of their tasks.

-- name: register
INSERT INTO planton_dispatcher (id, host, pid, version, started_at, seen_at)
VALUES (:id, :host, :pid, :version, :now, :now);

-- name: beat
-- Returns the column as it is: SQLite 3.40 returns true for `NULL IS NOT NULL` here (WITHOUT ROWID).
UPDATE planton_dispatcher SET seen_at = :now, tasks = :tasks WHERE id = :id
RETURNING stop_requested_at;

-- name: report
INSERT INTO planton_decision (dispatcher_id, task_name, reported_at, report)
SELECT :id, key, :now, value FROM json_each(:reports) WHERE true
ON CONFLICT (task_name, dispatcher_id)
DO UPDATE SET reported_at = excluded.reported_at, report = excluded.report;

-- name: withdraw
DELETE FROM planton_decision
WHERE dispatcher_id = :id AND task_name IN (SELECT value FROM json_each(:gone));

-- name: forget
DELETE FROM planton_dispatcher WHERE id <> :id AND seen_at < :now - :silent;

-- name: forget_reports
DELETE FROM planton_decision WHERE dispatcher_id NOT IN (SELECT id FROM planton_dispatcher);

-- name: deregister
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
