-- What the steps of planton_claim are made of, but for the sixth: see ask.sql.

-- Ids for new claims: none is below `at_least`, and none is that of an active claim, wherever the
-- sequence was set to, and when: after a restore, a promotion, a TRUNCATE. Two claims that draw the
-- same id for all that, because a third one set the sequence in between, are told by the primary key.
CREATE OR REPLACE FUNCTION planton_draw(number integer, at_least bigint)
RETURNS bigint[] LANGUAGE plpgsql AS $planton$
#variable_conflict use_variable
DECLARE
    ids bigint[] := '{}';
    first bigint;
    last bigint;
BEGIN
    LOOP
        ids := ARRAY(SELECT nextval('planton_claim_id') FROM generate_series(1, number));
        SELECT min(id), max(id) INTO first, last FROM unnest(ids) AS id;
        IF number = 0 OR first >= at_least AND NOT EXISTS (
            SELECT FROM planton_active AS taken
            WHERE taken.id BETWEEN first AND last AND taken.id = ANY (ids)
        ) THEN
            RETURN ids;
        END IF;
        PERFORM setval('planton_claim_id', greatest(
            at_least, last, (SELECT max(active.id) FROM planton_active AS active)
        ));
    END LOOP;
END $planton$;

-- The next lower priority that is queued. It never looks at what was passed over: the priorities
-- that were passed are known, and it looks for others between them.
CREATE OR REPLACE FUNCTION planton_next_level(task text, level integer, passed jsonb)
RETURNS integer LANGUAGE plpgsql STABLE AS $planton$
DECLARE
    next_passed integer := NULL;
BEGIN
    IF passed <> '{}' THEN
        next_passed := (
            SELECT max(each::integer) FROM jsonb_object_keys(passed) AS each
            WHERE level IS NULL OR each::integer < level
        );
    END IF;
    RETURN coalesce((
        SELECT pending.priority FROM planton_pending AS pending
        WHERE pending.task_name = task AND pending.priority < coalesce(level, 2147483648)
          AND pending.priority > coalesce(next_passed, -2147483649)
        ORDER BY pending.priority DESC LIMIT 1
    ), next_passed);
END $planton$;

-- When the next instruction of a priority is due after some time; what is active waits for its own
-- claim. Of very many that this dispatcher does not offer it reads a thousand: that one may be too early then, never too late.
CREATE OR REPLACE FUNCTION planton_next_due(
    task text, level integer, key text, tags text[], names text[], after timestamptz
)
RETURNS timestamptz LANGUAGE plpgsql STABLE AS $planton$
#variable_conflict use_variable
BEGIN
    RETURN (
        SELECT next.run_at FROM (
            SELECT pending.run_at, pending.instruction LIKE key AND pending.tags <@ tags
                       AND pending.instruction NOT IN (SELECT unnest(names)) AS is_offered,
                   row_number() OVER (ORDER BY pending.run_at) AS place
            FROM planton_pending AS pending
            WHERE pending.task_name = task AND pending.priority = level AND pending.run_at > after
              AND pending.run_at < '9999-01-01'  -- later ones are no datetime
        ) AS next
        WHERE next.is_offered OR next.place = 1000 ORDER BY next.run_at LIMIT 1
    );
END $planton$;

-- What is due of a priority and all lower ones, where they are too many to be looked at one by one:
-- some give each instruction a priority of its own.
CREATE OR REPLACE FUNCTION planton_take_rest(
    task text, level integer, key text, tags text[], names text[], clock timestamptz, room integer,
    due tid[], are_others boolean
)
RETURNS tid[] LANGUAGE plpgsql AS $planton$
#variable_conflict use_variable
BEGIN
    RETURN ARRAY(
        SELECT pending.ctid FROM planton_pending AS pending
        WHERE pending.task_name = task AND pending.priority <= level AND pending.run_at <= clock
          AND pending.instruction LIKE key AND pending.tags <@ tags
          AND pending.instruction NOT IN (SELECT unnest(names))
          AND pending.ctid NOT IN (SELECT unnest(due)) AND (pending.partition = '' OR NOT are_others)
        ORDER BY pending.priority DESC, pending.run_at, pending.id LIMIT room
        FOR UPDATE SKIP LOCKED
    );
