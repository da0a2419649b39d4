-- What producers and operators do.

-- name: enqueue
INSERT INTO planton_pending (
    task_name, instruction, payload, priority, run_at, tags, retries, timeout
)
VALUES (
    :task_name, :instruction, :payload, :priority,
    coalesce(:run_at, (julianday('now') - 2440587.5) * 86400.0), :tags, :retries, :timeout
)
ON CONFLICT (task_name, instruction) DO NOTHING;

-- name: pause
INSERT INTO planton_task (task_name, paused_at)
VALUES (:task_name, (julianday('now') - 2440587.5) * 86400.0)
ON CONFLICT (task_name) DO UPDATE SET paused_at = coalesce(paused_at, excluded.paused_at);

-- name: resume
UPDATE planton_task SET paused_at = NULL WHERE task_name = :task_name;

-- name: set_concurrency
INSERT INTO planton_task (task_name, concurrency) VALUES (:task_name, :concurrency)
ON CONFLICT (task_name) DO UPDATE SET concurrency = excluded.concurrency;

-- name: unset_concurrency
UPDATE planton_task SET concurrency = NULL WHERE task_name = :task_name;

-- name: failed_ends
-- The last end as failed or dead of each instruction of a task, by the index of these.
SELECT instruction, max(id) FROM planton_ended
WHERE task_name = :task_name AND status <> 'succeeded'
  AND (:instructions IS NULL OR instruction IN (SELECT value FROM json_each(:instructions)))
GROUP BY instruction;

-- name: succeeded_since
-- Which of some instructions succeeded after that; the history is read from there on.
SELECT instruction, max(id) FROM planton_ended
WHERE id > :since AND task_name = :task_name AND status = 'succeeded'
  AND instruction IN (SELECT value FROM json_each(:instructions))
GROUP BY instruction;

-- name: living
-- Which of some instructions are queued or active.
SELECT value FROM json_each(:instructions) AS asked
WHERE EXISTS (
    SELECT 1 FROM planton_pending WHERE task_name = :task_name AND instruction = asked.value
) OR EXISTS (
    SELECT 1 FROM planton_active WHERE task_name = :task_name AND instruction = asked.value
);

-- name: revive
INSERT INTO planton_pending (
    task_name, instruction, payload, priority, tags, retries, timeout, error, created_at
)
SELECT task_name, instruction, payload, priority, tags, retries, timeout, error, created_at
FROM planton_ended WHERE id IN (SELECT value FROM json_each(:ids)) ORDER BY id;

-- name: forget_failed
-- All failures of what begins anew: any of them would keep its row from being claimed.
DELETE FROM planton_ended
WHERE task_name = :task_name AND status <> 'succeeded' AND instruction IN (
    SELECT instruction FROM planton_ended WHERE id IN (SELECT value FROM json_each(:ids))
);

-- name: forget
DELETE FROM planton_ended WHERE id IN (SELECT value FROM json_each(:ids));

-- name: find
-- Of equally old ones those first that have come further.
SELECT task_name, instruction, status, payload, priority, tags, retries, timeout, delivery, result,
    error, claimed_by, created_at, run_at, claimed_at, lease_expires_at, ended_at
FROM (
    SELECT task_name, instruction, 'queued' AS status, payload, priority, tags, retries, timeout,
        delivery, NULL AS result, error, NULL AS claimed_by, created_at, run_at, NULL AS claimed_at,
        NULL AS lease_expires_at, NULL AS ended_at, 2 AS stage, id
    FROM planton_pending
    UNION ALL
    SELECT task_name, instruction, 'running', payload, priority, tags, retries, timeout,
        delivery, NULL, error, claimed_by, created_at, NULL, claimed_at, lease_expires_at, NULL, 1,
        rowid
    FROM planton_active
    UNION ALL
    SELECT task_name, instruction, status, payload, priority, tags, retries, timeout,
        delivery, result, error, claimed_by, created_at, NULL, claimed_at, NULL, ended_at, 0, id
    FROM planton_ended
)
WHERE (:status IS NULL OR status = :status)
  AND (:task_name IS NULL OR task_name = :task_name)
  AND (:instruction IS NULL OR instruction = :instruction)
  AND (:older_than IS NULL
       OR created_at <= (julianday('now') - 2440587.5) * 86400.0 - :older_than)
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
        min(run_at) FILTER (WHERE run_at <= (julianday('now') - 2440587.5) * 86400.0)
            AS oldest_due_at
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
    WHERE ended_at <= (julianday('now') - 2440587.5) * 86400.0 - :older_than
    ORDER BY ended_at LIMIT :limit
);
