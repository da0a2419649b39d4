-- What consumers report. Receipts are pairs: ids[n] goes with tokens[n]. Each function returns the
-- claims that it changed, which were named by both. Callers sort the ids: rows are locked in their
-- order, so that two batches wait for each other and never in a circle. Nothing is waited for very
-- long (lock_timeout): a user's open transaction may have queued what is to be queued again.
--
-- The planner settings are for plans that were made while the tables were empty and are kept: no
-- table is read as a whole, no list is searched once for each row of another.

-- part: row
task_name, instruction, payload, priority, tags, retries, timeout, partition

-- part: returns
RETURNS TABLE (id bigint, token bigint, task_name text) LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
SET enable_nestloop = off SET lock_timeout =

-- part: begin
AS $planton$
#variable_conflict use_column
DECLARE
    clock timestamptz := clock_timestamp();
BEGIN

-- part: is_named
active.id = ANY (ids) AND (active.id, active.token) IN (SELECT * FROM unnest(ids, tokens))

-- part: gone
gone AS (
        DELETE FROM planton_active AS active WHERE {is_named} RETURNING active.*
    )

-- part: changed
SELECT gone.id, gone.token, gone.task_name FROM gone;
END $planton$;

CREATE OR REPLACE FUNCTION planton_heartbeat(ids bigint[], tokens bigint[])
{returns} '1s' {begin}
    RETURN QUERY
    UPDATE planton_active AS active
    SET lease_expires_at = least(  -- never beyond the time that one delivery may take
        clock + active.lease * interval '1 second',
        active.claimed_at + active.timeout * interval '1 second'
    )
    WHERE {is_named}
    RETURNING active.id, active.token, active.task_name;
END $planton$;

CREATE OR REPLACE FUNCTION planton_complete(
    ids bigint[], tokens bigint[], results text[], keeps boolean
)
{returns} '1s' {begin}
    IF EXISTS (
        SELECT FROM planton_ended AS failed
        WHERE failed.status <> 'succeeded' AND NOT failed.superseded
    ) THEN
        PERFORM planton_supersede(ids, tokens);
    END IF;
    RETURN QUERY
    WITH {gone},
    ended AS (
        INSERT INTO planton_ended (
            id, {row}, delivery, status, result, error, created_at, claimed_at, claimed_by
        )
        SELECT id, {row}, delivery, 'succeeded', given.result::json, error, created_at, claimed_at,
               claimed_by
        FROM gone JOIN unnest(ids, tokens, results) AS given (id, token, result)
            USING (id, token)
        WHERE keeps
    )
    {changed}

-- What failed before and succeeds now. The claims are locked, so that they do.
CREATE OR REPLACE FUNCTION planton_supersede(ids bigint[], tokens bigint[])
RETURNS void LANGUAGE plpgsql
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off
AS $planton$
BEGIN
    UPDATE planton_ended AS failed SET superseded = true
    FROM (
        SELECT active.task_name, active.instruction FROM planton_active AS active
        WHERE active.id = ANY (ids)
          AND ((active.id, active.token) IN (SELECT * FROM unnest(ids, tokens))) IS TRUE  -- no join
        ORDER BY active.id FOR UPDATE
    ) AS done
    WHERE failed.task_name = done.task_name AND failed.instruction = done.instruction
      AND failed.status <> 'succeeded' AND NOT failed.superseded;
END $planton$;

-- To be tried again: one of its own retries less, or of those that it is granted at its first
-- failure if it has none. What was queued meanwhile is the same unit of work.
CREATE OR REPLACE FUNCTION planton_fail(
    ids bigint[], tokens bigint[], errors text[], delays double precision[], retry boolean[],
    lower_priority boolean[], granted integer[], keeps boolean
)
{returns} '200ms' {begin}
    RETURN QUERY
    WITH {gone},
    failed AS MATERIALIZED (
        SELECT gone.*, given.message, given.delay, given.lower_priority, given.is_to_retry,
               CASE WHEN gone.retries = 0 AND gone.failures = 0 THEN given.granted
                    ELSE gone.retries END AS retries_left
        FROM gone JOIN unnest(ids, tokens, errors, delays, retry, lower_priority, granted)
            AS given (id, token, message, delay, is_to_retry, lower_priority, granted)
            USING (id, token)
    ),
    requeued AS (
        INSERT INTO planton_pending ({row}, delivery, failures, error, created_at, run_at)
        SELECT task_name, instruction, payload,
               greatest(priority::bigint - lower_priority::integer, -2147483648)::integer, tags,
               retries_left - 1, timeout, partition, delivery, least(failures + 1, 1000000000),
               message, created_at, clock_timestamp() + delay * interval '1 second'
        FROM failed WHERE (is_to_retry AND retries_left > 0) IS TRUE
        ORDER BY failed.task_name, instruction
        ON CONFLICT (task_name, instruction) DO NOTHING
    ),
    ended AS (
        INSERT INTO planton_ended (
            id, {row}, delivery, status, error, created_at, claimed_at, claimed_by
        )
        SELECT id, {row}, delivery, CASE WHEN is_to_retry THEN 'dead' ELSE 'failed' END, message,
               created_at, claimed_at, claimed_by
        FROM failed WHERE keeps AND (is_to_retry AND retries_left > 0) IS NOT TRUE
    )
    {changed}