END $planton$;

CREATE OR REPLACE FUNCTION planton_next_due_of_rest(
    task text, level integer, names text[], after timestamptz
)
RETURNS timestamptz LANGUAGE plpgsql STABLE AS $planton$
#variable_conflict use_variable
BEGIN
    RETURN (
        SELECT min(pending.run_at) FROM planton_pending AS pending
        WHERE pending.task_name = task AND pending.priority <= level AND pending.run_at > after
          AND pending.run_at < '9999-01-01' AND pending.instruction NOT IN (SELECT unnest(names))
    );
END $planton$;

-- When the next instruction of any priority is due after some time.
CREATE OR REPLACE FUNCTION planton_first_due(
    task text, key text, tags text[], names text[], after timestamptz
)
RETURNS timestamptz LANGUAGE plpgsql STABLE AS $planton$
DECLARE
    level integer := NULL;
    first timestamptz := NULL;
BEGIN
    FOR levels IN 1..32 LOOP
        level := planton_next_level(task, level, '{}');
        IF level IS NULL THEN
            RETURN first;
        END IF;
        first := least(first, planton_next_due(task, level, key, tags, names, after));
    END LOOP;
    RETURN least(first, planton_next_due_of_rest(task, level, names, after));
END $planton$;

-- How many of each partition are active.
CREATE OR REPLACE FUNCTION planton_partitions(task text, ids_from bigint)
RETURNS jsonb LANGUAGE plpgsql STABLE AS $planton$
#variable_conflict use_variable
BEGIN
    RETURN (
        SELECT coalesce(jsonb_object_agg(counted.partition, counted.number), '{}') FROM (
            SELECT active.partition, count(*) AS number FROM planton_active AS active
            WHERE active.task_name = task AND active.id + 0 >= ids_from AND active.partition <> ''
            GROUP BY active.partition
        ) AS counted
    );
END $planton$;

-- The names of those that have no room.
CREATE OR REPLACE FUNCTION planton_full(partitions jsonb, most integer)
RETURNS text[] LANGUAGE sql IMMUTABLE AS $planton$
    SELECT ARRAY(
        SELECT own.key FROM jsonb_each_text(partitions) AS own WHERE own.value::integer >= most
    )
$planton$;

-- Take due rows of a task with partitions. They stand in a ring, by name; what has none is one of
-- them and has room for all. It begins after the one that was served last, by whichever dispatcher.
-- First each that has room and something due gives one, then those that did give as many as each
-- of them may: how long a backlog is gives nobody more. None takes part that has `most` active.
CREATE OR REPLACE FUNCTION planton_take_turns(
    task text, most integer, INOUT partitions jsonb, key text, tags text[], names text[],
    clock timestamptz, room integer, OUT due tid[], OUT next_due timestamptz, OUT is_full boolean
)
LANGUAGE plpgsql AS $planton$
#variable_conflict use_variable
DECLARE
    turn text;                      -- who was served last
    served text := NULL;
    members text[] := NULL;         -- who takes part; all in the first turn
    quota integer := 1;             -- what each gives in this turn
BEGIN
    SELECT own.turn INTO turn FROM planton_task AS own WHERE own.task_name = task;
    due := '{}';
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
                    WHEN '' THEN planton_take_others(task, key, tags, names, clock, due, quota)
                    ELSE ARRAY(
                        SELECT pending.ctid FROM planton_pending AS pending
                        WHERE pending.task_name = task AND pending.partition = member.partition
                          AND pending.partition <> '' AND pending.run_at <= clock
                          AND pending.instruction LIKE key AND pending.tags <@ tags
                          AND pending.instruction NOT IN (SELECT unnest(names))
                          AND pending.ctid NOT IN (SELECT unnest(due))  -- ours, of an earlier turn
                        ORDER BY pending.priority DESC, pending.run_at, pending.id
                        LIMIT least(
                            quota, most - coalesce((partitions ->> member.partition)::integer, 0)
                        )
                        FOR UPDATE SKIP LOCKED
                    )
                END AS places
                FROM (
                    (SELECT ring.partition FROM ring OFFSET 1)
                    UNION ALL SELECT unnest(members)
                ) AS member
                WHERE member.partition = ''
                   OR coalesce((partitions ->> member.partition)::integer, 0) < most
                OFFSET 0
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
    is_full := false;
    IF room > cardinality(due) THEN
        next_due := planton_first_due(task, key, tags, names, clock);
        is_full := cardinality(due) = 0 AND planton_full(partitions, most) <> '{}'
            AND planton_first_due(task, key, tags, names, '-infinity') <= clock;
    END IF;
