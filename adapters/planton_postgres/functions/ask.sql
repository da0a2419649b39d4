-- Step 6 of planton_claim: what the source of the task gives, besides the queue. `asked` and `counted`
-- are as in claim_steps.sql.

-- Ask the user's statement, and find out on the way what it does (`mode`): it 'reads', it 'locks'
-- rows, or it 'marks' what it returns as claimed. It reads until it is refused to write ('writes': what
-- else it does is not known yet); then it is watched until it marks. What does not mark finds its rows
-- again while they are active, queued, or failed for good: it is asked for more, so that those behind
-- them are reached; should it mark then, that is undone, and it is asked for what there is room for.
-- An error undoes what the statement did and nothing else. `moved` is how many it has marked beyond the
-- room of their partitions.
CREATE OR REPLACE FUNCTION planton_ask(
    task text, asked record, counted record, clock timestamptz, room integer,
    OUT given text[], OUT owners text[], OUT moved integer, OUT mode text, OUT problem jsonb
)
LANGUAGE plpgsql AS $planton$
DECLARE
    wanted integer;
    different integer;              -- instructions that it gave, and when it was asked for less
    different_before integer;
    before text[];
    did text;
    ran record;
    kept record;
    state text;
    message text;
    detail text;
    hint text;
BEGIN
    given := '{}';
    moved := 0;
    mode := asked.mode;
    IF asked.cron IS NOT NULL THEN
        given := planton_fire(task, asked, counted, room);
        RETURN;
    END IF;
    PERFORM set_config('planton.claims', task, true);  -- nothing that it changes wakes this task
    LOOP
        BEGIN
            IF mode = 'reads' THEN
                PERFORM set_config('transaction_read_only', 'on', true);
            ELSIF mode <> 'marks' THEN
                before := planton_traces(mode);
            END IF;
            different_before := NULL;
            wanted := room + CASE
                WHEN mode IN ('reads', 'locks') THEN cardinality(counted.names) ELSE 0
            END;
            LOOP
                ran := planton_run(asked.statement, wanted, counted.names, clock, counted.no_room);
                IF mode IN ('writes', 'locks') THEN
                    did := planton_mode_by_traces(mode, before);
                    IF did = 'marks' AND mode = 'locks' THEN
                        RAISE SQLSTATE 'PLAGN';
                    END IF;
                    mode := did;
                END IF;
                kept := planton_within(task, asked, counted, room, mode = 'marks', ran);
                EXIT WHEN mode = 'marks' OR cardinality(kept.given) = room
                    OR cardinality(ran.given) < wanted;
                different := (SELECT count(DISTINCT each) FROM unnest(ran.given) AS each);
                EXIT WHEN different = different_before;  -- it gives the same ones again and again
                different_before := different;
                wanted := least(wanted::bigint * 8, 2147483647);
            END LOOP;
            IF mode = 'reads' THEN
                RAISE SQLSTATE 'PLEND';  -- undoes the setting, as there is nothing else to undo
            END IF;
            EXIT;
        EXCEPTION
            WHEN SQLSTATE 'PLEND' THEN
                EXIT;
            WHEN SQLSTATE 'PLAGN' THEN
                mode := 'marks';
            WHEN OTHERS THEN
                GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT,
                    detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
                IF state <> '25006' OR mode <> 'reads' THEN
                    problem := jsonb_build_object(
                        'sqlstate', state, 'message', message, 'detail', detail, 'hint', hint
                    );
                    RETURN;
                END IF;
                mode := 'writes';
        END;
    END LOOP;
    given := kept.given;
    owners := kept.owners;
    moved := kept.moved;
END $planton$;

-- What this transaction has left so far: the tables that it may have written to, and how often; and the
-- settings of its session, which take a millisecond to read, when it is watched for the first time.
CREATE OR REPLACE FUNCTION planton_traces(mode text) RETURNS text[] LANGUAGE sql AS $planton$
    SELECT ARRAY(
        SELECT 'table ' || held.relation || ' ' || pg_stat_get_xact_tuples_inserted(held.relation)
                   + pg_stat_get_xact_tuples_updated(held.relation)
                   + pg_stat_get_xact_tuples_deleted(held.relation)
        FROM pg_locks AS held JOIN pg_class AS tables
            ON tables.oid = held.relation AND tables.relkind IN ('r', 'p', 'f')
        WHERE held.pid = pg_backend_pid() AND held.locktype = 'relation'
          AND held.mode NOT IN ('AccessShareLock', 'RowShareLock')
    ) || CASE mode WHEN 'writes' THEN ARRAY(
        SELECT name || ' = ' || setting FROM pg_settings WHERE source = 'session'
    ) END
$planton$;

-- What the user's statement did this time, by what it has left.
CREATE OR REPLACE FUNCTION planton_mode_by_traces(mode text, before text[])
RETURNS text LANGUAGE plpgsql AS $planton$
DECLARE
    new text[] := ARRAY(SELECT unnest(planton_traces(mode)) EXCEPT SELECT unnest(before));
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