-- Give claims back. By a consumer they are due now; by a dispatcher that could not deliver them
-- (`is_undelivered`), from the second time in a row on, after 1, 2, 4, … 60 seconds: what no consumer
-- takes must not starve the others.
CREATE OR REPLACE FUNCTION planton_release(ids bigint[], tokens bigint[], is_undelivered boolean)
{returns} '200ms' {begin}
    RETURN QUERY
    WITH {gone},
    requeued AS (
        INSERT INTO planton_pending (
            {row}, delivery, failures, undelivered, error, created_at, run_at
        )
        SELECT {row}, delivery, failures,
               CASE WHEN is_undelivered THEN least(undelivered + 1, 1000000000) ELSE 0 END, error,
               created_at, clock_timestamp() + CASE
                   WHEN is_undelivered AND undelivered > 0
                   THEN least(1 << least(undelivered - 1, 6), 60) ELSE 0
               END * interval '1 second'
        FROM gone ORDER BY gone.task_name, instruction
        ON CONFLICT (task_name, instruction) DO NOTHING
    )
    {changed}

-- The work goes on with another payload, under the same claim.
CREATE OR REPLACE FUNCTION planton_advance(
    ids bigint[], tokens bigint[], payloads text[], new_retries integer[]
)
{returns} '1s' {begin}
    RETURN QUERY
    UPDATE planton_active AS active
    SET payload = given.payload::json, retries = given.retries, error = NULL, delivery = 1,
        failures = 0, undelivered = 0, claimed_at = clock,
        lease_expires_at = clock + least(active.lease, active.timeout) * interval '1 second'
    FROM unnest(ids, tokens, payloads, new_retries) AS given (id, token, payload, retries)
    WHERE active.id = given.id AND active.id = ANY (ids) AND active.token = given.token
    RETURNING active.id, active.token, active.task_name;
END $planton$;

-- The work is to go on later, with another payload.
CREATE OR REPLACE FUNCTION planton_postpone(
    ids bigint[], tokens bigint[], payloads text[], new_retries integer[], delays double precision[]
)
{returns} '200ms' {begin}
    RETURN QUERY
    WITH {gone},
    requeued AS (
        INSERT INTO planton_pending ({row}, created_at, run_at)
        SELECT task_name, instruction, given.payload::json, priority, tags, given.retries, timeout,
               partition, created_at, clock_timestamp() + given.delay * interval '1 second'
        FROM gone JOIN unnest(ids, tokens, payloads, new_retries, delays)
            AS given (id, token, payload, retries, delay) USING (id, token)
        ORDER BY gone.task_name, instruction
        ON CONFLICT (task_name, instruction) DO NOTHING
    )
    {changed}

-- Exchange receipts for new ones, while their leases last: of two consumers that hold the same
-- message one is told its new token, and the other nothing.
CREATE OR REPLACE FUNCTION planton_take_over(
    ids bigint[], tokens bigint[], leases double precision[], new_tokens bigint[]
)
{returns} '1s' {begin}
    RETURN QUERY
    UPDATE planton_active AS active
    SET token = given.new_token, lease = coalesce(given.lease, active.lease), claimed_at = clock,
        lease_expires_at = clock
            + least(coalesce(given.lease, active.lease), active.timeout) * interval '1 second'
    FROM unnest(ids, tokens, leases, new_tokens) AS given (id, token, lease, new_token)
    WHERE active.id = given.id AND active.id = ANY (ids) AND active.token = given.token
      AND active.lease_expires_at > clock
    RETURNING active.id, given.token, active.task_name;
END $planton$;
