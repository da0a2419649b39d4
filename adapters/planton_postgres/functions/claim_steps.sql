-- The steps of planton_claim, in their order, but for the sixth: see ask.sql. `asked` is the request,
-- `counted` what planton_count has returned, as records: what is new becomes a field of them.

-- part: plan
-- What is planned while the tables are empty is kept: nothing of it may read or sort all of a table.
SET plan_cache_mode = force_generic_plan SET enable_seqscan = off SET enable_bitmapscan = off

-- part: returns
RETURNS TABLE (
    kind text, id bigint, instruction text, payload text, delivery integer, timeout double precision,
    partition text
)
LANGUAGE plpgsql

-- part: row
task_name, instruction, payload, priority, tags, retries, timeout, partition

-- part: is_expired
active.task_name = task AND active.lease_expires_at <= clock

-- part: is_due
pending.run_at <= clock
              AND pending.instruction LIKE asked.key AND pending.tags <@ asked.tags
              AND pending.instruction NOT IN (SELECT unnest(counted.names))

-- Step 2. What is active: how many and which, until when the first lease lasts that ends after some
-- time; of each partition how many, and which are full. No active row of the task is below ids_from, as
-- long as only planton_record adds some: entries of rows that are gone need not be read. It is moved up
-- here, in the database, where it is as true as the rows that it is about. If nothing is active it is
-- the last id that was drawn: planton_draw gives none below it.
CREATE OR REPLACE FUNCTION planton_count(
    task text, most integer, INOUT ids_from bigint, after timestamptz, OUT active integer,
    OUT names text[], OUT first_expiry timestamptz, OUT partitions jsonb, OUT no_room text[]
)
LANGUAGE plpgsql VOLATILE {plan} AS $planton$
DECLARE
    lowest bigint;
BEGIN
    SELECT count(*), coalesce(array_agg(counted.instruction), '{}'),
           coalesce(min(counted.id), pg_sequence_last_value('planton_claim_id')),
           min(counted.lease_expires_at) FILTER (WHERE counted.lease_expires_at > after)
    INTO active, names, lowest, first_expiry
    FROM planton_active AS counted
    WHERE counted.task_name = task AND counted.id + 0 >= ids_from;
    no_room := '{}';
    IF most IS NOT NULL THEN
        SELECT coalesce(jsonb_object_agg(each.partition, each.number), '{}'),
               coalesce(array_agg(each.partition) FILTER (WHERE each.number >= most), '{}')
        INTO partitions, no_room
        FROM (
            SELECT counted.partition, count(*) AS number FROM planton_active AS counted
            WHERE counted.task_name = task AND counted.id + 0 >= ids_from
              AND counted.partition <> ''
            GROUP BY counted.partition
        ) AS each;
    END IF;
    IF lowest > ids_from + 1000 THEN
        ids_from := lowest;
        UPDATE planton_task AS own SET ids_from = lowest WHERE own.task_name = task;
    END IF;
END $planton$;

-- Step 3. Claims whose lease is over: those that are delivered again. What somebody has locked stays.
CREATE OR REPLACE FUNCTION planton_rescue(
    task text, asked record, cap integer, clock timestamptz
)
{returns} {plan} AS $planton$
#variable_conflict use_column
DECLARE
    expired bigint[];
    number integer;
