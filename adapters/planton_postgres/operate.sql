-- Producers and operations.

-- name: enqueue
INSERT INTO planton_pending (
    task_name, instruction, payload, priority, tags, retries, timeout, run_at
)
VALUES (
    %(task_name)s, %(instruction)s, %(payload)s::json, %(priority)s, %(tags)s::text[],
    %(retries)s, %(timeout)s, coalesce(%(run_at)s::timestamptz, clock_timestamp())
)
ON CONFLICT (task_name, instruction) DO NOTHING;

-- name: pause
INSERT INTO planton_task (task_name, paused_at) VALUES (%(task_name)s, clock_timestamp())
ON CONFLICT (task_name) DO UPDATE SET paused_at = coalesce(planton_task.paused_at, excluded.paused_at);

-- name: resume
UPDATE planton_task SET paused_at = NULL WHERE task_name = %(task_name)s;

-- name: set_concurrency
INSERT INTO planton_task (task_name, concurrency) VALUES (%(task_name)s, %(concurrency)s)
ON CONFLICT (task_name) DO UPDATE SET concurrency = excluded.concurrency;

-- name: ended
-- The last end of each instruction that may be tried again; locked, so that it is done once.
SELECT ended.id, ended.instruction FROM planton_ended AS ended
WHERE ended.task_name = %(task_name)s
  AND (%(instructions)s::text[] IS NOT NULL OR ended.status <> 'succeeded')
  AND (%(instructions)s::text[] IS NULL OR ended.instruction = ANY (%(instructions)s::text[]))
  AND NOT EXISTS (
      SELECT 1 FROM planton_ended AS later
      WHERE later.task_name = ended.task_name AND later.instruction = ended.instruction
        AND later.id > ended.id
  )
  AND NOT EXISTS (
      SELECT 1 FROM planton_active AS active
      WHERE active.task_name = ended.task_name AND active.instruction = ended.instruction
  )
  AND NOT EXISTS (
      SELECT 1 FROM planton_pending AS pending
      WHERE pending.task_name = ended.task_name AND pending.instruction = ended.instruction
  )
ORDER BY ended.id
FOR UPDATE OF ended;

-- name: statuses
SELECT instruction, status FROM planton_instruction
WHERE task_name = %(task_name)s AND instruction = ANY (%(instructions)s::text[])
  AND status IN ('queued', 'running');

-- name: retry
-- As if it was new, but for the error that it had.
WITH gone AS (
    DELETE FROM planton_ended WHERE id = ANY (%(ids)s::bigint[])
    RETURNING *
),
-- Any earlier failure, too, would keep its row from being claimed.
failed AS (
    DELETE FROM planton_ended
    WHERE task_name = %(task_name)s AND instruction = ANY (%(instructions)s::text[])
      AND status <> 'succeeded' AND id <> ALL (%(ids)s::bigint[])
)
INSERT INTO planton_pending (
    task_name, instruction, payload, priority, tags, retries, timeout, error, created_at
)
SELECT task_name, instruction, payload, priority, tags, retries, timeout, error, created_at
FROM gone ORDER BY id;

-- name: find
SELECT task_name, instruction, status, payload, priority, tags, retries, timeout, delivery, result,
       error, created_at, run_at, claimed_at, claimed_by, lease_expires_at, ended_at
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
       coalesce(sum(number) FILTER (WHERE status = 'queued'), 0)::bigint AS queued,
       coalesce(sum(number) FILTER (WHERE status = 'running'), 0)::bigint AS running,
       coalesce(sum(number) FILTER (WHERE status = 'succeeded'), 0)::bigint AS succeeded,
       coalesce(sum(number) FILTER (WHERE status = 'failed'), 0)::bigint AS failed,
       coalesce(sum(number) FILTER (WHERE status = 'dead'), 0)::bigint AS dead,
       min(oldest_due_at) AS oldest_due_at,
       coalesce(bool_or(paused_at IS NOT NULL), false) AS paused,
       max(concurrency) AS concurrency
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
-- In parts, so that no transaction is long.
WITH old AS (
    SELECT id FROM planton_ended
    WHERE ended_at <= clock_timestamp() - %(older_than)s * interval '1 second'
    ORDER BY ended_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED
)
DELETE FROM planton_ended WHERE id = ANY (ARRAY(SELECT id FROM old));