-- Of what a statement has returned that which is to be recorded: neither active nor queued, each once,
-- with its first place and whose it was said to be there, and as much as its partition has room for.
-- What marks will not return the rest again: it is queued. That does not wait for long: somebody's open
-- transaction may have queued the same; then the statement is undone. What does not mark returns it
-- again; of that one of each partition comes before a second one, and what failed for good is left out.
CREATE OR REPLACE FUNCTION planton_within(
    task text, asked record, counted record, room integer, marks boolean, ran record,
    OUT given text[], OUT owners text[], OUT moved integer
)
LANGUAGE plpgsql SET lock_timeout = '100ms' SET plan_cache_mode = force_generic_plan
SET enable_seqscan = off SET enable_bitmapscan = off AS $planton$
DECLARE
    most integer := asked.partition_concurrency;
BEGIN
    SELECT coalesce(array_agg(new.instruction ORDER BY new.round, new.place)
                        FILTER (WHERE new.is_within), '{}'),
           coalesce(array_agg(new.owner ORDER BY new.round, new.place)
                        FILTER (WHERE new.is_within), '{}'),
           count(*) FILTER (WHERE marks AND NOT new.is_within)
    INTO given, owners, moved
    FROM (
        SELECT each.*, CASE WHEN marks OR most IS NULL THEN 0 ELSE each.turn END AS round,
               most IS NULL OR each.owner = ''
                   OR each.turn <= most - coalesce((counted.partitions ->> each.owner)::integer, 0)
                   AS is_within
        FROM (
            SELECT first.*, row_number() OVER (PARTITION BY first.owner ORDER BY first.place) AS turn
            FROM (
                SELECT each.instruction, min(each.place) AS place,
                       (array_agg(each.owner ORDER BY each.place))[1] AS owner
                FROM unnest(ran.given, ran.owners) WITH ORDINALITY
                    AS each (instruction, owner, place)
                WHERE each.instruction NOT IN (SELECT unnest(counted.names))
                  AND each.instruction NOT IN (
                    SELECT pending.instruction FROM planton_pending AS pending
                    WHERE pending.task_name = task AND pending.instruction = ANY (ran.given)
                ) AND each.instruction NOT IN (
                    SELECT failed.instruction FROM planton_ended AS failed
                    WHERE NOT marks
                      AND failed.task_name = task AND failed.instruction = ANY (ran.given)
                      AND failed.status <> 'succeeded' AND NOT failed.superseded
                )
                GROUP BY each.instruction
            ) AS first
        ) AS each
    ) AS new;
    given := given[1:room];
    owners := owners[1:room];
    IF marks AND cardinality(given) < cardinality(ran.given) THEN
        INSERT INTO planton_pending (task_name, instruction, partition, retries)
        SELECT task, rest.instruction, rest.owner, asked.retries
        FROM unnest(ran.given, ran.owners) WITH ORDINALITY AS rest (instruction, owner, place)
        WHERE rest.instruction NOT IN (SELECT unnest(given))
        ORDER BY rest.instruction, rest.place ON CONFLICT (task_name, instruction) DO NOTHING;
    END IF;
END $planton$;

-- Let times of a cron task fire, as many as there is room for, each once for all its expressions. They
-- were reckoned outside, from the kept time: if that is no longer the one, none fires.
CREATE OR REPLACE FUNCTION planton_fire(task text, asked record, counted record, room integer)
RETURNS text[] LANGUAGE plpgsql AS $planton$
DECLARE
    next_at timestamptz := coalesce(asked.fires[room + 1], asked.next_fire_at);
    fired text[];
BEGIN
    IF asked.kept IS NULL THEN
        INSERT INTO planton_cron (task_name, key, next_fire_at) VALUES (task, asked.cron, next_at)
        ON CONFLICT DO NOTHING;
    ELSE
        UPDATE planton_cron AS own SET next_fire_at = next_at
        WHERE own.task_name = task AND own.key = asked.cron AND own.next_fire_at = asked.kept
          AND next_at <> asked.kept;
    END IF;
    IF NOT FOUND THEN
        RETURN '{}';
    END IF;
    WITH new AS (
        INSERT INTO planton_fired (task_name, fire_at) SELECT task, unnest(asked.fires[1:room])
        ON CONFLICT DO NOTHING
        RETURNING to_char(fire_at AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"+00:00"') AS name
    )
    SELECT coalesce(array_agg(new.name ORDER BY new.name), '{}') INTO fired FROM new
    WHERE new.name <> ALL (counted.names) AND NOT EXISTS (
        SELECT FROM planton_pending AS pending
        WHERE pending.task_name = task AND pending.instruction = new.name
    );
    DELETE FROM planton_fired AS past WHERE past.task_name = task AND past.fire_at < (
        SELECT min(each.next_fire_at) FROM planton_cron AS each WHERE each.task_name = task
    );
    RETURN fired;
END $planton$;