BEGIN
    -- Those whose deliveries are used up end as dead.
    WITH gone AS (
        DELETE FROM planton_active WHERE id = ANY (ARRAY(
            SELECT active.id FROM planton_active AS active
            WHERE {is_expired} AND active.delivery >= asked.deliveries
            ORDER BY active.id FOR UPDATE SKIP LOCKED
        ))
        RETURNING *
    )
    INSERT INTO planton_ended (
        id, {row}, delivery, status, error, created_at, claimed_at, claimed_by
    )
    SELECT id, {row}, delivery, 'dead', concat_ws(
               '; the error before was: ',
               'its lease expired, and its deliveries are used up: ' || delivery, error
           ), created_at, claimed_at, claimed_by
    FROM gone WHERE asked.keeps;

    PERFORM planton_requeue_not_offered(task, asked, clock);

    -- The others hold their slots already, but no more of them start than may run beside what is left.
    -- Locked first, so that nobody renews a lease between the count and the start.
    expired := ARRAY(
        SELECT active.id FROM planton_active AS active
        WHERE {is_expired} AND active.instruction LIKE asked.key AND active.tags <@ asked.tags
        ORDER BY active.lease_expires_at, active.id FOR UPDATE SKIP LOCKED
    );
    number := (SELECT count(*) FROM planton_active AS active WHERE active.task_name = task);
    RETURN QUERY
    UPDATE planton_active AS rescued
    SET token = asked.token, delivery = least(rescued.delivery + 1, 1000000000),
        claimed_at = clock, claimed_by = asked.claimed_by, lease = asked.lease,
        lease_expires_at = clock + least(asked.lease, rescued.timeout) * interval '1 second'
    WHERE rescued.id = ANY (
        expired[1:greatest(0, least(asked."limit", cap - (number - cardinality(expired))))]
    )
    RETURNING 'rescued', rescued.id, rescued.instruction, rescued.payload::text, rescued.delivery,
              rescued.timeout, rescued.partition;
END $planton$;

-- Those that this dispatcher does not offer are queued for those that do; left where they are they would
-- hold their slots until such a one comes. One at a time, and not for long: somebody's open transaction
-- may have queued the same instruction. That one keeps its slot until the next claim.
CREATE OR REPLACE FUNCTION planton_requeue_not_offered(
    task text, asked record, clock timestamptz
)
RETURNS void LANGUAGE plpgsql SET lock_timeout = '5ms' AS $planton$
#variable_conflict use_column
DECLARE
    lost planton_active;
BEGIN
    FOR lost IN
        SELECT active.* FROM planton_active AS active
        WHERE {is_expired}
          AND NOT (active.instruction LIKE asked.key AND active.tags <@ asked.tags)
        ORDER BY random() FOR UPDATE SKIP LOCKED
    LOOP
        BEGIN
            INSERT INTO planton_pending (
                {row}, delivery, failures, undelivered, error, created_at, run_at
            )
            SELECT {row}, delivery, failures, undelivered, error, created_at, clock
            FROM (SELECT lost.*) AS lost
            ON CONFLICT (task_name, instruction) DO NOTHING;
            DELETE FROM planton_active WHERE id = lost.id;
        EXCEPTION WHEN lock_not_available THEN
            EXIT WHEN clock_timestamp() > clock + interval '100 ms';
        END;
    END LOOP;
END $planton$;

-- `first`, and the lower priorities of what is queued. Each costs a step in the index, and only if it is
-- come to: PostgreSQL puts this function into the statements that use it.
CREATE OR REPLACE FUNCTION planton_levels(task text, first integer)
RETURNS SETOF integer LANGUAGE sql STABLE AS $planton$
    WITH RECURSIVE level (priority) AS (
        SELECT first
        UNION ALL
        SELECT (
            SELECT pending.priority FROM planton_pending AS pending
            WHERE pending.task_name = task AND pending.priority < level.priority
            ORDER BY pending.priority DESC LIMIT 1
        )
        FROM level WHERE level.priority IS NOT NULL
    )
    SELECT level.priority FROM level WHERE level.priority IS NOT NULL
$planton$;

-- Step 5. The places of due rows of the queue, which are locked: by priority, time and arrival; with
-- partitions, these take turns. What is active stays there. While a snapshot is held open the entries
-- of rows that are gone stay in the index: it says how many it has read in vain, and where it `stopped`;
-- where that is asked for it begins behind that. `is_full`: what is due is of full partitions.
CREATE OR REPLACE FUNCTION planton_take(
    task text, asked record, counted record, clock timestamptz, room integer, OUT due tid[],
    OUT next_due timestamptz, OUT is_full boolean, OUT stopped jsonb, OUT walked bigint,
    OUT took double precision
)
LANGUAGE plpgsql {plan} AS $planton$
DECLARE
    began timestamptz := clock_timestamp();
    entries bigint := pg_stat_get_xact_tuples_returned('planton_pending_due'::regclass);
    first integer := coalesce((asked.stopped ->> 0)::integer, (
        SELECT pending.priority FROM planton_pending AS pending
        WHERE pending.task_name = task ORDER BY pending.priority DESC LIMIT 1
    ));
    begun_at timestamptz := coalesce((asked.stopped ->> 1)::timestamptz, '-infinity');
    begun_id bigint := coalesce((asked.stopped ->> 2)::bigint, -9223372036854775808);
