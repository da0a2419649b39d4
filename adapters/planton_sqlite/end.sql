-- What consumers report, by receipt. `:receipts` is a JSON array, whose order is kept.

-- name: heartbeat
-- Never beyond the time that one delivery may take.
UPDATE planton_active
SET lease_expires_at = min(
    (julianday('now') - 2440587.5) * 86400.0 + lease,
    coalesce(claimed_at + timeout, (julianday('now') - 2440587.5) * 86400.0 + lease)
)
WHERE receipt IN (SELECT value FROM json_each(:receipts))
RETURNING receipt, task_name;

-- name: end
DELETE FROM planton_active WHERE receipt IN (SELECT value FROM json_each(:receipts))
RETURNING receipt, task_name;

-- name: succeed
INSERT INTO planton_ended (
    task_name, instruction, payload, priority, tags, retries, timeout, delivery, status, result,
    error, created_at, claimed_at, claimed_by, ended_at
)
SELECT task_name, instruction, payload, priority, tags, retries, timeout, delivery, 'succeeded',
    :result, error, created_at, claimed_at, claimed_by,
    (julianday('now') - 2440587.5) * 86400.0
FROM json_each(:receipts) AS given JOIN planton_active ON receipt = given.value
ORDER BY given.key;

-- name: make_good
-- What failed before and has succeeded now.
UPDATE planton_ended SET is_past = 1
WHERE status <> 'succeeded' AND NOT is_past AND (task_name, instruction) IN (
    SELECT task_name, instruction FROM planton_active
    WHERE receipt IN (SELECT value FROM json_each(:receipts))
);

-- name: give_up
-- Those that are not to be retried, or cannot be.
INSERT INTO planton_ended (
    task_name, instruction, payload, priority, tags, retries, timeout, delivery, status, error,
    created_at, claimed_at, claimed_by, ended_at
)
SELECT task_name, instruction, payload, priority, tags, retries, timeout, delivery,
    iif(:retry, 'dead', 'failed'), :error, created_at, claimed_at, claimed_by,
    (julianday('now') - 2440587.5) * 86400.0
FROM json_each(:receipts) AS given JOIN planton_active ON receipt = given.value
WHERE NOT (
    :retry
    AND (retries > 0 OR :retries > 0 AND (error IS NULL OR delivery = 1))
)
ORDER BY given.key;

-- name: requeue
-- To be tried again. A row that was enqueued meanwhile is the same unit of work. One that has no
-- retries of its own is given `:retries` when it fails for the first time, or since it was retried.
INSERT INTO planton_pending (
    task_name, instruction, payload, priority, tags, retries, timeout, delivery, error, created_at,
    run_at
)
SELECT task_name, instruction, payload, priority - :lower_priority, tags,
    iif(retries > 0, retries, :retries) - 1, timeout, delivery, :error, created_at, (julianday('now') - 2440587.5) * 86400.0 + :delay
FROM json_each(:receipts) AS given JOIN planton_active ON receipt = given.value
WHERE :retry AND (retries > 0 OR :retries > 0 AND (error IS NULL OR delivery = 1))
ORDER BY given.key
ON CONFLICT (task_name, instruction) DO NOTHING;

-- name: release
-- What a consumer gives back is claimable at once. What the dispatcher gives back, time and again
-- because nobody takes it, pauses: 1, 2, 4 … 60 seconds from the second time on.
INSERT INTO planton_pending (
    task_name, instruction, payload, priority, tags, retries, timeout, delivery, error, created_at,
    given_back, run_at
)
SELECT task_name, instruction, payload, priority, tags, retries, timeout, delivery, error,
    created_at, iif(:is_undelivered, given_back + 1, 0),
    (julianday('now') - 2440587.5) * 86400.0
    + iif(:is_undelivered AND given_back > 0, min(1 << (min(given_back, 7) - 1), 60), 0)
FROM json_each(:receipts) AS given JOIN planton_active ON receipt = given.value
WHERE true
ORDER BY given.key
ON CONFLICT (task_name, instruction) DO NOTHING;

-- name: advance
-- The work goes on with another payload, under the same claim.
UPDATE planton_active
SET payload = :payload, retries = :retries, error = NULL, delivery = 1, given_back = 0,
    claimed_at = (julianday('now') - 2440587.5) * 86400.0,
    lease_expires_at = (julianday('now') - 2440587.5) * 86400.0 + min(lease, coalesce(timeout, lease))
WHERE receipt IN (SELECT value FROM json_each(:receipts))
RETURNING receipt, task_name;

-- name: put_off
-- The work is to go on later, with another payload.
INSERT INTO planton_pending (
    task_name, instruction, payload, priority, tags, retries, timeout, created_at, run_at
)
SELECT task_name, instruction, :payload, priority, tags, :retries, timeout, created_at,
    (julianday('now') - 2440587.5) * 86400.0 + :delay
FROM json_each(:receipts) AS given JOIN planton_active ON receipt = given.value
WHERE true
ORDER BY given.key
ON CONFLICT (task_name, instruction) DO NOTHING;
