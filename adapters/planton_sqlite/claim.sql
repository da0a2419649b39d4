-- The strict claim, in the order of its statements; all in one transaction.

-- name: state
-- All that a look at an idle or saturated task needs.
SELECT
    clock.now,
    task.paused_at IS NOT NULL AS is_paused,
    task.concurrency,
    cron.next_fire_at,
    (SELECT count(*) FROM planton_active WHERE task_name = :task_name) AS active,
    (
        SELECT count(*) FROM planton_active
        WHERE task_name = :task_name AND lease_expires_at <= clock.now
    ) AS expired,
    (SELECT min(run_at) FROM planton_pending WHERE task_name = :task_name) AS first_run_at,
    (
        SELECT min(lease_expires_at) FROM planton_active WHERE task_name = :task_name
    ) AS lease_expires_at,
    coalesce(task.changes, 0) AS changes
FROM (SELECT (julianday('now') - 2440587.5) * 86400.0 AS now) AS clock
LEFT JOIN planton_task AS task ON task.task_name = :task_name
LEFT JOIN planton_cron AS cron ON cron.task_name = :task_name AND cron.key = :cron;

-- name: active
SELECT instruction FROM planton_active WHERE task_name = :task_name;

-- name: bury
-- Claims that were handed out as often as they may be: they end as dead.
INSERT INTO planton_ended (
    task_name, instruction, payload, priority, tags, retries, timeout, delivery, status, error,
    created_at, claimed_at, claimed_by, ended_at
)
SELECT task_name, instruction, payload, priority, tags, retries, timeout, delivery, 'dead',
    'its lease expired, and delivery ' || delivery || ' was the last', created_at, claimed_at,
    claimed_by, :now
FROM planton_active
WHERE task_name = :task_name AND lease_expires_at <= :now AND delivery >= :deliveries AND :is_kept;

-- name: forget_buried
DELETE FROM planton_active
WHERE task_name = :task_name AND lease_expires_at <= :now AND delivery >= :deliveries;

-- name: roll_back
-- Claims whose lease expired and that this dispatcher does not offer to take: those that do find
-- them in the queue. Left here they would hold their slots until such a one comes.
INSERT INTO planton_pending (
    task_name, instruction, payload, priority, tags, retries, timeout, delivery, error,
    given_back, created_at, run_at
)
SELECT task_name, instruction, payload, priority, tags, retries, timeout, delivery, error,
    given_back, created_at, :now
FROM planton_active AS active
WHERE task_name = :task_name AND lease_expires_at <= :now AND NOT (
    instruction GLOB :key AND (tags = '[]' OR NOT EXISTS (
        SELECT 1 FROM json_each(active.tags) AS tag
        WHERE tag.value NOT IN (SELECT value FROM json_each(:tags))
    ))
)
ORDER BY lease_expires_at
ON CONFLICT (task_name, instruction) DO NOTHING;

-- name: forget_rolled_back
DELETE FROM planton_active AS active
WHERE task_name = :task_name AND lease_expires_at <= :now AND NOT (
    instruction GLOB :key AND (tags = '[]' OR NOT EXISTS (
        SELECT 1 FROM json_each(active.tags) AS tag
        WHERE tag.value NOT IN (SELECT value FROM json_each(:tags))
    ))
);

-- name: take_over
-- Claims whose lease expired already hold their slots: they change hands.
UPDATE planton_active
SET receipt = random(), delivery = delivery + 1, claimed_at = :now, claimed_by = :claimed_by,
    lease = :lease,
    lease_expires_at = :now + min(:lease, coalesce(timeout, :lease))
WHERE receipt IN (
    SELECT receipt FROM planton_active
    WHERE task_name = :task_name AND lease_expires_at <= :now
    ORDER BY lease_expires_at LIMIT :limit
)
RETURNING instruction, receipt, payload, delivery, lease, timeout;

-- name: due
-- Not one whose instruction is active: it waits for that claim to end. Left to itself the planner
-- takes the index of the times, and sorts the whole backlog at every claim.
SELECT id, instruction FROM planton_pending AS pending INDEXED BY planton_pending_due
WHERE task_name = :task_name AND run_at <= :now AND instruction GLOB :key
  AND (tags = '[]' OR NOT EXISTS (
    SELECT 1 FROM json_each(pending.tags) AS tag
    WHERE tag.value NOT IN (SELECT value FROM json_each(:tags))
  ))
  AND NOT EXISTS (
    SELECT 1 FROM planton_active AS active
    WHERE active.task_name = pending.task_name AND active.instruction = pending.instruction
  )
