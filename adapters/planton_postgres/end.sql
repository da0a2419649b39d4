-- What consumers report, each by its receipt, for many at once; gives the receipts that named a
-- claim, and their tasks.

-- name: heartbeat
UPDATE planton_active AS active
SET lease_expires_at = least(
        clock.now + active.lease * interval '1 second',
        active.claimed_at + active.timeout * interval '1 second'
    )
FROM (SELECT clock_timestamp() AS now) AS clock
WHERE active.receipt = ANY (%(receipts)s::uuid[])
RETURNING active.receipt::text, active.task_name;

-- name: complete
WITH given AS (
    SELECT * FROM unnest(%(receipts)s::uuid[], %(results)s::text[]) AS given (receipt, result)
),
gone AS (
    DELETE FROM planton_active WHERE receipt = ANY (%(receipts)s::uuid[])
    RETURNING *
),
remembered AS (
    INSERT INTO planton_ended (
        task_name, instruction, payload, priority, tags, retries, timeout, delivery, status,
        result, error, created_at, claimed_at, claimed_by
    )
    SELECT task_name, instruction, payload, priority, tags, retries, timeout, delivery,
           'succeeded', given.result::json, error, created_at, claimed_at, claimed_by
    FROM gone JOIN given USING (receipt)
    WHERE %(keep)s
)
SELECT receipt::text, task_name FROM gone;

-- name: fail
-- What was queued meanwhile is the same unit of work.
WITH given AS (
    SELECT * FROM unnest(
        %(receipts)s::uuid[], %(errors)s::text[], %(retry_ins)s::double precision[],
        %(retries)s::boolean[], %(lower_priorities)s::boolean[], %(granted)s::integer[]
    ) AS given (receipt, message, retry_in, is_to_retry, lower_priority, granted)
),
gone AS (
    DELETE FROM planton_active WHERE receipt = ANY (%(receipts)s::uuid[])
    RETURNING *
),
-- One that has no retries of its own is given some when it fails for the first time, or for the
-- first time since it was retried.
reckoned AS MATERIALIZED (
    SELECT *, CASE
        WHEN retries = 0 AND (error IS NULL OR delivery = 1) THEN granted ELSE retries
    END AS retries_left
    FROM gone JOIN given USING (receipt)
),
failed AS MATERIALIZED (
    SELECT *, is_to_retry AND retries_left > 0 AS is_retried FROM reckoned
),
queued AS (
    INSERT INTO planton_pending (
        task_name, instruction, payload, priority, tags, retries, timeout, delivery, error,
        created_at, run_at
    )
    SELECT task_name, instruction, payload, priority - lower_priority::integer, tags, retries_left - 1,
           timeout, delivery, message, created_at,
           clock_timestamp() + retry_in * interval '1 second'
    FROM failed WHERE is_retried
    ON CONFLICT (task_name, instruction) DO NOTHING
),
remembered AS (
    INSERT INTO planton_ended (
        task_name, instruction, payload, priority, tags, retries, timeout, delivery, status, error,
        created_at, claimed_at, claimed_by
    )
    SELECT task_name, instruction, payload, priority, tags, retries, timeout, delivery,
           CASE WHEN is_to_retry THEN 'dead' ELSE 'failed' END, message, created_at, claimed_at,
           claimed_by
    FROM failed WHERE NOT is_retried AND %(keep)s
)
SELECT receipt::text, task_name FROM gone;

-- name: release
WITH gone AS (
    DELETE FROM planton_active WHERE receipt = ANY (%(receipts)s::uuid[])
    RETURNING *
),
queued AS (
    INSERT INTO planton_pending (
        task_name, instruction, payload, priority, tags, retries, timeout, delivery, error,
        created_at, run_at
    )
    SELECT task_name, instruction, payload, priority, tags, retries, timeout, delivery, error,
           created_at, clock_timestamp()
    FROM gone
    ON CONFLICT (task_name, instruction) DO NOTHING
)
SELECT receipt::text, task_name FROM gone;

-- name: give_back
-- By a dispatcher that could not deliver it. What nobody takes, time and again, pauses: 1, 2, 4 …
-- 60 seconds from the second time on.
WITH gone AS (
    DELETE FROM planton_active WHERE receipt = ANY (%(receipts)s::uuid[])
    RETURNING *
),
queued AS (
    INSERT INTO planton_pending (
        task_name, instruction, payload, priority, tags, retries, timeout, delivery, error,
        created_at, given_back, run_at
    )
    SELECT task_name, instruction, payload, priority, tags, retries, timeout, delivery, error,
           created_at, given_back + 1, clock_timestamp() + CASE
               WHEN given_back = 0 THEN interval '0'
               ELSE least(1 << least(given_back - 1, 6), 60) * interval '1 second'
           END
    FROM gone
    ON CONFLICT (task_name, instruction) DO NOTHING
)
SELECT receipt::text, task_name FROM gone;

-- name: advance
-- The work goes on with another payload, under the same claim.
UPDATE planton_active AS active
SET payload = given.payload::json, retries = given.retries, error = NULL, delivery = 1,
    given_back = 0, claimed_at = clock.now,
    lease_expires_at = clock.now + least(active.lease, active.timeout) * interval '1 second'
FROM unnest(%(receipts)s::uuid[], %(payloads)s::text[], %(retries)s::integer[])
        AS given (receipt, payload, retries),
    (SELECT clock_timestamp() AS now) AS clock
WHERE active.receipt = given.receipt
RETURNING active.receipt::text, active.task_name;

-- name: put_off
-- The work is to go on later, with another payload.
WITH given AS (
    SELECT * FROM unnest(
        %(receipts)s::uuid[], %(payloads)s::text[], %(retries)s::integer[],
        %(run_ins)s::double precision[]
    ) AS given (receipt, new_payload, new_retries, run_in)
),
gone AS (
    DELETE FROM planton_active WHERE receipt = ANY (%(receipts)s::uuid[])
    RETURNING *
),
queued AS (
    INSERT INTO planton_pending (
        task_name, instruction, payload, priority, tags, retries, timeout, created_at, run_at
    )
    SELECT task_name, instruction, new_payload::json, priority, tags, new_retries, timeout,
           created_at, clock_timestamp() + run_in * interval '1 second'
    FROM gone JOIN given USING (receipt)
    ON CONFLICT (task_name, instruction) DO NOTHING
)
SELECT receipt::text, task_name FROM gone;
