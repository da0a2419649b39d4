-- What clients ask besides the functions. The names of our tables and functions are qualified with
-- their schema when they are loaded.

-- name: begin
BEGIN ISOLATION LEVEL READ COMMITTED READ WRITE;

-- name: commit
COMMIT;

-- name: claim
SELECT kind, id, instruction, payload, delivery, timeout, partition
FROM planton_claim(%(task_name)s, %(request)s::jsonb);

-- name: introduce
INSERT INTO planton_task (task_name) SELECT unnest(%(task_names)s::text[]) AS name ORDER BY name
ON CONFLICT (task_name) DO NOTHING;

-- name: look
-- Each epoch is that of the server's clock.
SELECT asked.place, asked.task_name, look.is_paused, look.concurrency, look.active,
       extract(epoch FROM look.first_expiry)::double precision,
       extract(epoch FROM look.first_due)::double precision,
       extract(epoch FROM look.kept)::double precision,
       extract(epoch FROM look.clock)::double precision
FROM jsonb_to_recordset(%(asked)s::jsonb) AS asked (
    place integer, task_name text, key text, tags text[], cron text
)
CROSS JOIN LATERAL planton_look(asked.task_name, asked.key, asked.tags, asked.cron) AS look;

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

-- name: kept_times
SELECT task_name, key, extract(epoch FROM next_fire_at)::double precision FROM planton_cron
WHERE task_name = ANY (%(task_names)s::text[]);

-- name: heartbeat
SELECT id, token, task_name FROM planton_heartbeat(%(ids)s, %(tokens)s);

-- name: complete
SELECT id, token, task_name FROM planton_complete(
    %(ids)s, %(tokens)s, %(v0)s::text[], %(keeps)s
);

-- name: fail
SELECT id, token, task_name FROM planton_fail(
    %(ids)s, %(tokens)s, %(v0)s::text[], %(v1)s::double precision[], %(v2)s::boolean[],
    %(v3)s::boolean[], %(v4)s::integer[], %(keeps)s
);

-- name: release
SELECT id, token, task_name FROM planton_release(%(ids)s, %(tokens)s, false);

-- name: give_back
SELECT id, token, task_name FROM planton_release(%(ids)s, %(tokens)s, true);

-- name: advance
SELECT id, token, task_name FROM planton_advance(
    %(ids)s, %(tokens)s, %(v0)s::text[], %(v1)s::integer[]
);

-- name: postpone
SELECT id, token, task_name FROM planton_postpone(
    %(ids)s, %(tokens)s, %(v0)s::text[], %(v1)s::integer[], %(v2)s::double precision[]
);

-- name: take_over
SELECT id, token, task_name FROM planton_take_over(
    %(ids)s, %(tokens)s, %(v0)s::double precision[], %(v1)s::bigint[]
);

-- name: active
SELECT task_name, instruction FROM planton_active
WHERE task_name = ANY (%(task_names)s::text[]) ORDER BY id;

-- name: enqueue
-- Numbered in the order in which they were given, inserted in the order of their names: two that
-- queue the same instructions wait for each other, and never in a circle. They are due at one time,
-- so that the numbers are their order.
WITH given AS (
    SELECT nextval('planton_pending_id_seq') AS id, each.*
    FROM (
        -- By way of text: a program may have made its driver write JSON by itself.
        SELECT * FROM ROWS FROM (json_to_recordset(CAST(CAST(%(new)s AS text) AS json)) AS (
            task_name text, instruction text, payload text, priority integer, run_at timestamptz,
            tags text[], retries integer, timeout double precision, partition text
        )) WITH ORDINALITY AS each (
            task_name, instruction, payload, priority, run_at, tags, retries, timeout, partition,
            place
        )
        ORDER BY place
    ) AS each
)
INSERT INTO planton_pending (
    id, task_name, instruction, payload, priority, run_at, tags, retries, timeout, partition
)
SELECT id, task_name, instruction, payload::json, priority, coalesce(run_at, statement_timestamp()),
       tags, retries, timeout, partition
FROM given ORDER BY task_name, instruction
ON CONFLICT (task_name, instruction) DO NOTHING
RETURNING task_name, instruction;

-- name: pause
INSERT INTO planton_task AS task (task_name, paused_at) VALUES (%(task_name)s, clock_timestamp())
ON CONFLICT (task_name) DO UPDATE SET paused_at = coalesce(task.paused_at, excluded.paused_at);

-- name: resume
UPDATE planton_task SET paused_at = NULL WHERE task_name = %(task_name)s;

-- name: set_concurrency
INSERT INTO planton_task (task_name, concurrency) VALUES (%(task_name)s, %(concurrency)s)
ON CONFLICT (task_name) DO UPDATE SET concurrency = excluded.concurrency;

-- name: failed_ends
-- What failed and has not succeeded since.
SELECT DISTINCT instruction FROM planton_ended
WHERE task_name = %(task_name)s AND status <> 'succeeded' AND NOT superseded;

-- name: ends
SELECT DISTINCT instruction FROM planton_ended
WHERE task_name = %(task_name)s AND instruction = ANY (%(instructions)s::text[]);

-- name: living
SELECT instruction FROM planton_active
WHERE task_name = %(task_name)s AND instruction = ANY (%(instructions)s::text[])
UNION SELECT instruction FROM planton_pending
WHERE task_name = %(task_name)s AND instruction = ANY (%(instructions)s::text[]);