ORDER BY priority DESC, run_at, id LIMIT :limit;

-- name: activate
INSERT INTO planton_active (
    receipt, task_name, instruction, payload, priority, tags, retries, timeout, delivery, error,
    given_back, created_at, claimed_at, claimed_by, lease, lease_expires_at
)
SELECT random(), task_name, instruction, payload, priority, tags, retries, timeout, delivery + 1,
    error, given_back, created_at, :now, :claimed_by, :lease,
    :now + min(:lease, coalesce(timeout, :lease))
FROM json_each(:ids) AS due JOIN planton_pending AS pending ON pending.id = due.value
RETURNING instruction, receipt, payload, delivery, lease, timeout;

-- name: unqueue
DELETE FROM planton_pending WHERE id IN (SELECT value FROM json_each(:ids));

-- name: next_run
SELECT min(run_at) FROM planton_pending WHERE task_name = :task_name AND run_at > :now;

-- name: left_out
-- How many rows, besides the active ones, a plain SELECT may find that are not to be claimed.
SELECT (SELECT count(*) FROM planton_pending WHERE task_name = :task_name),
    (SELECT count(*) FROM planton_ended WHERE task_name = :task_name AND status <> 'succeeded');

-- name: record
-- What the user's own statement gave, or the times of a cron task. One is active already, or
-- waits for a retry, when a plain SELECT finds its row again: it is not claimed a second time.
-- Nor is one that failed for good, and has not succeeded since: it would be claimed again at once,
-- before all others. A time fires once, however it ended: which it can only have done since it came.
INSERT INTO planton_active (
    receipt, task_name, instruction, retries, delivery, created_at, claimed_at, claimed_by, lease,
    lease_expires_at
)
SELECT random(), :task_name, found.value, :retries, 1, :now, :now, :claimed_by, :lease,
    :now + :lease
FROM json_each(:instructions) AS found
WHERE NOT EXISTS (
    SELECT 1 FROM planton_pending WHERE task_name = :task_name AND instruction = found.value
) AND NOT EXISTS (
    SELECT 1 FROM planton_active WHERE task_name = :task_name AND instruction = found.value
) AND NOT (:is_select AND EXISTS (
    SELECT 1 FROM planton_ended
    WHERE task_name = :task_name AND instruction = found.value AND status <> 'succeeded'
      AND NOT is_past
)) AND NOT EXISTS (
    SELECT 1 FROM planton_ended
    WHERE ended_at >= :since AND task_name = :task_name AND instruction = found.value
)
ORDER BY found.key LIMIT :limit
ON CONFLICT (task_name, instruction) DO NOTHING
RETURNING instruction, receipt, payload, delivery, lease, timeout;

-- name: postpone
-- What the user's statement has marked as claimed although it is active still: its row will not
-- be found again, so it waits here until that claim has ended.
INSERT INTO planton_pending (task_name, instruction, retries, created_at, run_at)
SELECT :task_name, found.value, :retries, :now, :now
FROM json_each(:instructions) AS found
WHERE true
ON CONFLICT (task_name, instruction) DO NOTHING;

-- name: keep_changes
UPDATE planton_task SET changes = :changes WHERE task_name = :task_name AND changes <> :changes;

-- name: fires
SELECT key, next_fire_at, is_done FROM planton_cron WHERE task_name = :task_name;

-- name: keep_next_fire
INSERT INTO planton_cron (task_name, key, next_fire_at) VALUES (:task_name, :key, :next_fire_at)
ON CONFLICT (task_name, key) DO UPDATE SET next_fire_at = excluded.next_fire_at, is_done = 0;

-- name: fires_done
UPDATE planton_cron SET is_done = 1
WHERE task_name = :task_name AND key IN (SELECT value FROM json_each(:keys));

-- name: forget_fires
DELETE FROM planton_cron
WHERE task_name = :task_name AND key IN (SELECT value FROM json_each(:keys));