BEGIN
    IF room = 0 OR first IS NULL THEN
        due := '{}';
    ELSIF asked.partition_concurrency IS NOT NULL THEN
        due := planton_take_turns(task, asked, counted, clock, room);
    ELSE
        due := ARRAY(
            SELECT own.place FROM planton_levels(task, first) AS level CROSS JOIN LATERAL (
                SELECT pending.ctid AS place FROM planton_pending AS pending
                WHERE pending.task_name = task AND pending.priority = level
                  AND {is_due}
                  AND (pending.run_at, pending.id) > (
                      CASE level WHEN first THEN begun_at ELSE '-infinity' END,
                      CASE level WHEN first THEN begun_id ELSE -9223372036854775808 END
                  )
                ORDER BY pending.run_at, pending.id LIMIT room FOR UPDATE SKIP LOCKED
            ) AS own
            LIMIT room
        );
    END IF;
    is_full := false;
    IF cardinality(due) < room AND first IS NOT NULL THEN
        next_due := planton_next_due(task, asked.key, asked.tags, counted.names, clock, first);
        is_full := due = '{}' AND counted.no_room <> '{}' AND planton_next_due(
            task, asked.key, asked.tags, counted.names, '-infinity', first
        ) <= clock;
    END IF;
    took := extract(epoch FROM clock_timestamp() - began);
    walked := CASE
        WHEN asked.partition_concurrency IS NOT NULL THEN 0  -- they have an index of their own
        ELSE pg_stat_get_xact_tuples_returned('planton_pending_due'::regclass) - entries
            - cardinality(due)
    END;
    IF walked > 1000 OR asked.stopped IS NOT NULL THEN
        SELECT jsonb_build_array(pending.priority, pending.run_at, pending.id) INTO stopped
        FROM planton_pending AS pending WHERE pending.ctid = due[cardinality(due)];
    END IF;
END $planton$;

-- When the next that is offered and not active is due after some time; what is active waits for its own
-- claim. Of very many of a priority that are not offered it reads a thousand: that one may be too early
-- then, never too late.
CREATE OR REPLACE FUNCTION planton_next_due(
    task text, key text, tags text[], names text[], after timestamptz, first integer
)
RETURNS timestamptz LANGUAGE plpgsql STABLE AS $planton$
#variable_conflict use_variable
BEGIN
    RETURN (
        SELECT min(next.run_at) FROM planton_levels(task, first) AS level CROSS JOIN LATERAL (
            SELECT soon.run_at FROM (
                SELECT pending.run_at, pending.instruction LIKE key AND pending.tags <@ tags
                           AND pending.instruction NOT IN (SELECT unnest(names)) AS is_offered,
                       row_number() OVER (ORDER BY pending.run_at) AS place
                FROM planton_pending AS pending
                WHERE pending.task_name = task AND pending.priority = level
                  AND pending.run_at > after AND pending.run_at < '9999-01-01'  -- no datetime
            ) AS soon
            WHERE soon.is_offered OR soon.place = 1000 ORDER BY soon.run_at LIMIT 1
        ) AS next
    );
END $planton$;

-- Partitions stand in a ring, by name; what has none is one of them and has room for all. It begins
-- after the one that was served last, by whichever dispatcher. First each that has room and something
-- due gives one, then those that did give as many as each of them may: how long a backlog is gives
-- nobody more.
CREATE OR REPLACE FUNCTION planton_take_turns(
    task text, asked record, counted record, clock timestamptz, room integer
)
RETURNS tid[] LANGUAGE plpgsql AS $planton$
DECLARE
    partitions jsonb := counted.partitions;  -- by name: how many of it are active by now
    due tid[] := '{}';
    turn text;                      -- who was served last
    served text := NULL;
    members text[] := NULL;         -- who takes part; all in the first turn
    quota integer := 1;             -- what each gives in this turn