END $planton$;

-- Of a task with partitions: what has none, and is due. It is looked for among the first thousand of
-- a priority; a longer look would cost as much as others have queued.
CREATE OR REPLACE FUNCTION planton_take_others(
    task text, key text, tags text[], names text[], clock timestamptz, due tid[], number integer
)
RETURNS tid[] LANGUAGE plpgsql AS $planton$
#variable_conflict use_variable
DECLARE
    level integer := NULL;
    places tid[] := '{}';
BEGIN
    FOR levels IN 1..33 LOOP
        level := planton_next_level(task, level, '{}');
        EXIT WHEN level IS NULL OR cardinality(places) = number;
        IF levels > 32 THEN  -- very many priorities: the rest is sorted
            RETURN places || planton_take_rest(
                task, level, key, tags, names, clock, number - cardinality(places), due, true
            );
        END IF;
        places := places || ARRAY(
            SELECT other.ctid FROM planton_pending AS other
            WHERE other.ctid = ANY (ARRAY(
                SELECT first.place FROM (
                    SELECT pending.ctid AS place, pending.partition FROM planton_pending AS pending
                    WHERE pending.task_name = task AND pending.priority = level
                      AND pending.run_at <= clock
                    ORDER BY pending.run_at, pending.id LIMIT 1000
                ) AS first
                WHERE first.partition = ''
            ))
              AND other.partition = '' AND other.run_at <= clock  -- still so, once it is locked
              AND other.instruction LIKE key AND other.tags <@ tags
              AND other.instruction NOT IN (SELECT unnest(names))
              AND other.ctid NOT IN (SELECT unnest(due))
            ORDER BY other.run_at, other.id LIMIT number - cardinality(places)
            FOR UPDATE SKIP LOCKED
        );
    END LOOP;
    RETURN places;
END $planton$;

-- End claims whose lease is over for the last time, as dead; how many.
CREATE OR REPLACE FUNCTION planton_end_exhausted(
    task text, deliveries integer, clock timestamptz, keeps boolean
)
RETURNS integer LANGUAGE plpgsql AS $planton$
#variable_conflict use_variable
DECLARE
    count integer := 0;
BEGIN
    IF deliveries IS NULL THEN
        RETURN 0;
    END IF;
    WITH gone AS (
        DELETE FROM planton_active AS active WHERE active.id = ANY (ARRAY(
            SELECT exhausted.id FROM planton_active AS exhausted
            WHERE exhausted.task_name = task AND exhausted.lease_expires_at <= clock
              AND exhausted.delivery >= deliveries
            ORDER BY exhausted.id FOR UPDATE SKIP LOCKED
        ))
        RETURNING active.*
    ),
    ended AS (
        INSERT INTO planton_ended (
            id, task_name, instruction, payload, priority, tags, retries, timeout, partition,
            delivery, status, error, created_at, claimed_at, claimed_by
        )
        SELECT gone.id, gone.task_name, gone.instruction, gone.payload, gone.priority, gone.tags,
               gone.retries, gone.timeout, gone.partition, gone.delivery, 'dead', concat_ws(
                   '; the error before was: ',
                   'its lease expired, and its deliveries are used up: ' || gone.delivery,
                   gone.error
               ), gone.created_at, gone.claimed_at, gone.claimed_by
        FROM gone WHERE keeps
    )
    SELECT count(*) INTO count FROM gone;
    RETURN count;
END $planton$;

-- Queue claims whose lease is over and that this dispatcher does not offer: those that do find them
-- there; left where they are they would hold their slots until such a one comes. How many. One at a
-- time, and not for long: somebody's open transaction may have queued the same instruction. That one
-- keeps its slot until the next claim.
CREATE OR REPLACE FUNCTION planton_requeue_not_offered(
    task text, key text, tags text[], clock timestamptz
)
RETURNS integer LANGUAGE plpgsql AS $planton$
#variable_conflict use_variable
DECLARE
    claim planton_active;
    count integer := 0;
    patience text := current_setting('lock_timeout');
