-- The strict claim: `begin`, `lock`, `claim` and, for tasks that have a source besides the queue,
-- `record` or `fire`; then `commit`. All in one transaction.
--
-- Why there are two statements for what one could say. In READ COMMITTED each statement sees what
-- was committed before it began. A statement that takes the lock and counts as well has looked
-- before it has the lock: another dispatcher may have committed its claims and let go of the lock
-- in between, and they would not be counted. So `lock` takes the row of the task and `claim`
-- counts, in a later statement, whose view begins when nobody else can claim any more. What `lock`
-- got hold of is handed on in a setting that ends with the transaction, so that both go to the
-- server together: one round trip.

-- name: busy
-- The tasks that have anything queued or active, from name to name through the indexes: hardly a
-- page when nearly all of very many are idle. At most one more than asked for.
WITH RECURSIVE queued AS (
    (SELECT task_name FROM planton_pending ORDER BY task_name LIMIT 1)
    UNION ALL
    SELECT (
        SELECT pending.task_name FROM planton_pending AS pending
        WHERE pending.task_name > queued.task_name ORDER BY pending.task_name LIMIT 1
    )
    FROM queued WHERE queued.task_name IS NOT NULL
),
running AS (
    (SELECT task_name FROM planton_active ORDER BY task_name LIMIT 1)
    UNION ALL
    SELECT (
        SELECT active.task_name FROM planton_active AS active
        WHERE active.task_name > running.task_name ORDER BY active.task_name LIMIT 1
    )
    FROM running WHERE running.task_name IS NOT NULL
)
(SELECT task_name FROM queued WHERE task_name IS NOT NULL LIMIT %(limit)s + 1)
UNION ALL
(SELECT task_name FROM running WHERE task_name IS NOT NULL LIMIT %(limit)s + 1);

-- name: begin
BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;

-- name: commit
COMMIT;

