-- What the steps of planton_claim are made of.

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
            -- From name to name through the index, once around.
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
                          AND pending.ctid NOT IN (SELECT unnest(due))
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
                    SELECT pending.ctid AS place, pending.partition, pending.instruction, pending.tags
                    FROM planton_pending AS pending
                    WHERE pending.task_name = task AND pending.priority = level
                      AND pending.run_at <= clock
                    ORDER BY pending.run_at, pending.id LIMIT 1000
                ) AS first
                WHERE first.partition = '' AND first.instruction LIKE key AND first.tags <@ tags
                  AND first.instruction NOT IN (SELECT unnest(names))
                  AND first.place NOT IN (SELECT unnest(due))
            ))
              AND other.partition = '' AND other.run_at <= clock  -- still so, once it is locked
              AND other.instruction LIKE key AND other.tags <@ tags
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

-- Ask the user's statement, and find out on the way what it does (`mode`): it 'reads', it 'locks'
-- rows, or it 'marks' what it returns as claimed. It reads until it is refused to write; then it is
-- watched once. An error undoes what the statement did and nothing else.
CREATE OR REPLACE FUNCTION planton_ask(
    task text, statement text, INOUT mode text, room integer, names text[], clock timestamptz,
    retries integer, most integer, partitions jsonb,
    OUT marked text[], OUT marked_for text[], OUT given text[], OUT owners text[], OUT moved integer,
    OUT problem jsonb
)
LANGUAGE plpgsql AS $planton$
DECLARE
    no_room text[] := planton_full(partitions, most);
    before text[];
    state text;
    message text;
    detail text;
    hint text;
BEGIN
    LOOP
        given := '{}';
        marked := '{}';
        moved := 0;
        BEGIN
            IF mode IN ('marks', 'writes') THEN
                before := CASE mode WHEN 'writes' THEN planton_traces() END;
                SELECT ran.given, ran.owners INTO given, owners
                FROM planton_run(statement, room, names, clock, no_room) AS ran;
                IF mode = 'writes' THEN
                    mode := planton_mode_by_traces(before);
                    CONTINUE WHEN mode = 'locks';
                END IF;
                marked := given;
                marked_for := owners;
                IF most IS NULL THEN
                    PERFORM planton_requeue_active(task, marked, marked_for, retries);
                ELSE
                    SELECT new.given, new.owners, new.moved INTO given, owners, moved
                    FROM planton_within(
                        task, marked, marked_for, names, retries, most, partitions
                    ) AS new;
                END IF;
                RETURN;
            ELSIF mode = 'reads' THEN
                PERFORM set_config('transaction_read_only', 'on', true);
            END IF;
            SELECT new.given, new.owners INTO given, owners
            FROM planton_found(task, statement, room, names, clock, no_room, most, partitions) AS new;
            IF mode = 'reads' THEN
                RAISE SQLSTATE 'PLEND';  -- undoes the setting, as there is nothing else to undo
            END IF;
            RETURN;
        EXCEPTION
            WHEN SQLSTATE 'PLEND' THEN
                RETURN;
            WHEN OTHERS THEN
                GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT,
                    detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
                IF state <> '25006' OR mode <> 'reads' THEN
                    given := '{}';
                    marked := '{}';
                    moved := 0;
                    problem := jsonb_build_object(
                        'sqlstate', state, 'message', message, 'detail', detail, 'hint', hint
                    );
                    RETURN;
                END IF;
                mode := 'writes';
        END;
    END LOOP;
END $planton$;

-- What this transaction has left so far: the tables that it may have written to, and the settings of
-- its session.
CREATE OR REPLACE FUNCTION planton_traces() RETURNS text[] LANGUAGE sql AS $planton$
    SELECT ARRAY(
        SELECT 'table ' || held.relation FROM pg_locks AS held
        JOIN pg_class AS tables ON tables.oid = held.relation AND tables.relkind IN ('r', 'p', 'f')
        WHERE held.pid = pg_backend_pid() AND held.locktype = 'relation'
          AND held.mode NOT IN ('AccessShareLock', 'RowShareLock')
    ) || ARRAY(
        SELECT name || ' = ' || setting FROM pg_settings WHERE source = 'session'
    )
$planton$;

-- What the user's statement does, by what it has left.
CREATE OR REPLACE FUNCTION planton_mode_by_traces(before text[])
RETURNS text LANGUAGE plpgsql AS $planton$
DECLARE
    new text[] := ARRAY(SELECT unnest(planton_traces()) EXCEPT SELECT unnest(before));
    each text;
