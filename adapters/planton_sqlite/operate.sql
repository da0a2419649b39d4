-- What producers and operators do.

-- part: row
task_name, instruction, payload, priority, tags, retries, timeout, "partition"

-- part: last_ends
SELECT max(id) FROM planton_ended
WHERE task_name = :task_name AND instruction IN (SELECT value FROM json_each(:instructions))
GROUP BY instruction

-- name: enqueue
INSERT INTO planton_pending (
    task_name, instruction, payload, priority, run_at, tags, retries, timeout, "partition", created_at
)
SELECT value ->> 'task_name', value ->> 'instruction', value ->> 'payload', value ->> 'priority',
    coalesce(value ->> 'run_at', :now), value -> 'tags', value ->> 'retries', value ->> 'timeout',
    value ->> 'partition', :now
FROM json_each(:new) WHERE true ORDER BY key
ON CONFLICT (task_name, instruction) DO NOTHING RETURNING task_name, instruction;

-- name: pause
INSERT INTO planton_task (task_name, paused_at) VALUES (:task_name, :now)
ON CONFLICT (task_name) DO UPDATE SET paused_at = coalesce(paused_at, excluded.paused_at);

-- name: resume
UPDATE planton_task SET paused_at = NULL WHERE task_name = :task_name;

-- name: set_concurrency
INSERT INTO planton_task (task_name, concurrency) VALUES (:task_name, :concurrency)
ON CONFLICT (task_name) DO UPDATE SET concurrency = excluded.concurrency;

-- name: active
SELECT task_name, instruction FROM planton_active
WHERE task_name IN (SELECT value FROM json_each(:task_names)) ORDER BY id;

-- name: failed_ends
-- What failed and has not succeeded since.
SELECT DISTINCT instruction FROM planton_ended
WHERE task_name = :task_name AND status <> 'succeeded' AND NOT superseded;

-- name: ends
SELECT DISTINCT instruction FROM planton_ended
WHERE task_name = :task_name AND instruction IN (SELECT value FROM json_each(:instructions));

-- name: living
-- Which of some instructions are queued or active.
SELECT instruction FROM planton_pending
WHERE task_name = :task_name AND instruction IN (SELECT value FROM json_each(:instructions))
UNION SELECT instruction FROM planton_active
WHERE task_name = :task_name AND instruction IN (SELECT value FROM json_each(:instructions));

-- name: retry
-- They begin anew, but for the error that they had; all of them, or none.
INSERT INTO planton_pending ({row}, error, created_at, run_at)
SELECT {row}, error, created_at, :now FROM planton_ended
WHERE id IN ({last_ends})
  AND (SELECT count(*) FROM ({last_ends})) = json_array_length(:instructions)
  AND NOT EXISTS (
    SELECT 1 FROM json_each(:instructions) WHERE EXISTS (
        SELECT 1 FROM planton_pending WHERE task_name = :task_name AND instruction = value
    ) OR EXISTS (
        SELECT 1 FROM planton_active WHERE task_name = :task_name AND instruction = value
    )
)
ORDER BY instruction;
-- The last end came back; any failure would keep the row of a plain SELECT from being claimed.
DELETE FROM planton_ended
WHERE changes() > 0 AND task_name = :task_name
  AND instruction IN (SELECT value FROM json_each(:instructions))
  AND (status <> 'succeeded' OR id IN ({last_ends}));
SELECT changes();

-- name: drop
DELETE FROM planton_pending WHERE task_name = :task_name AND (
    :instructions IS NULL OR instruction IN (SELECT value FROM json_each(:instructions))
);
SELECT changes();

-- name: find
-- Of equally old ones those first that have come further.
SELECT task_name, instruction, status, payload, priority, tags, retries, timeout,
    "partition", delivery, result, error, created_at, run_at, claimed_at, claimed_by,
    lease_expires_at, ended_at