BEGIN
    SELECT own.turn INTO turn FROM planton_task AS own WHERE own.task_name = task;
    WHILE room > cardinality(due) AND members IS DISTINCT FROM '{}' LOOP
        WITH RECURSIVE ring AS (
            -- From name to name through the index, once around: in lap 0 those after `turn`, then
            -- '', in lap 1 those up to `turn`. The first row is where it starts: no member.
            SELECT 0 AS lap, turn COLLATE "C" AS partition WHERE members IS NULL
            UNION ALL
            SELECT CASE WHEN next.partition IS NULL THEN 1 ELSE ring.lap END,
                   coalesce(next.partition, '')
            FROM ring CROSS JOIN LATERAL (
                SELECT (
                    SELECT pending.partition FROM planton_pending AS pending
                    WHERE pending.task_name = task AND pending.partition > ring.partition
                      AND pending.partition <> ''
                    ORDER BY pending.partition LIMIT 1
                ) AS partition OFFSET 0  -- asked once
            ) AS next
            WHERE ring.lap = 0 OR next.partition <= turn
        ),
        given AS MATERIALIZED (
            SELECT each.partition, each.places
            FROM (
                SELECT member.partition, CASE member.partition
                    WHEN '' THEN planton_take_others(task, asked, counted, clock, due, quota)
                    ELSE ARRAY(
                        SELECT pending.ctid FROM planton_pending AS pending
                        WHERE pending.task_name = task AND pending.partition = member.partition
                          AND pending.partition <> '' AND {is_due}
                          AND pending.ctid NOT IN (SELECT unnest(due))  -- ours, of an earlier turn
                        ORDER BY pending.priority DESC, pending.run_at, pending.id
                        LIMIT least(quota, member.room) FOR UPDATE SKIP LOCKED
                    )
                END AS places
                FROM (
                    SELECT name AS partition, asked.partition_concurrency
                               - coalesce((partitions ->> name)::integer, 0) AS room
                    FROM (
                        (SELECT ring.partition FROM ring OFFSET 1) UNION ALL SELECT unnest(members)
                    ) AS each (name)
                ) AS member
                WHERE member.room > 0 OFFSET 0
            ) AS each
            -- That many partitions: each gives one, or later no more than its share of the room.
            WHERE each.places <> '{}' LIMIT room - cardinality(due)
        )
        SELECT coalesce(
                   array_agg(given.partition) FILTER (WHERE cardinality(given.places) = quota), '{}'
               ),
               coalesce((array_agg(given.partition))[count(*)], served),
               partitions || coalesce(jsonb_object_agg(
                   given.partition, coalesce((partitions ->> given.partition)::integer, 0)
                       + cardinality(given.places)
               ) FILTER (WHERE given.partition <> ''), '{}'),
               due || ARRAY(SELECT unnest(each.places) FROM given AS each)
        INTO members, served, partitions, due FROM given;
        quota := greatest(1, (room - cardinality(due)) / greatest(1, cardinality(members)));
    END LOOP;
    IF served <> turn THEN
        UPDATE planton_task AS own SET turn = served WHERE own.task_name = task;
    END IF;
    RETURN due;
END $planton$;

-- Of a task with partitions: what has none, and is due. It is looked for among the first thousand of a
-- priority; a longer look would cost as much as others have queued.
CREATE OR REPLACE FUNCTION planton_take_others(
    task text, asked record, counted record, clock timestamptz, due tid[], number integer
)
RETURNS tid[] LANGUAGE plpgsql AS $planton$
BEGIN
    RETURN ARRAY(
        SELECT other.place FROM planton_levels(task, 2147483647) AS level CROSS JOIN LATERAL (
            SELECT pending.ctid AS place FROM planton_pending AS pending
            WHERE pending.ctid = ANY (ARRAY(
                SELECT early.place FROM (
                    SELECT early.ctid AS place, early.partition FROM planton_pending AS early
                    WHERE early.task_name = task AND early.priority = level
                      AND early.run_at <= clock
                    ORDER BY early.run_at, early.id LIMIT 1000
                ) AS early
                WHERE early.partition = ''
            ))
              AND pending.partition = '' AND {is_due}  -- still so, once it is locked
              AND pending.ctid NOT IN (SELECT unnest(due))
            ORDER BY pending.run_at, pending.id LIMIT number FOR UPDATE SKIP LOCKED
        ) AS other
        LIMIT number
    );
END $planton$;