-- name: lock
-- One row for each task asked for. Only what has something to do is locked, as a lock is written
-- to the log and costs a flush: an idle or saturated task writes nothing. That look is a hint, as
-- it comes before the lock; what counts is counted by `claim`. With `locks` false it only looks.
WITH asked AS MATERIALIZED (
    SELECT * FROM jsonb_to_recordset(%(asked)s) AS asked (
        task_name text, concurrency integer, key text, tags text[], source text, cron text,
        looks_ahead boolean, passed jsonb
    )
),
looked AS MATERIALIZED (
    SELECT asked.*, task.task_name IS NOT NULL AS is_known, active.count AS active,
           task.paused_at IS NULL AS may_claim, cron.next_fire_at,
           active.count < coalesce(task.concurrency, asked.concurrency) AS has_room,
           active.next_expiry_at
    FROM asked
    LEFT JOIN planton_task AS task USING (task_name)
    LEFT JOIN planton_cron AS cron
        ON cron.task_name = asked.task_name AND cron.key = asked.cron
    CROSS JOIN LATERAL (
        SELECT count(*)::integer AS count, min(active.lease_expires_at) AS next_expiry_at
        FROM planton_active AS active
        WHERE active.task_name = asked.task_name
          AND active.number >= coalesce(task.active_from, 0)
    ) AS active
),
-- The priorities that are queued, of which there are few, from high to low: those it has passed
-- rows of, and the ones between them. It never looks at what it has passed.
level AS MATERIALIZED (
    SELECT looked.task_name, level.priority,
           coalesce((looked.passed -> level.priority::text ->> 0)::timestamptz, '-infinity')
               AS run_at,
           coalesce((looked.passed -> level.priority::text ->> 1)::bigint, 0) AS id
    FROM looked CROSS JOIN LATERAL (
        WITH RECURSIVE level AS (
            SELECT 2147483648 AS priority
            UNION ALL
            SELECT coalesce((
                SELECT pending.priority FROM planton_pending AS pending
                WHERE pending.task_name = looked.task_name
                  AND pending.priority < level.priority
                  AND pending.priority > coalesce(next.priority, -2147483649)
                ORDER BY pending.priority DESC LIMIT 1
            ), next.priority)
            FROM level CROSS JOIN LATERAL (
                SELECT max(passed.key::bigint) AS priority
                FROM jsonb_object_keys(looked.passed) AS passed (key)
                WHERE passed.key::bigint < level.priority
            ) AS next
            WHERE level.priority IS NOT NULL
        )
        SELECT level.priority FROM level WHERE level.priority < 2147483648
    ) AS level
    WHERE looked.may_claim AND looked.has_room
),
wanted AS MATERIALIZED (
    SELECT looked.task_name FROM looked
    WHERE looked.may_claim AND (
        looked.has_room AND (
            looked.source = 'sql'
            OR looked.source = 'cron'
                AND coalesce(looked.next_fire_at <= clock_timestamp(), true)
            -- Not EXISTS, which forgets the order and may read the whole table instead.
            OR (
                SELECT true FROM level CROSS JOIN LATERAL (
                    SELECT FROM planton_pending AS pending
                    WHERE pending.task_name = looked.task_name
                      AND pending.priority = level.priority
                      AND pending.run_at <= (SELECT clock_timestamp())
                      AND (pending.run_at, pending.id) > (level.run_at, level.id)
                      AND CASE
                          WHEN pending.instruction LIKE looked.key
                          THEN pending.tags <@ looked.tags ELSE false
                      END
                    ORDER BY pending.priority DESC, pending.run_at, pending.id LIMIT 1
                ) AS due
                WHERE level.task_name = looked.task_name LIMIT 1
            )
        )
        OR looked.next_expiry_at <= (SELECT clock_timestamp())
    )
),
held AS MATERIALIZED (
    SELECT task.task_name FROM planton_task AS task
    WHERE %(locks)s AND task.task_name = ANY (ARRAY(SELECT wanted.task_name FROM wanted))
    FOR UPDATE SKIP LOCKED
)
SELECT looked.task_name, looked.is_known, looked.active, looked.next_fire_at, clock_timestamp(),
       CASE WHEN looked.may_claim THEN looked.next_expiry_at END,
       looked.task_name IN (SELECT wanted.task_name FROM wanted),
       CASE WHEN looked.looks_ahead THEN (
           SELECT min(next.run_at)
           FROM level CROSS JOIN LATERAL (
               SELECT pending.run_at FROM planton_pending AS pending
               WHERE pending.task_name = looked.task_name AND pending.priority = level.priority
                 AND pending.run_at > (SELECT clock_timestamp())
                 AND pending.run_at < '9999-01-01'  -- later ones are no datetime
               ORDER BY pending.run_at LIMIT 1
           ) AS next
           WHERE level.task_name = looked.task_name
       ) END,
       looked.may_claim AND looked.has_room,
       (SELECT set_config(
           'planton.held', coalesce(array_agg(held.task_name), '{}')::text, true
       ) FROM held),
       -- For the plan of `claim`: without statistics, as just after a first load, the planner
       -- expects few rows, and would read the backlog by a bitmap and sort it, or all that is
       -- active. A plan is kept, also when there are many later.
       set_config('enable_bitmapscan', 'off', true), set_config('enable_seqscan', 'off', true),
       -- What was read through these indexes so far, dead rows included. It goes on after the end
       -- of a transaction; `claim` tells again.
       pg_stat_get_xact_tuples_returned(to_regclass('planton_pending_due'))
           + pg_stat_get_xact_tuples_returned(to_regclass('planton_active_number'))
FROM looked;