FROM (
    SELECT task_name, instruction, 'queued' AS status, payload, priority, tags, retries, timeout,
        "partition", delivery, NULL AS result, error, NULL AS claimed_by, created_at, run_at,
        NULL AS claimed_at, NULL AS lease_expires_at, NULL AS ended_at, 2 AS stage, id
    FROM planton_pending
    UNION ALL
    SELECT task_name, instruction, 'running', payload, priority, tags, retries, timeout,
        "partition", delivery, NULL, error, claimed_by, created_at, NULL, claimed_at, lease_expires_at,
        NULL, 1, id
    FROM planton_active
    UNION ALL
    SELECT task_name, instruction, status, payload, priority, tags, retries, timeout,
        "partition", delivery, result, error, claimed_by, created_at, NULL, claimed_at, NULL, ended_at, 0, id
    FROM planton_ended
)
WHERE (:status IS NULL OR status = :status)
  AND (:task_name IS NULL OR task_name = :task_name)
  AND (:instruction IS NULL OR instruction = :instruction)
  AND (:older_than IS NULL OR created_at < :now - :older_than)
ORDER BY created_at, stage, id LIMIT :limit;

-- name: stats
SELECT names.task_name, coalesce(queued, 0), coalesce(running, 0), coalesce(succeeded, 0),
    coalesce(failed, 0), coalesce(dead, 0), oldest_due_at, task.paused_at IS NOT NULL,
    task.concurrency
FROM (
    SELECT task_name FROM planton_task
    UNION SELECT task_name FROM planton_pending
    UNION SELECT task_name FROM planton_active
    UNION SELECT task_name FROM planton_ended
) AS names
LEFT JOIN planton_task AS task USING (task_name)
LEFT JOIN (
    SELECT task_name, count(*) AS queued,
        min(run_at) FILTER (WHERE run_at <= :now) AS oldest_due_at
    FROM planton_pending GROUP BY task_name
) USING (task_name)
LEFT JOIN (
    SELECT task_name, count(*) AS running FROM planton_active GROUP BY task_name
) USING (task_name)
LEFT JOIN (
    SELECT task_name, count(*) FILTER (WHERE status = 'succeeded') AS succeeded,
        count(*) FILTER (WHERE status = 'failed') AS failed,
        count(*) FILTER (WHERE status = 'dead') AS dead
    FROM planton_ended GROUP BY task_name
) USING (task_name)
ORDER BY names.task_name;

-- name: prune
DELETE FROM planton_ended WHERE id IN (
    SELECT id FROM planton_ended
    WHERE ended_at <= :now - :older_than AND status IN (SELECT value FROM json_each(:statuses))
    ORDER BY ended_at LIMIT :limit
);
SELECT changes();

-- name: count_changes
-- From 1 on, so that the first claim has something to note.
INSERT INTO planton_task (task_name, changes) VALUES (:task_name, 1)
ON CONFLICT (task_name) DO UPDATE SET changes = max(changes, 1);

-- name: triggers
-- Of each trigger of a table whether it is there, and how it is made and dropped; none if there is
-- no such table. No parameters are allowed in there, so SQLite itself writes it: %w inside of "",
-- %Q is a text. The table's name is as it was made: SQLite does not mind the case of letters.
SELECT made.name IS NOT NULL, printf(
    'CREATE TRIGGER "%w" AFTER %s ON "%w" BEGIN '
    || 'UPDATE planton_task SET changes = changes + 1 WHERE task_name = %Q; END',
    wanted.name, event, "table", :task_name
), printf('DROP TRIGGER "%w"', wanted.name)
FROM (
    SELECT name AS "table", event,
        printf('planton wakes %Q after %s of %Q', :task_name, lower(event), name) AS name
    FROM sqlite_master, (SELECT 'INSERT' AS event UNION ALL SELECT 'UPDATE')
    WHERE name = :table COLLATE NOCASE AND type = 'table' AND name NOT LIKE 'sqlite!_%' ESCAPE '!'
) AS wanted
LEFT JOIN sqlite_master AS made ON made.type = 'trigger' AND made.name = wanted.name;
