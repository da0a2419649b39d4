-- The statements of the claim, by its steps; see _claim.py.

-- part: row
task_name, instruction, payload, priority, tags, retries, timeout, "partition"

-- part: is_offered
(
    instruction GLOB (:key || '') AND (tags = '[]' OR NOT EXISTS (
        SELECT 1 FROM json_each(tags) AS tag
        WHERE tag.value NOT IN (SELECT value FROM json_each(:tags))
    ))
)

-- part: after
(
    SELECT "partition" FROM planton_pending INDEXED BY planton_pending_partition
    WHERE task_name = :task_name AND "partition" <> '' AND "partition" >

-- part: is_not_active
-- A look for each row that is due: a list of what is active would be made by every claim.
NOT EXISTS (
    WITH active (name) AS (SELECT instruction FROM planton_active WHERE task_name = :task_name)
    SELECT 1 FROM active WHERE name = instruction
)

-- name: task
SELECT paused_at IS NOT NULL, concurrency, changes, turn FROM planton_task WHERE task_name = :task_name;

-- name: count
SELECT count(*), min(iif(lease_expires_at > :after, lease_expires_at, NULL))
FROM planton_active WHERE task_name = :task_name;

-- name: active
SELECT instruction FROM planton_active WHERE task_name = :task_name ORDER BY id;

-- name: end_exhausted
-- Claims whose lease is over for the last time: they end as dead.
INSERT INTO planton_ended (
    {row}, delivery, status, error, created_at, claimed_at, claimed_by, ended_at
)
SELECT {row}, delivery, 'dead',
    'its lease expired, and its deliveries are used up: ' || delivery
    || coalesce('; the error before was: ' || error, ''), created_at, claimed_at, claimed_by, :now
FROM planton_active
WHERE :keeps AND task_name = :task_name AND lease_expires_at <= :now AND delivery >= :deliveries
ORDER BY id;

-- name: drop_exhausted
DELETE FROM planton_active
WHERE task_name = :task_name AND lease_expires_at <= :now AND delivery >= :deliveries;

-- name: requeue_not_offered
-- Claims whose lease is over and that this dispatcher does not offer: those that do find them in
-- the queue. Here they would hold their slots until such a one comes.
INSERT INTO planton_pending ({row}, delivery, failures, undelivered, error, created_at, run_at)
SELECT {row}, delivery, failures, undelivered, error, created_at, :now
FROM planton_active
WHERE task_name = :task_name AND lease_expires_at <= :now AND NOT {is_offered}
ORDER BY id
ON CONFLICT (task_name, instruction) DO NOTHING;

-- name: drop_not_offered
DELETE FROM planton_active
WHERE task_name = :task_name AND lease_expires_at <= :now AND NOT {is_offered};

-- name: rescue
-- The others hold their slots already: they get a new token and are delivered again.
UPDATE planton_active
SET token = :token, delivery = delivery + 1, claimed_at = :now, claimed_by = :claimed_by,
    lease = :lease, lease_expires_at = :now + min(:lease, coalesce(timeout, :lease))
WHERE id IN (
    SELECT id FROM planton_active
    WHERE task_name = :task_name AND lease_expires_at <= :now
    ORDER BY lease_expires_at, id LIMIT :room
)
RETURNING id, instruction, payload, delivery, timeout, "partition";

-- name: others
SELECT count(*) FROM planton_active WHERE task_name = :task_name AND lease_expires_at > :now;

-- name: next_level
SELECT max(priority) FROM planton_pending WHERE task_name = :task_name AND priority < :level;

-- name: due
-- What is active stays in the queue until that claim has ended.
SELECT id FROM planton_pending INDEXED BY planton_pending_due
WHERE task_name = :task_name AND priority = :level AND run_at <= :now AND {is_offered}
  AND {is_not_active}
ORDER BY run_at, id LIMIT :room;

-- name: partitions
SELECT "partition", count(*) FROM planton_active
WHERE task_name = :task_name AND "partition" <> '' GROUP BY "partition";

-- name: ring
-- Partitions, from name to name through the index, once around; what has none is one of them. It
-- begins after the one that was served last, by whichever dispatcher.
WITH RECURSIVE ring (lap, "partition", next) AS (
    SELECT 0, :turn, {after} :turn ORDER BY "partition" LIMIT 1)
    UNION ALL
    SELECT iif(next IS NULL, 1, lap), coalesce(next, ''),
        {after} coalesce(ring.next, '') ORDER BY "partition" LIMIT 1)
    FROM ring WHERE lap = 0 OR next <= :turn
)
SELECT "partition" FROM ring LIMIT -1 OFFSET 1;