-- name: claim
-- For each task that is held: a row with what was counted, and a row for each claim.
WITH clock AS MATERIALIZED (SELECT clock_timestamp() AS now),
asked AS MATERIALIZED (
    SELECT asked.*, coalesce(task.concurrency, asked.concurrency) AS most,
           active.count AS active, active.live, task.active_from
    FROM jsonb_to_recordset(%(asked)s) AS asked (
        task_name text, "limit" integer, concurrency integer, key text, tags text[],
        lease double precision, deliveries integer, source text, passed jsonb
    )
    JOIN unnest(nullif(current_setting('planton.held', true), '')::text[]) AS held (task_name)
        USING (task_name)
    JOIN planton_task AS task USING (task_name)
    CROSS JOIN LATERAL (
        SELECT count(*) AS count,
               count(*) FILTER (WHERE active.lease_expires_at > (SELECT now FROM clock)) AS live
        FROM planton_active AS active
        WHERE active.task_name = asked.task_name AND active.number >= task.active_from
    ) AS active
    WHERE task.paused_at IS NULL
),
-- Claims whose lease expired already hold their slots: they change hands, or end.
expired AS MATERIALIZED (
    SELECT asked.task_name, asked.lease, expired.receipt, expired.is_used_up,
           expired.lease_expires_at
    FROM asked CROSS JOIN LATERAL (
        SELECT active.receipt, active.lease_expires_at,
               coalesce(active.delivery >= asked.deliveries, false) AS is_used_up
        FROM planton_active AS active
        WHERE active.task_name = asked.task_name AND active.number >= asked.active_from
          AND active.lease_expires_at <= (SELECT now FROM clock)
          AND asked.active > asked.live  -- or there are none, and no need to read them again
          AND active.instruction LIKE asked.key AND active.tags <@ asked.tags
        ORDER BY active.lease_expires_at, active.receipt
        LIMIT greatest(0, least(asked."limit", asked.most - asked.live))
        FOR UPDATE SKIP LOCKED
    ) AS expired
),
-- Those that this dispatcher does not offer to take go back to the queue, for those that do: here
-- they would hold their slots until such a one comes.
not_offered AS MATERIALIZED (
    SELECT not_offered.receipt
    FROM asked CROSS JOIN LATERAL (
        SELECT active.receipt
        FROM planton_active AS active
        WHERE active.task_name = asked.task_name
          AND active.lease_expires_at <= (SELECT now FROM clock)
          AND asked.active > asked.live
          AND NOT (active.instruction LIKE asked.key AND active.tags <@ asked.tags)
        FOR UPDATE SKIP LOCKED
    ) AS not_offered
),
off AS (
    DELETE FROM planton_active
    WHERE receipt = ANY (ARRAY(
        SELECT expired.receipt FROM expired WHERE expired.is_used_up
        UNION ALL SELECT not_offered.receipt FROM not_offered
    ))
    RETURNING *
),
used_up AS MATERIALIZED (
    SELECT * FROM off WHERE off.receipt NOT IN (SELECT not_offered.receipt FROM not_offered)
),
rolled_back AS (
    INSERT INTO planton_pending (
        task_name, instruction, payload, priority, tags, retries, timeout, delivery, error,
        given_back, created_at
    )
    SELECT task_name, instruction, payload, priority, tags, retries, timeout, delivery, error,
           given_back, created_at
    FROM off WHERE off.receipt IN (SELECT not_offered.receipt FROM not_offered)
    ON CONFLICT (task_name, instruction) DO NOTHING
),
taken_over AS (
    UPDATE planton_active AS active
    SET receipt = gen_random_uuid(), number = DEFAULT, delivery = active.delivery + 1,
        claimed_at = clock.now, claimed_by = %(claimed_by)s, lease = given.lease,
        lease_expires_at = clock.now + least(given.lease, active.timeout) * interval '1 second'
    -- Not asked: it would be joined by the name of the task, through all that is active.
    FROM clock CROSS JOIN expired AS given
    WHERE active.receipt = ANY (ARRAY(
            SELECT expired.receipt FROM expired WHERE NOT expired.is_used_up
        ))
      AND active.receipt = given.receipt
    RETURNING active.*
),
counted AS MATERIALIZED (
    SELECT asked.*,
           greatest(0, least(
               asked."limit" - (
                   SELECT count(*) FROM taken_over WHERE taken_over.task_name = asked.task_name
               ),
               asked.most - asked.active + (
                   SELECT count(*) FROM off WHERE off.task_name = asked.task_name
               )
           )) AS room
    FROM asked
),
-- Not one whose instruction is active: it waits for that claim to end. Not one that somebody has
-- locked, who may be about to delete it. CASE keeps the planner from believing that hardly any row
-- has the key and the tags: it would then read and sort the whole backlog.
--
-- Priority by priority, as in `lock`. A nested loop keeps that order and stops when it has enough;
-- to sort afterwards would lock as many of each priority.
due AS MATERIALIZED (
    SELECT due.id
    FROM counted CROSS JOIN LATERAL (
        WITH RECURSIVE level AS (
            SELECT 2147483648 AS priority
            UNION ALL
            SELECT coalesce((
                SELECT pending.priority FROM planton_pending AS pending
                WHERE pending.task_name = counted.task_name
                  AND pending.priority < level.priority
                  AND pending.priority > coalesce(next.priority, -2147483649)
                ORDER BY pending.priority DESC LIMIT 1
            ), next.priority)
            FROM level CROSS JOIN LATERAL (
                SELECT max(passed.key::bigint) AS priority
                FROM jsonb_object_keys(counted.passed) AS passed (key)
                WHERE passed.key::bigint < level.priority
            ) AS next
            WHERE level.priority IS NOT NULL
        )
        SELECT pending.id FROM level CROSS JOIN LATERAL (
            SELECT pending.id FROM planton_pending AS pending
            WHERE pending.task_name = counted.task_name AND pending.priority = level.priority
              AND pending.run_at <= (SELECT now FROM clock)
              AND (pending.run_at, pending.id) > (
                  coalesce(
                      (counted.passed -> level.priority::text ->> 0)::timestamptz, '-infinity'
                  ),
                  coalesce((counted.passed -> level.priority::text ->> 1)::bigint, 0)
              )
              AND CASE
                  WHEN pending.instruction LIKE counted.key THEN pending.tags <@ counted.tags
                  ELSE false
              END
              -- Not NOT EXISTS: that may become a join, which reads all that is active.
              AND (
                  SELECT true FROM planton_active AS active
                  WHERE active.task_name = pending.task_name
                    AND active.instruction = pending.instruction
                  LIMIT 1
              ) IS NULL
            ORDER BY pending.priority DESC, pending.run_at, pending.id LIMIT counted.room
            FOR UPDATE SKIP LOCKED
        ) AS pending
        WHERE level.priority < 2147483648 LIMIT counted.room
    ) AS due
),
-- An array, not a join: whatever the planner thinks of LIMIT, it looks up these ids one by one.
gone AS (
    DELETE FROM planton_pending WHERE id = ANY (ARRAY(SELECT due.id FROM due))
    RETURNING *
),
claimed AS MATERIALIZED (
    SELECT gen_random_uuid() AS receipt, gone.*, asked.lease,
           coalesce(gone.delivery >= asked.deliveries, false) AS is_used_up
    FROM gone JOIN asked USING (task_name)
),
activated AS (
    INSERT INTO planton_active (
        receipt, task_name, instruction, payload, priority, tags, retries, timeout, delivery,
        error, given_back, created_at, claimed_at, claimed_by, lease, lease_expires_at
    )
    SELECT receipt, task_name, instruction, payload, priority, tags, retries, timeout,
           delivery + 1, error, given_back, created_at, clock.now, %(claimed_by)s, lease,
           clock.now + least(lease, timeout) * interval '1 second'
    FROM claimed, clock WHERE NOT is_used_up
    RETURNING task_name, number
),
-- Dead rows were in the way, and this claim was to look at all: what is active moves to where the
-- new ones are, so that the next claims begin to count there. What somebody has locked stays, and
-- the count begins with it.
seen AS MATERIALIZED (
    SELECT active.receipt, active.task_name, active.number
    FROM asked CROSS JOIN LATERAL (
        SELECT active.receipt, active.task_name, active.number FROM planton_active AS active
        WHERE active.task_name = asked.task_name AND active.number >= asked.active_from
        OFFSET 0
    ) AS active
    WHERE asked.passed = '{}'
),
movable AS MATERIALIZED (
    SELECT active.receipt FROM planton_active AS active
    WHERE active.receipt = ANY (ARRAY(SELECT seen.receipt FROM seen))
      AND active.lease_expires_at > (SELECT now FROM clock)
    FOR UPDATE SKIP LOCKED
),
moved AS (
    UPDATE planton_active AS active SET number = DEFAULT
    WHERE active.receipt = ANY (ARRAY(SELECT movable.receipt FROM movable))
    RETURNING active.receipt, active.task_name, active.number
),
lowest AS (
    SELECT task_name, min(number) AS number
    FROM (
        SELECT task_name, number FROM seen WHERE receipt NOT IN (SELECT moved.receipt FROM moved)
        UNION ALL
        SELECT task_name, number FROM moved
        UNION ALL
        SELECT task_name, number FROM taken_over
        UNION ALL
        SELECT task_name, number FROM activated
    ) AS active
    GROUP BY task_name
),
raised AS (
    UPDATE planton_task AS task SET active_from = lowest.number
    FROM lowest JOIN asked USING (task_name)
    WHERE task.task_name = lowest.task_name AND asked.passed = '{}'
      AND lowest.number > task.active_from
),
dead AS (
    INSERT INTO planton_ended (
        task_name, instruction, payload, priority, tags, retries, timeout, delivery, status, error,
        created_at, claimed_at, claimed_by
    )
    SELECT task_name, instruction, payload, priority, tags, retries, timeout, delivery, 'dead',
           concat_ws('; ', reason, 'the last error was: ' || error), created_at, claimed_at,
           claimed_by
    FROM (
        SELECT 'its lease expired and its deliveries are used up' AS reason, task_name, instruction,
               payload, priority, tags, retries, timeout, delivery, error, created_at, claimed_at,
               claimed_by
        FROM used_up
        UNION ALL
        SELECT 'its deliveries are used up', task_name, instruction, payload, priority, tags,
               retries, timeout, delivery, error, created_at, NULL, NULL
        FROM claimed WHERE is_used_up
    ) AS used_up
    WHERE %(keep)s
)
SELECT step, task_name, active, room, instruction, receipt::text, payload, delivery, lease, timeout
FROM (
    SELECT 0 AS step, task_name, NULL AS instruction, NULL::uuid AS receipt, json_build_array(
               -- The last of each priority.
               CASE WHEN counted.passed IS NOT NULL THEN (
                   SELECT jsonb_object_agg(last.priority, jsonb_build_array(last.run_at, last.id))
                   FROM (
                       SELECT DISTINCT ON (claimed.priority) claimed.* FROM claimed
                       WHERE claimed.task_name = counted.task_name
                       ORDER BY claimed.priority, claimed.run_at DESC, claimed.id DESC
                   ) AS last
               ) END,
               -- Whether it took all that it could have, and may have left some.
               counted.room <= (
                   SELECT count(*) FROM claimed WHERE claimed.task_name = counted.task_name
               ),
               (SELECT count(*) FROM claimed WHERE claimed.task_name = counted.task_name)
                   + counted.active,
               pg_stat_get_xact_tuples_returned(to_regclass('planton_pending_due'))
                   + pg_stat_get_xact_tuples_returned(to_regclass('planton_active_number'))
           ) AS payload,
           NULL::integer AS delivery, counted.active,
           counted.room - (
               SELECT count(*) FROM claimed
               WHERE claimed.task_name = counted.task_name AND NOT claimed.is_used_up
           ) AS room,
           NULL::integer AS priority, NULL::timestamptz AS run_at, NULL::bigint AS id,
           NULL::double precision AS lease, NULL::double precision AS timeout
    FROM counted
    UNION ALL
    SELECT 1, task_name, instruction, receipt, payload, delivery, NULL, NULL, NULL, NULL, NULL,
           lease, timeout
    FROM taken_over
    UNION ALL
    SELECT 2, task_name, instruction, receipt, payload, delivery + 1, NULL, NULL, priority, run_at,
           id, lease, timeout
    FROM claimed WHERE NOT is_used_up
) AS answer
ORDER BY step, priority DESC, run_at, id;

