-- What consumers report. `:rows` is a JSON array of arrays: id, token, then what is said of that
-- claim. Of the statements of a kind one returns the claims that there were.

-- part: row
task_name, instruction, payload, priority, tags, retries, timeout, "partition"

-- part: is_tried_again
(given.value ->> 4 AND (retries > 0 OR failures = 0 AND given.value ->> 6 > 0))

-- part: reported
FROM json_each(:rows) AS given JOIN planton_active AS active
    ON active.id = given.value ->> 0 AND active.token = given.value ->> 1

-- name: drop
DELETE FROM planton_active WHERE id IN (SELECT active.id {reported}) RETURNING id, token, task_name;

-- name: heartbeat
-- Never beyond the time that one delivery may take.
UPDATE planton_active
SET lease_expires_at = min(:now + lease, coalesce(claimed_at + timeout, :now + lease))
WHERE id IN (SELECT active.id {reported})
RETURNING id, token, task_name;

-- name: complete
INSERT INTO planton_ended (
    {row}, delivery, status, result, error, created_at, claimed_at, claimed_by, ended_at
)
SELECT {row}, delivery, 'succeeded', given.value ->> 2, error, created_at, claimed_at, claimed_by, :now
{reported}
WHERE :keeps
ORDER BY given.key;

-- name: has_failed
SELECT EXISTS (SELECT 1 FROM planton_ended WHERE status <> 'succeeded' AND NOT superseded);

-- name: supersede
-- What failed before and has succeeded now.
UPDATE planton_ended INDEXED BY planton_ended_failed SET superseded = 1
WHERE status <> 'succeeded' AND NOT superseded
  AND (task_name, instruction) IN (SELECT task_name, instruction {reported});

-- name: requeue_failed
-- To be tried again: one of its own retries less, or of those that it is granted at its first
-- failure if it has none. What was enqueued meanwhile is the same unit of work.
INSERT INTO planton_pending ({row}, delivery, failures, error, created_at, run_at)
SELECT task_name, instruction, payload, max(priority - (given.value ->> 5), -2147483648), tags,
    iif(retries > 0, retries, given.value ->> 6) - 1, timeout, "partition", delivery, failures + 1,
    given.value ->> 2, created_at, :now + (given.value ->> 3)
{reported}
WHERE {is_tried_again}
ORDER BY given.key
ON CONFLICT (task_name, instruction) DO NOTHING;

-- name: end_failed
INSERT INTO planton_ended (
    {row}, delivery, status, error, created_at, claimed_at, claimed_by, ended_at
)
SELECT {row}, delivery, iif(given.value ->> 4, 'dead', 'failed'), given.value ->> 2, created_at,
    claimed_at, claimed_by, :now
{reported}
WHERE :keeps AND NOT {is_tried_again}
ORDER BY given.key;

-- name: release
-- Given back by a dispatcher, from the second time in a row on it is due after 1, 2, 4, … 60
-- seconds: what no consumer takes must not starve the others.
INSERT INTO planton_pending ({row}, delivery, failures, undelivered, error, created_at, run_at)
SELECT {row}, delivery, failures, iif(:is_undelivered, undelivered + 1, 0), error, created_at,
    :now + iif(:is_undelivered AND undelivered > 0, min(1 << (min(undelivered, 7) - 1), 60), 0)
{reported}
WHERE true
ORDER BY given.key
ON CONFLICT (task_name, instruction) DO NOTHING;

-- name: advance
-- The work goes on with another payload, under the same claim.
UPDATE planton_active AS active
SET payload = given.value ->> 2, retries = given.value ->> 3,
    error = NULL, delivery = 1, failures = 0, undelivered = 0, claimed_at = :now,
    lease_expires_at = :now + min(lease, coalesce(timeout, lease))
FROM json_each(:rows) AS given
WHERE active.id = given.value ->> 0 AND active.token = given.value ->> 1
RETURNING id, token, task_name;

-- name: postpone
-- The work is to go on later, with another payload.
INSERT INTO planton_pending ({row}, created_at, run_at)
SELECT task_name, instruction, given.value ->> 2, priority, tags, given.value ->> 3, timeout,
    "partition", created_at, :now + (given.value ->> 4)
{reported}
WHERE true
ORDER BY given.key
ON CONFLICT (task_name, instruction) DO NOTHING;

-- name: living
SELECT active.id, active.token, task_name {reported} WHERE lease_expires_at > :now;

-- name: take_over
UPDATE planton_active AS active
SET token = given.value ->> 3, lease = coalesce(given.value ->> 2, lease), claimed_at = :now,
    lease_expires_at = :now + min(
        coalesce(given.value ->> 2, lease), coalesce(timeout, given.value ->> 2, lease)
    )
FROM json_each(:rows) AS given
WHERE active.id = given.value ->> 0 AND active.token = given.value ->> 1
  AND active.lease_expires_at > :now;
