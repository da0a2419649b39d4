-- Step 6 of planton_claim: the user's own statement.

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
    GROUP BY each.instruction
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