-- Step 7. Make claims of what is due, which leaves the queue, or of what the source of the task gave.
-- Without ON CONFLICT: what is active already is a broken invariant, and must be loud.
CREATE OR REPLACE FUNCTION planton_record(
    task text, asked record, ids_from bigint, due tid[], given text[], owners text[]
)
{returns} {plan} AS $planton$
#variable_conflict use_column
DECLARE
    ids bigint[] := planton_draw(coalesce(cardinality(given), cardinality(due)), ids_from);
    clock timestamptz := clock_timestamp();
BEGIN
    RETURN QUERY
    WITH gone AS (
        DELETE FROM planton_pending WHERE ctid = ANY (due) RETURNING *
    ),
    new AS (
        SELECT {row}, delivery, failures, undelivered, error, created_at, run_at, id AS place
        FROM gone
        UNION ALL
        SELECT task, each.instruction, NULL, 0, '{}', asked.retries, NULL, coalesce(owner, ''),
               0, 0, 0, NULL, clock, clock, place
        FROM unnest(given, owners) WITH ORDINALITY AS each (instruction, owner, place)
    )
    INSERT INTO planton_active AS recorded (
        id, token, {row}, delivery, failures, undelivered, error, created_at, claimed_at, claimed_by,
        lease, lease_expires_at
    )
    SELECT ids[row_number() OVER in_order], asked.token, {row}, least(delivery + 1, 1000000000),
           failures, undelivered, error, created_at, clock, asked.claimed_by, asked.lease,
           clock + least(asked.lease, timeout) * interval '1 second'
    FROM new WINDOW in_order AS (ORDER BY priority DESC, run_at, place)
    ORDER BY priority DESC, run_at, place
    RETURNING 'claimed', recorded.id, recorded.instruction, recorded.payload::text,
              recorded.delivery, recorded.timeout, recorded.partition;
END $planton$;

-- Ids for new claims: none is below `at_least`, and none is that of an active claim, wherever the
-- sequence was set to, and when: after a restore, a promotion, a TRUNCATE. Two claims that draw the
-- same id for all that, because a third one set the sequence in between, are told by the primary key.
CREATE OR REPLACE FUNCTION planton_draw(number integer, at_least bigint)
RETURNS bigint[] LANGUAGE plpgsql AS $planton$
#variable_conflict use_variable
DECLARE
    ids bigint[];
    is_free boolean;
BEGIN
    LOOP
        SELECT new.ids, new.first >= at_least AND NOT EXISTS (
            SELECT FROM planton_active AS taken
            WHERE taken.id BETWEEN new.first AND new.last AND taken.id = ANY (new.ids)
        )
        INTO ids, is_free
        FROM (
            SELECT array_agg(id) AS ids, min(id) AS first, max(id) AS last
            FROM (SELECT nextval('planton_claim_id') FROM generate_series(1, number)) AS new (id)
        ) AS new;
        IF is_free THEN
            RETURN ids;
        END IF;
        PERFORM setval('planton_claim_id', greatest(
            at_least, ids[number], (SELECT max(active.id) FROM planton_active AS active)
        ));
    END LOOP;
END $planton$;

-- What a claim would find, without a lock and without writing.
CREATE OR REPLACE FUNCTION planton_look(task text, key text, tags text[], cron text)
RETURNS TABLE (
    is_paused boolean, concurrency integer, active bigint, first_expiry timestamptz,
    first_due timestamptz, kept timestamptz, clock timestamptz
)
LANGUAGE plpgsql STABLE {plan} AS $planton$
#variable_conflict use_variable
DECLARE
    names text[];
BEGIN
    SELECT row.paused_at IS NOT NULL, row.concurrency INTO is_paused, concurrency
    FROM planton_task AS row WHERE row.task_name = task;
    SELECT count(*), min(counted.lease_expires_at), coalesce(array_agg(counted.instruction), '{}')
    INTO active, first_expiry, names
    FROM planton_active AS counted WHERE counted.task_name = task;
    first_due := planton_next_due(task, key, tags, names, '-infinity', 2147483647);
    IF cron IS NOT NULL THEN
        SELECT own.next_fire_at INTO kept FROM planton_cron AS own
        WHERE own.task_name = task AND own.key = cron;
    END IF;
    clock := clock_timestamp();
    RETURN NEXT;
END $planton$;