BEGIN
    FOREACH each IN ARRAY new LOOP
        IF each NOT LIKE 'table %' THEN
            RAISE EXCEPTION 'it changes a setting of the session: %', each USING ERRCODE = 'PLBAD';
        END IF;
    END LOOP;
    RETURN CASE WHEN new = '{}' THEN 'locks' ELSE 'marks' END;
END $planton$;

-- The instructions that the user's statement returns, and whose they are: $1 is how many at most, $2
-- what is active, $3 the time, $4 the partitions that are full. A second column may be missing.
CREATE OR REPLACE FUNCTION planton_run(
    statement text, wanted integer, names text[], clock timestamptz, no_room text[],
    OUT given text[], OUT owners text[]
)
LANGUAGE plpgsql SET plpgsql.extra_errors = 'none' SET plpgsql.extra_warnings = 'none' AS $planton$
DECLARE
    one text;
    owner text;
BEGIN
    given := '{}';
    owners := '{}';
    FOR one, owner IN EXECUTE statement USING wanted, names, clock, no_room LOOP
        IF cardinality(given) = wanted THEN
            RAISE EXCEPTION 'gave more instructions than its limit of %', wanted
                USING ERRCODE = 'PLBAD';
        ELSIF octet_length(owner) > 500 THEN
            RAISE EXCEPTION 'gave a partition of % bytes, 500 are the most', octet_length(owner)
                USING ERRCODE = 'PLBAD';
        ELSIF octet_length(one) BETWEEN 1 AND 2000 THEN
            given := array_append(given, one);
            owners := array_append(owners, coalesce(owner, ''));
        ELSE
            RAISE EXCEPTION 'gave %: an instruction must name its work', CASE
                WHEN one IS NULL THEN 'a NULL' WHEN one = '' THEN 'an empty text'
                ELSE 'a text of ' || octet_length(one) || ' bytes, 2000 are the most'
            END USING ERRCODE = 'PLBAD';
        END IF;
    END LOOP;
END $planton$;

-- A statement that marks will not return these again: what is active is queued, and comes when that
-- claim has ended. Not for long: somebody's open transaction may have queued it; then the statement is
-- undone.
CREATE OR REPLACE FUNCTION planton_requeue_active(
    task text, given text[], owners text[], granted integer
)
RETURNS void LANGUAGE plpgsql
SET enable_seqscan = off SET enable_bitmapscan = off SET lock_timeout = '100ms'
AS $planton$
BEGIN
    INSERT INTO planton_pending (task_name, instruction, partition, retries)
    SELECT active.task_name, active.instruction, each.owner, granted
    FROM unnest(given, owners) AS each (instruction, owner) JOIN planton_active AS active
        ON active.task_name = task AND active.instruction = each.instruction
    ORDER BY active.instruction ON CONFLICT (task_name, instruction) DO NOTHING;
END $planton$;

-- Of what was marked that for which there is room in its partition, and what is to be recorded then:
-- just this. All the rest is queued, also what was active or queued a moment ago: it was not counted.
-- `moved` is how many are beyond the room.
CREATE OR REPLACE FUNCTION planton_within(
    task text, marked text[], marked_for text[], names text[], granted integer, most integer,
    partitions jsonb, OUT given text[], OUT owners text[], OUT moved integer
)
LANGUAGE plpgsql
SET enable_seqscan = off SET enable_bitmapscan = off SET lock_timeout = '100ms'
AS $planton$
BEGIN
    SELECT coalesce(array_agg(new.instruction ORDER BY new.place) FILTER (WHERE new.is_within), '{}'),
           coalesce(array_agg(new.owner ORDER BY new.place) FILTER (WHERE new.is_within), '{}'),
           count(*) FILTER (WHERE NOT new.is_within)
    INTO given, owners, moved
    FROM (
        SELECT each.*, each.owner = ''
            OR row_number() OVER (PARTITION BY each.owner ORDER BY each.place)
                <= most - coalesce((partitions ->> each.owner)::integer, 0) AS is_within
        FROM planton_new(task, marked, marked_for, names) AS each
    ) AS new;
    INSERT INTO planton_pending (task_name, instruction, partition, retries)
    SELECT task, rest.instruction, rest.owner, granted
    FROM unnest(marked, marked_for) WITH ORDINALITY AS rest (instruction, owner, place)
    WHERE rest.instruction NOT IN (SELECT unnest(given))
    ORDER BY rest.instruction, rest.place ON CONFLICT (task_name, instruction) DO NOTHING;