-- name: replan
-- The user's statement is planned as the user has set it.
SET LOCAL enable_bitmapscan TO DEFAULT;

-- name: replan_too
SET LOCAL enable_seqscan TO DEFAULT;

-- name: claims
-- What the claim itself changes in the user's tables wakes nobody.
SELECT set_config('planton.claims', %(task_name)s, true);

-- name: introduce
INSERT INTO planton_task (task_name) SELECT unnest(%(task_names)s::text[])
ON CONFLICT (task_name) DO NOTHING;

-- name: active
SELECT active.task_name, active.instruction
FROM unnest(%(task_names)s::text[]) AS asked (task_name)
LEFT JOIN planton_task AS task USING (task_name)
JOIN planton_active AS active
    ON active.task_name = asked.task_name AND active.number >= coalesce(task.active_from, 0)
ORDER BY active.claimed_at, active.instruction;

-- name: known
-- The active instructions of a task; and how many rows a plain SELECT may find besides, in vain.
SELECT ARRAY(
           SELECT active.instruction
           FROM planton_active AS active JOIN planton_task AS task USING (task_name)
           WHERE active.task_name = %(task_name)s AND active.number >= task.active_from
           ORDER BY active.claimed_at, active.instruction
       ),
       CASE WHEN %(is_marked)s THEN 0 ELSE (
           SELECT count(*) FROM planton_pending WHERE task_name = %(task_name)s
       ) + (
           SELECT count(*) FROM planton_ended
           WHERE task_name = %(task_name)s AND status <> 'succeeded'
       ) END;

