-- What the steps of planton_claim are made of.

-- The id of a new claim: not below `floor`, and that of no other claim, also where the sequence was
-- set back, or not copied with the rows as by a logical replication. Each claim draws at or above
-- what is the lowest id of its task, so `ids_from` may be raised to that by the same claim.
CREATE OR REPLACE FUNCTION planton_draw(floor bigint)
RETURNS bigint LANGUAGE plpgsql AS $planton$
DECLARE
    drawn bigint := nextval('planton_claim_id');
BEGIN
    WHILE drawn < floor OR EXISTS (SELECT FROM planton_active AS active WHERE active.id = drawn) LOOP
        IF drawn < floor THEN
            PERFORM setval('planton_claim_id', floor);
        END IF;
        drawn := nextval('planton_claim_id');
    END LOOP;
    RETURN drawn;
END $planton$;

-- The next lower priority that is queued. It never looks at what was passed over: the priorities
-- that were passed are known, and it looks for others between them.
CREATE OR REPLACE FUNCTION planton_next_level(task text, level integer, passed jsonb)
RETURNS integer LANGUAGE plpgsql STABLE AS $planton$
DECLARE
    next_passed integer := (
        SELECT max(each::integer) FROM jsonb_object_keys(passed) AS each
        WHERE level IS NULL OR each::integer < level
    );
BEGIN
    RETURN coalesce((
        SELECT pending.priority FROM planton_pending AS pending
        WHERE pending.task_name = task AND pending.priority < coalesce(level, 2147483648)
          AND pending.priority > coalesce(next_passed, -2147483649)
        ORDER BY pending.priority DESC LIMIT 1
    ), next_passed);
END $planton$;

-- When the next instruction of a priority is due after some time. CASE keeps the planner from
-- believing that hardly any row has the key and the tags: it would sort the whole backlog.
CREATE OR REPLACE FUNCTION planton_next_due(
    task text, level integer, key text, tags text[], after timestamptz
)
RETURNS timestamptz LANGUAGE plpgsql STABLE AS $planton$
#variable_conflict use_variable
BEGIN
    RETURN (
        SELECT pending.run_at FROM planton_pending AS pending
        WHERE pending.task_name = task AND pending.priority = level AND pending.run_at > after
          AND pending.run_at < '9999-01-01'  -- later ones are no datetime
          AND CASE WHEN pending.instruction LIKE key THEN pending.tags <@ tags ELSE false END
        ORDER BY pending.run_at LIMIT 1
    );
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
    PERFORM set_config('lock_timeout', '20ms', true);
    FOR claim IN
        SELECT active.* FROM planton_active AS active
        WHERE active.task_name = task AND active.lease_expires_at <= clock
          AND NOT (active.instruction LIKE key AND active.tags <@ tags)
        ORDER BY active.id FOR UPDATE SKIP LOCKED
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
            NULL;
        END;
    END LOOP;
    PERFORM set_config('lock_timeout', patience, true);
    RETURN count;
END $planton$;

-- Run the user's statement, and find out on the way whether it changes rows. It reads until it is
-- refused to write: then it is run again, and known to mark what it returns as claimed ('marks'), or
-- to lock rows without changing them ('locks'). An error undoes what it did and nothing else.
CREATE OR REPLACE FUNCTION planton_ask(
    task text, statement text, INOUT mode text, room integer, names text[], clock timestamptz,
    OUT given text[], OUT problem jsonb
)
LANGUAGE plpgsql AS $planton$
DECLARE
    state text;
    message text;
    detail text;
    hint text;
BEGIN
    LOOP
        BEGIN
            IF mode = 'reads' THEN
                PERFORM set_config('transaction_read_only', 'on', true);
            END IF;
            given := planton_given(task, statement, mode, room, names, clock);
            IF mode = 'reads' THEN
                RAISE SQLSTATE 'PLDON';  -- undoes the setting, as there is nothing else to undo
            END IF;
            RETURN;
        EXCEPTION
            WHEN SQLSTATE 'PLDON' THEN
                RETURN;
            WHEN OTHERS THEN
                GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT,
                    detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
                given := '{}';
                IF mode <> 'reads' OR state <> '25006' THEN
                    problem := jsonb_build_object(
                        'sqlstate', state, 'message', message, 'detail', detail, 'hint', hint
                    );
                    RETURN;
                END IF;
                mode := CASE WHEN message LIKE '%SELECT FOR %' THEN 'locks' ELSE 'marks' END;
        END;
    END LOOP;
