-- What consumers report. `:rows` is a JSON array of arrays: id, token, then what is said of that
-- claim. `find` drops what names no claim; the others then go by the id.

-- name: find
SELECT active.id, active.token, active.task_name
FROM json_each(:rows) AS given JOIN planton_active AS active
    ON active.id = json_extract(given.value, '$[0]')
    AND active.token = json_extract(given.value, '$[1]');

-- name: drop
DELETE FROM planton_active WHERE id IN (SELECT json_extract(value, '$[0]') FROM json_each(:rows));

-- name: heartbeat
-- Never beyond the time that one delivery may take.
UPDATE planton_active
SET lease_expires_at = min(:now + lease, coalesce(claimed_at + timeout, :now + lease))
WHERE id IN (SELECT json_extract(value, '$[0]') FROM json_each(:rows));

-- name: complete
INSERT INTO planton_ended (
    task_name, instruction, payload, priority, tags, retries, timeout, "partition", delivery, status,
    result, error, created_at, claimed_at, claimed_by, ended_at
)
SELECT task_name, instruction, payload, priority, tags, retries, timeout, "partition", delivery,
    'succeeded', json_extract(given.value, '$[2]'), error, created_at, claimed_at, claimed_by, :now
FROM json_each(:rows) AS given JOIN planton_active AS active
    ON active.id = json_extract(given.value, '$[0]')
WHERE :keeps
ORDER BY given.key;

-- name: supersede
-- What failed before and has succeeded now.
UPDATE planton_ended INDEXED BY planton_ended_failed SET superseded = 1
WHERE status <> 'succeeded' AND NOT superseded AND (task_name, instruction) IN (
    SELECT task_name, instruction FROM planton_active
    WHERE id IN (SELECT json_extract(value, '$[0]') FROM json_each(:rows))
);

-- name: has_failed
SELECT EXISTS (SELECT 1 FROM planton_ended WHERE status <> 'succeeded' AND NOT superseded);

-- name: requeue_failed
-- To be tried again: one of its own retries less, or of those that it is granted at its first
-- failure if it has none. What was enqueued meanwhile is the same unit of work.
INSERT INTO planton_pending (
    task_name, instruction, payload, priority, tags, retries, timeout, "partition", delivery,
    failures, error, created_at, run_at
)
SELECT task_name, instruction, payload,
    max(priority - json_extract(given.value, '$[5]'), -2147483648), tags,
    iif(retries > 0, retries, json_extract(given.value, '$[6]')) - 1, timeout, "partition", delivery,
    failures + 1, json_extract(given.value, '$[2]'), created_at,
    :now + json_extract(given.value, '$[3]')
FROM json_each(:rows) AS given JOIN planton_active AS active
    ON active.id = json_extract(given.value, '$[0]')
WHERE json_extract(given.value, '$[4]')
  AND (retries > 0 OR failures = 0 AND json_extract(given.value, '$[6]') > 0)
ORDER BY given.key
ON CONFLICT (task_name, instruction) DO NOTHING;

-- name: end_failed
INSERT INTO planton_ended (
    task_name, instruction, payload, priority, tags, retries, timeout, "partition", delivery, status,
    error, created_at, claimed_at, claimed_by, ended_at
)
SELECT task_name, instruction, payload, priority, tags, retries, timeout, "partition", delivery,
    iif(json_extract(given.value, '$[4]'), 'dead', 'failed'), json_extract(given.value, '$[2]'),
    created_at, claimed_at, claimed_by, :now
FROM json_each(:rows) AS given JOIN planton_active AS active
    ON active.id = json_extract(given.value, '$[0]')
WHERE :keeps AND NOT (
    json_extract(given.value, '$[4]')
    AND (retries > 0 OR failures = 0 AND json_extract(given.value, '$[6]') > 0)
)
ORDER BY given.key;

-- name: release
INSERT INTO planton_pending (
    task_name, instruction, payload, priority, tags, retries, timeout, "partition", delivery,
    failures, error, created_at, run_at
)
SELECT task_name, instruction, payload, priority, tags, retries, timeout, "partition", delivery,
    failures, error, created_at, :now
FROM json_each(:rows) AS given JOIN planton_active AS active
    ON active.id = json_extract(given.value, '$[0]')
WHERE true
ORDER BY given.key
ON CONFLICT (task_name, instruction) DO NOTHING;

-- name: give_back
-- From the second time in a row on it is due after 1, 2, 4, … 60 seconds: what no consumer takes
-- must not starve the others.
INSERT INTO planton_pending (
    task_name, instruction, payload, priority, tags, retries, timeout, "partition", delivery,
    failures, undelivered, error, created_at, run_at
)
SELECT task_name, instruction, payload, priority, tags, retries, timeout, "partition", delivery,
    failures, undelivered + 1, error, created_at,
    :now + iif(undelivered > 0, min(1 << (min(undelivered, 7) - 1), 60), 0)
FROM json_each(:rows) AS given JOIN planton_active AS active
    ON active.id = json_extract(given.value, '$[0]')
WHERE true
ORDER BY given.key
ON CONFLICT (task_name, instruction) DO NOTHING;

-- name: advance
-- The work goes on with another payload, under the same claim.
UPDATE planton_active AS active
SET payload = json_extract(given.value, '$[2]'), retries = json_extract(given.value, '$[3]'),
    error = NULL, delivery = 1, failures = 0, undelivered = 0, claimed_at = :now,
    lease_expires_at = :now + min(lease, coalesce(timeout, lease))
FROM json_each(:rows) AS given
WHERE active.id = json_extract(given.value, '$[0]');

-- name: postpone
-- The work is to go on later, with another payload.
INSERT INTO planton_pending (
    task_name, instruction, payload, priority, tags, retries, timeout, "partition", created_at, run_at
)
SELECT task_name, instruction, json_extract(given.value, '$[2]'), priority, tags,
    json_extract(given.value, '$[3]'), timeout, "partition", created_at,
    :now + json_extract(given.value, '$[4]')
FROM json_each(:rows) AS given JOIN planton_active AS active
    ON active.id = json_extract(given.value, '$[0]')
WHERE true
ORDER BY given.key
ON CONFLICT (task_name, instruction) DO NOTHING;

-- name: take_over
UPDATE planton_active AS active
SET token = json_extract(given.value, '$[3]'),
    lease = coalesce(json_extract(given.value, '$[2]'), lease), claimed_at = :now,
    lease_expires_at = :now + min(
        coalesce(json_extract(given.value, '$[2]'), lease),
        coalesce(timeout, json_extract(given.value, '$[2]'), lease)
    )
FROM json_each(:rows) AS given
WHERE active.id = json_extract(given.value, '$[0]') AND active.lease_expires_at > :now
RETURNING id;