-- name: due_of_partition
SELECT id FROM planton_pending INDEXED BY planton_pending_partition
WHERE task_name = :task_name AND "partition" = :partition AND "partition" <> ''
  AND run_at <= :now AND {is_offered}
  AND {is_not_active}
ORDER BY priority DESC, run_at, id LIMIT :room OFFSET :taken;

-- name: due_of_none
-- What has no partition: of a priority it is looked for among the first thousand; a longer look would
-- cost as much as others have queued.
SELECT id FROM (
    SELECT * FROM planton_pending INDEXED BY planton_pending_due
    WHERE task_name = :task_name AND priority = :level AND run_at <= :now
    ORDER BY run_at, id LIMIT 1000
) WHERE "partition" = '' AND {is_offered}
  AND {is_not_active};

-- name: keep_turn
INSERT INTO planton_task (task_name, turn) VALUES (:task_name, :turn)
ON CONFLICT (task_name) DO UPDATE SET turn = excluded.turn;

-- name: next_due
-- Of what is not active: the end of that claim wakes the task, or its lease is over sooner. Later than
-- the last second of a datetime is never.
SELECT run_at FROM planton_pending INDEXED BY planton_pending_due
WHERE task_name = :task_name AND priority = :level AND run_at > :after
  AND run_at <= 253402300799.0 AND {is_offered} AND {is_not_active}
ORDER BY run_at LIMIT 1;

-- name: record_due
INSERT INTO planton_active (
    token, {row}, delivery, failures, undelivered, error, created_at, claimed_at, claimed_by, lease,
    lease_expires_at
)
SELECT :token, {row}, delivery + 1, failures, undelivered, error, created_at, :now, :claimed_by, :lease,
    :now + min(:lease, coalesce(timeout, :lease))
FROM json_each(:ids) AS due JOIN planton_pending AS pending ON pending.id = due.value
ORDER BY priority DESC, run_at, pending.id
RETURNING id, instruction, payload, delivery, timeout, "partition";

-- name: drop_due
DELETE FROM planton_pending WHERE id IN (SELECT value FROM json_each(:ids));

-- name: record_given
-- What the source of the task gave.
INSERT INTO planton_active (
    token, task_name, instruction, "partition", retries, delivery, created_at, claimed_at, claimed_by,
    lease, lease_expires_at
)
SELECT :token, :task_name, given.value ->> 0, given.value ->> 1, :retries, 1, :now, :now, :claimed_by,
    :lease, :now + :lease
FROM json_each(:given) AS given
ORDER BY given.key
RETURNING id, instruction, payload, delivery, timeout, "partition";

-- name: known
-- What was given and is active or queued; or failed for good, which a statement that does not mark
-- finds again.
SELECT value ->> 0 FROM json_each(:given) AS given WHERE EXISTS (
    SELECT 1 FROM planton_active WHERE task_name = :task_name AND instruction = given.value ->> 0
    UNION ALL
    SELECT 1 FROM planton_pending WHERE task_name = :task_name AND instruction = given.value ->> 0
    UNION ALL
    SELECT 1 FROM planton_ended WHERE NOT :marks AND task_name = :task_name
        AND instruction = given.value ->> 0 AND status <> 'succeeded' AND NOT superseded
);

-- name: requeue_given
-- A statement that has marked a row as claimed will not give it again: while that instruction is
-- active, or its partition full, it waits here.
INSERT INTO planton_pending (task_name, instruction, "partition", retries, run_at, created_at)
SELECT :task_name, given.value ->> 0, given.value ->> 1, :retries, :now, :now
FROM json_each(:given) AS given
WHERE true
ON CONFLICT (task_name, instruction) DO NOTHING;

-- name: note_changes
UPDATE planton_task SET changes = :changes WHERE task_name = :task_name AND changes <> :changes;

-- name: kept_times
SELECT key, next_fire_at FROM planton_cron WHERE task_name = :task_name;

-- name: keep_time
INSERT INTO planton_cron (task_name, key, next_fire_at) VALUES (:task_name, :cron, :next_fire_at)
ON CONFLICT (task_name, key) DO UPDATE SET next_fire_at = excluded.next_fire_at;

-- name: forget_expressions
-- Those that no dispatcher has come to for a week: none has them any more. This one may be behind.
DELETE FROM planton_cron
WHERE task_name = :task_name AND key <> :cron AND next_fire_at < :now - 604800.0;

-- name: fire
INSERT INTO planton_fired (task_name, fire_at) VALUES (:task_name, :fire_at)
ON CONFLICT (task_name, fire_at) DO NOTHING;

-- name: forget_fired
-- Times that all expressions of the task are past.
DELETE FROM planton_fired WHERE task_name = :task_name AND fire_at < (
    SELECT min(next_fire_at) FROM planton_cron WHERE task_name = :task_name
);