END $planton$;

-- Of what was given that which is neither active nor queued; each once, with its first place and
-- whose it was said to be there.
CREATE OR REPLACE FUNCTION planton_new(task text, given text[], owners text[], names text[])
RETURNS TABLE (instruction text, owner text, place bigint) LANGUAGE sql STABLE AS $planton$
    SELECT each.instruction, (array_agg(each.owner ORDER BY each.place))[1], min(each.place)
    FROM unnest(given, owners) WITH ORDINALITY AS each (instruction, owner, place)
    WHERE each.instruction NOT IN (SELECT unnest(names)) AND each.instruction NOT IN (
        SELECT pending.instruction FROM planton_pending AS pending
        WHERE pending.task_name = task AND pending.instruction = ANY (given)
    )
    GROUP BY each.instruction  -- a part of the statement that asks for it
$planton$;

-- What a statement that does not mark gives. Its rows are found again while they are active, queued,
-- or failed for good: it is asked for more, so that those behind them are reached.
CREATE OR REPLACE FUNCTION planton_found(
    task text, statement text, room integer, names text[], clock timestamptz, no_room text[],
    most integer, partitions jsonb, OUT given text[], OUT owners text[]
)
LANGUAGE plpgsql AS $planton$
DECLARE
    wanted integer := room + cardinality(names);
    enough integer := NULL;         -- more than that cannot be left out
    ran record;
BEGIN
    LOOP
        ran := planton_run(statement, wanted, names, clock, no_room);
        SELECT new.given, new.owners INTO given, owners
        FROM planton_not_known(task, ran.given, ran.owners, names, room, most, partitions) AS new;
        IF cardinality(given) = room OR cardinality(ran.given) < wanted OR wanted >= enough THEN
            RETURN;
        END IF;
        enough := coalesce(enough, CASE
            WHEN most IS NULL THEN wanted + planton_known(task)
            ELSE 2147483647         -- a partition has any number of rows beyond its room
        END);
        wanted := least(wanted::bigint * 32, enough);
    END LOOP;
END $planton$;

-- How many rows of a task a statement may find in vain, besides those that are active.
CREATE OR REPLACE FUNCTION planton_known(task text)
RETURNS integer LANGUAGE plpgsql STABLE SET enable_seqscan = off AS $planton$
BEGIN
    RETURN (
        SELECT count(*) FROM planton_pending AS pending WHERE pending.task_name = task
    ) + (
        SELECT count(*) FROM planton_ended AS ended
        WHERE ended.task_name = task AND ended.status <> 'succeeded' AND NOT ended.superseded
    );
END $planton$;

-- Those that are neither active, nor queued, nor failed for good; each once, in their order. With
-- partitions: one of each before a second one, and none beyond their room.
CREATE OR REPLACE FUNCTION planton_not_known(
    task text, ran text[], ran_for text[], names text[], room integer, most integer,
    partitions jsonb, OUT given text[], OUT owners text[]
)
LANGUAGE plpgsql STABLE SET enable_seqscan = off SET enable_bitmapscan = off
AS $planton$
BEGIN
    SELECT coalesce(array_agg(new.instruction ORDER BY new.place), '{}'),
           coalesce(array_agg(new.owner ORDER BY new.place), '{}')
    INTO given, owners
    FROM planton_new(task, ran, ran_for, names) AS new
    WHERE new.instruction NOT IN (
        SELECT ended.instruction FROM planton_ended AS ended
        WHERE ended.task_name = task AND ended.instruction = ANY (ran)
          AND ended.status <> 'succeeded' AND NOT ended.superseded
    );
    IF most IS NOT NULL THEN
        SELECT coalesce(array_agg(new.instruction ORDER BY new.turn, new.place), '{}'),
               coalesce(array_agg(new.owner ORDER BY new.turn, new.place), '{}')
        INTO given, owners
        FROM (
            SELECT each.*, row_number() OVER (PARTITION BY each.owner ORDER BY each.place) AS turn
            FROM unnest(given, owners) WITH ORDINALITY AS each (instruction, owner, place)
        ) AS new
        WHERE new.owner = '' OR new.turn <= most - coalesce((partitions ->> new.owner)::integer, 0);
    END IF;
    given := given[1:room];
    owners := owners[1:room];
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