-- name: record
-- What the task's own source gave. A plain SELECT finds a row again while it is active, waits for
-- a retry, or rests because it failed for good: then it is not claimed, and what is behind it is.
-- A time fires once, however it ended.
-- A statement that has marked the row as claimed will not give it again: then it waits in the
-- queue for the claim to end.
WITH given AS (
    SELECT given.instruction, given.number, EXISTS (
        SELECT 1 FROM planton_active AS active
        WHERE active.task_name = %(task_name)s AND active.instruction = given.instruction
    ) AS is_active
    FROM unnest(%(instructions)s::text[]) WITH ORDINALITY AS given (instruction, number)
    WHERE NOT EXISTS (
        SELECT 1 FROM planton_pending AS pending
        WHERE pending.task_name = %(task_name)s AND pending.instruction = given.instruction
    ) AND (%(is_marked)s OR NOT EXISTS (
        SELECT 1 FROM planton_ended AS failed
        WHERE failed.task_name = %(task_name)s AND failed.instruction = given.instruction
          AND (failed.status <> 'succeeded' OR %(is_time)s)
          AND NOT EXISTS (
              SELECT 1 FROM planton_ended AS later
              WHERE later.task_name = %(task_name)s AND later.instruction = given.instruction
                AND later.id > failed.id AND later.status = 'succeeded'
                AND NOT %(is_time)s
          )
    ))
),
queued AS (
    INSERT INTO planton_pending (task_name, instruction, retries)
    SELECT %(task_name)s, instruction, %(retries)s FROM given
    WHERE is_active AND %(is_marked)s ORDER BY number
    ON CONFLICT (task_name, instruction) DO NOTHING
)
INSERT INTO planton_active (
    receipt, task_name, instruction, retries, delivery, created_at, claimed_at, claimed_by, lease,
    lease_expires_at
)
SELECT gen_random_uuid(), %(task_name)s, instruction, %(retries)s, 1, clock.now, clock.now,
       %(claimed_by)s,
       %(lease)s::double precision,
       clock.now + %(lease)s::double precision * interval '1 second'