BEGIN
    PERFORM set_config('lock_timeout', '5ms', true);
    FOR claim IN
        SELECT active.* FROM planton_active AS active
        WHERE active.task_name = task AND active.lease_expires_at <= clock
          AND NOT (active.instruction LIKE key AND active.tags <@ tags)
        ORDER BY random() FOR UPDATE SKIP LOCKED
    LOOP
        BEGIN
            INSERT INTO planton_pending (
                task_name, instruction, payload, priority, tags, retries, timeout, partition,
                delivery, failures, undelivered, error, created_at, run_at
            )
            VALUES (
                claim.task_name, claim.instruction, claim.payload, claim.priority, claim.tags,
                claim.retries, claim.timeout, claim.partition, claim.delivery, claim.failures,
                claim.undelivered, claim.error, claim.created_at, clock
            )
            ON CONFLICT (task_name, instruction) DO NOTHING;
            DELETE FROM planton_active AS active WHERE active.id = claim.id;
            count := count + 1;
        EXCEPTION WHEN lock_not_available THEN
            EXIT WHEN clock_timestamp() > clock + interval '100 ms';
        END;
    END LOOP;
    PERFORM set_config('lock_timeout', patience, true);
    RETURN count;
END $planton$;

-- Let times of a cron task fire, if the kept time is still the one that they were reckoned from; the
-- instructions of those that no other expression of the task has fired before.
CREATE OR REPLACE FUNCTION planton_fire(
    task text, cron text, kept timestamptz, fires timestamptz[], next_at timestamptz
)
RETURNS text[] LANGUAGE plpgsql AS $planton$
DECLARE
    fired text[];
BEGIN
    IF kept IS NULL THEN
        INSERT INTO planton_cron (task_name, key, next_fire_at) VALUES (task, cron, next_at)
        ON CONFLICT DO NOTHING;
    ELSIF next_at IS DISTINCT FROM kept THEN
        UPDATE planton_cron AS own SET next_fire_at = next_at
        WHERE own.task_name = task AND own.key = cron AND own.next_fire_at = kept;
    ELSE
        RETURN '{}';
    END IF;
    IF NOT FOUND THEN
        RETURN '{}';
    END IF;
    WITH new AS (
        INSERT INTO planton_fired (task_name, fire_at) SELECT task, unnest(fires)
        ON CONFLICT DO NOTHING RETURNING fire_at
    )
    SELECT array_agg(
        to_char(new.fire_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"+00:00"')
        ORDER BY new.fire_at
    ) INTO fired FROM new;
    DELETE FROM planton_fired AS past WHERE past.task_name = task AND past.fire_at < (
        SELECT min(each.next_fire_at) FROM planton_cron AS each WHERE each.task_name = task
    );
    RETURN coalesce(fired, '{}');
END $planton$;

-- What a claim would find, without a lock and without writing.
CREATE OR REPLACE FUNCTION planton_look(task text, key text, tags text[], cron text)
RETURNS TABLE (
    is_paused boolean, concurrency integer, active bigint, first_expiry timestamptz,
    first_due timestamptz, kept timestamptz, clock timestamptz
)
LANGUAGE plpgsql STABLE AS $planton$
#variable_conflict use_variable
DECLARE
    names text[];
BEGIN
    SELECT row.paused_at IS NOT NULL, row.concurrency INTO is_paused, concurrency
    FROM planton_task AS row WHERE row.task_name = task;
    SELECT count(*), min(counted.lease_expires_at), coalesce(array_agg(counted.instruction), '{}')
    INTO active, first_expiry, names
    FROM planton_active AS counted WHERE counted.task_name = task;
    first_due := planton_first_due(task, key, tags, names, '-infinity');
    IF cron IS NOT NULL THEN
        SELECT own.next_fire_at INTO kept FROM planton_cron AS own
        WHERE own.task_name = task AND own.key = cron;
    END IF;
    clock := clock_timestamp();
    RETURN NEXT;
END $planton$;