-- name: retry
-- They begin anew, but for the error that they had; all of them, or none. The last end comes back,
-- and all failures leave the history: any of them would keep the row of a plain SELECT from being
-- claimed.
WITH ends AS (
    SELECT DISTINCT ON (ended.instruction) ended.*, ended.ctid AS place
    FROM planton_ended AS ended
    WHERE ended.task_name = %(task_name)s AND ended.instruction = ANY (%(instructions)s::text[])
    ORDER BY ended.instruction, ended.ended_at DESC, ended.id DESC
),
last AS (
    SELECT * FROM ends
    WHERE (SELECT count(*) FROM ends) = cardinality(%(instructions)s::text[])
      AND NOT EXISTS (
        SELECT FROM planton_active
        WHERE task_name = %(task_name)s AND instruction = ANY (%(instructions)s::text[])
    ) AND NOT EXISTS (
        SELECT FROM planton_pending
        WHERE task_name = %(task_name)s AND instruction = ANY (%(instructions)s::text[])
    )
),
gone AS (
    DELETE FROM planton_ended AS ended
    WHERE ended.task_name = %(task_name)s AND ended.instruction = ANY (%(instructions)s::text[])
      AND EXISTS (SELECT FROM last)
      AND (ended.status <> 'succeeded' OR ended.ctid IN (SELECT place FROM last))
),
queued AS (
    INSERT INTO planton_pending (
        task_name, instruction, payload, priority, tags, retries, timeout, partition, error,
        created_at
    )
    SELECT task_name, instruction, payload, priority, tags, retries, timeout, partition, error,
           created_at
    FROM last ORDER BY task_name, instruction
)
SELECT count(*) FROM last;

-- name: drop
WITH gone AS (
    DELETE FROM planton_pending WHERE task_name = %(task_name)s AND (
        %(instructions)s::text[] IS NULL OR instruction = ANY (%(instructions)s::text[])
    )
    RETURNING 1
)
SELECT count(*) FROM gone;

-- name: find
-- Of equally old ones those first that have come further.
SELECT task_name, instruction, status, payload::text, priority, to_json(tags)::text, retries, timeout,
       partition, delivery, result::text, error, extract(epoch FROM created_at)::double precision, extract(epoch FROM run_at)::double precision, extract(epoch FROM claimed_at)::double precision, claimed_by,
       extract(epoch FROM lease_expires_at)::double precision, extract(epoch FROM ended_at)::double precision
FROM planton_instruction
WHERE (%(status)s::text IS NULL OR status = %(status)s)
  AND (%(task_name)s::text IS NULL OR task_name = %(task_name)s)
  AND (%(instruction)s::text IS NULL OR instruction = %(instruction)s)
  AND (
      %(older_than)s::double precision IS NULL
      OR created_at < clock_timestamp() - %(older_than)s * interval '1 second'
  )
ORDER BY created_at, task_name, instruction LIMIT %(limit)s;

-- name: stats
SELECT task_name,
       coalesce(sum(number) FILTER (WHERE status = 'queued'), 0)::bigint,
       coalesce(sum(number) FILTER (WHERE status = 'running'), 0)::bigint,
       coalesce(sum(number) FILTER (WHERE status = 'succeeded'), 0)::bigint,
       coalesce(sum(number) FILTER (WHERE status = 'failed'), 0)::bigint,
       coalesce(sum(number) FILTER (WHERE status = 'dead'), 0)::bigint,
       extract(epoch FROM min(oldest_due_at))::double precision,
       coalesce(bool_or(paused_at IS NOT NULL), false), max(concurrency)
FROM (
    SELECT task_name, status, count(*) AS number,
           min(run_at) FILTER (WHERE run_at <= clock_timestamp()) AS oldest_due_at,
           NULL::timestamptz AS paused_at, NULL::integer AS concurrency
    FROM planton_instruction GROUP BY task_name, status
    UNION ALL
    SELECT task_name, NULL, 0, NULL, paused_at, concurrency FROM planton_task
) AS each
GROUP BY task_name ORDER BY task_name;

-- name: prune
-- In parts, so that no transaction is long; by the place of a row, as the history has no key. No
-- index is used for a time that changes while the statement runs, as that of clock_timestamp() does.
-- And expressions that a cron task has no more: no dispatcher has come to their next time for a week.
WITH gone AS (
    DELETE FROM planton_ended WHERE ctid = ANY (ARRAY(
        SELECT ctid FROM planton_ended
        WHERE ended_at <= statement_timestamp() - %(older_than)s * interval '1 second'
          AND status = ANY (%(statuses)s::text[])
        LIMIT %(limit)s FOR UPDATE SKIP LOCKED
    ))
    RETURNING 1
), old AS (
    DELETE FROM planton_cron AS old
    WHERE next_fire_at < clock_timestamp() - interval '7 days' AND EXISTS (
        SELECT FROM planton_cron AS other
        WHERE other.task_name = old.task_name
          AND other.next_fire_at >= clock_timestamp() - interval '7 days'
    )
)
SELECT count(*) FROM gone;

-- name: channel
SELECT planton_channel();

-- name: notify
SELECT pg_notify(%(channel)s, %(payload)s);

-- name: table
-- What a name stands for; NULL if it is none of a table.
SELECT relkind IN ('r', 'p') FROM pg_class WHERE oid = to_regclass(%(table)s);

-- name: wake_on_change
SELECT planton_wake_on_change(to_regclass(%(table)s), %(task_name)s, %(is_wanted)s);

-- name: lock_task
SELECT pg_try_advisory_xact_lock(hashtextextended('planton_lock ' || %(task_name)s, 0));
