-- The dispatchers, and what they say of their tasks. Times are seconds since 1970.

-- name: register
INSERT INTO planton_dispatcher (id, host, pid, version)
VALUES (%(id)s, %(host)s, %(pid)s, %(version)s);

-- name: beat
-- All that a dispatcher has to say, and to hear, every few seconds. Its own row is locked by then,
-- so that nobody takes it for dead meanwhile; rows of the dead that others delete are left to them.
WITH beat AS (
    UPDATE planton_dispatcher SET seen_at = clock_timestamp(), tasks = %(tasks)s
    WHERE id = %(id)s
    RETURNING stop_requested_at
), report AS (
    INSERT INTO planton_decision (dispatcher_id, task_name, reported_at, report)
    SELECT %(id)s, said.key, clock_timestamp(), said.value::json
    FROM beat, json_each_text(%(reports)s::json) AS said
    ON CONFLICT (task_name, dispatcher_id)
    DO UPDATE SET reported_at = excluded.reported_at, report = excluded.report
), withdrawn AS (
    DELETE FROM planton_decision
    WHERE dispatcher_id = %(id)s AND task_name = ANY (%(gone)s::text[])
), dead AS (
    DELETE FROM planton_dispatcher
    WHERE id = ANY (ARRAY(
        SELECT id FROM planton_dispatcher
        WHERE id <> %(id)s AND seen_at < clock_timestamp() - %(silent)s * interval '1 second'
        FOR UPDATE SKIP LOCKED
    ))
    RETURNING id
), forgotten AS (
    DELETE FROM planton_decision WHERE dispatcher_id = ANY (ARRAY(SELECT id FROM dead))
)
SELECT stop_requested_at IS NOT NULL FROM beat;

-- name: deregister
WITH forgotten AS (DELETE FROM planton_decision WHERE dispatcher_id = %(id)s)
DELETE FROM planton_dispatcher WHERE id = %(id)s;

-- name: dispatchers
SELECT id, host, pid, version, extract(epoch FROM started_at)::double precision,
       extract(epoch FROM seen_at)::double precision,
       greatest(extract(epoch FROM clock_timestamp() - seen_at), 0)::double precision,
       extract(epoch FROM stop_requested_at)::double precision, tasks
FROM planton_dispatcher ORDER BY started_at, id;

-- name: request_stop
UPDATE planton_dispatcher
SET stop_requested_at = coalesce(stop_requested_at, clock_timestamp())
WHERE %(ids)s::text[] IS NULL OR id = ANY (%(ids)s::text[])
RETURNING id;

-- name: decisions
SELECT dispatcher_id, task_name, extract(epoch FROM reported_at)::double precision, report::text
FROM planton_decision
WHERE %(task_name)s::text IS NULL OR task_name = %(task_name)s
ORDER BY task_name, dispatcher_id;