FROM given, (SELECT clock_timestamp() AS now) AS clock
WHERE NOT is_active ORDER BY number LIMIT %(room)s::bigint
ON CONFLICT (task_name, instruction) DO NOTHING
RETURNING instruction, receipt::text, payload, delivery, lease, timeout;

-- name: fires
-- `lock` has looked before it had the lock: what it saw may have been dispatched by another since.
SELECT clock_timestamp(), cron.key, cron.next_fire_at, cron.is_done
FROM (SELECT 1) AS one LEFT JOIN planton_cron AS cron ON cron.task_name = %(task_name)s;

-- name: fire_next
WITH dropped AS (
    DELETE FROM planton_cron
    WHERE task_name = %(task_name)s AND key = ANY (%(gone)s::text[])
),
done AS (
    UPDATE planton_cron SET is_done = true
    WHERE task_name = %(task_name)s AND key = ANY (%(shared)s::text[])
)
INSERT INTO planton_cron VALUES (%(task_name)s, %(key)s, %(next_fire_at)s)
ON CONFLICT (task_name, key) DO UPDATE SET next_fire_at = excluded.next_fire_at, is_done = false;

-- name: lazily
-- Nothing was claimed: nobody needs to wait until that is on disk.
SET LOCAL synchronous_commit TO off;