END $planton$;

-- The instructions that the user's statement returns: $1 is how many at most, $2 what is active,
-- $3 the time.
CREATE OR REPLACE FUNCTION planton_given(
    task text, statement text, mode text, room integer, names text[], clock timestamptz
)
RETURNS text[] LANGUAGE plpgsql AS $planton$
#variable_conflict use_variable
DECLARE
    left_out text[] := '{}';
    most integer := room;
    wanted integer := room;
    one text;
    given text[];
    patience text := current_setting('lock_timeout');
BEGIN
    IF mode <> 'marks' THEN
        -- Its rows are found again while they are active, queued, or failed for good: it is asked
        -- for more, so that those behind them are reached.
        left_out := names || ARRAY(
            SELECT pending.instruction FROM planton_pending AS pending
            WHERE pending.task_name = task
        ) || ARRAY(
            SELECT ended.instruction FROM planton_ended AS ended
            WHERE ended.task_name = task AND ended.status <> 'succeeded' AND NOT ended.superseded
        );
        most := room + cardinality(left_out);
        wanted := room + cardinality(names);
    END IF;
    LOOP
        given := '{}';
        FOR one IN EXECUTE statement USING wanted, names, clock LOOP
            given := array_append(given, one);
        END LOOP;
        IF array_position(given, NULL) IS NOT NULL OR '' = ANY (given) THEN
            RAISE EXCEPTION 'gave % that names no work', CASE
                WHEN array_position(given, NULL) IS NULL THEN 'an empty text' ELSE 'a NULL'
            END USING ERRCODE = 'PLBAD';
        ELSIF cardinality(given) > wanted THEN
            RAISE EXCEPTION 'gave % instructions, more than its limit of %', cardinality(given), wanted
                USING ERRCODE = 'PLBAD';
        ELSIF mode = 'marks' THEN
            EXIT;
        END IF;
        most := least(most, 2000000000);
        IF cardinality(given) < wanted OR wanted >= most OR room <= (
            SELECT count(*) FROM unnest(given) AS each WHERE each NOT IN (SELECT unnest(left_out))
        ) THEN
            RETURN ARRAY(
                SELECT each FROM unnest(given) WITH ORDINALITY AS found (each, place)
                WHERE each NOT IN (SELECT unnest(left_out)) ORDER BY place LIMIT room
            );
        END IF;
        wanted := least(wanted::bigint * 32, most);
    END LOOP;
    -- It will not return these again: what is active is queued, and comes when that claim has ended.
    -- Not for long: somebody's open transaction may have queued it; then the statement is undone.
    PERFORM set_config('lock_timeout', '100ms', true);
    INSERT INTO planton_pending (task_name, instruction)
    SELECT task, each FROM unnest(given) AS each WHERE each IN (
        SELECT active.instruction FROM planton_active AS active WHERE active.task_name = task
    )
    ORDER BY each ON CONFLICT (task_name, instruction) DO NOTHING;
    PERFORM set_config('lock_timeout', patience, true);
    RETURN given;
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
    level integer := NULL;
BEGIN
    SELECT row.paused_at IS NOT NULL, row.concurrency INTO is_paused, concurrency
    FROM planton_task AS row WHERE row.task_name = task;
    SELECT count(*), min(counted.lease_expires_at) INTO active, first_expiry
    FROM planton_active AS counted WHERE counted.task_name = task;
    LOOP
        level := planton_next_level(task, level, '{}');
        EXIT WHEN level IS NULL;
        first_due := least(first_due, planton_next_due(task, level, key, tags, '-infinity'));
    END LOOP;
    IF cron IS NOT NULL THEN
        SELECT own.next_fire_at INTO kept FROM planton_cron AS own
        WHERE own.task_name = task AND own.key = cron;
    END IF;
    clock := clock_timestamp();
    RETURN NEXT;
END $planton$;
