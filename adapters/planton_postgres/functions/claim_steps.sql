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

-- When the next instruction of a priority is due after some time. Of very many that this dispatcher
-- does not offer it reads a thousand: that one may be too early then, never too late.
CREATE OR REPLACE FUNCTION planton_next_due(
    task text, level integer, key text, tags text[], after timestamptz
)
RETURNS timestamptz LANGUAGE plpgsql STABLE AS $planton$
#variable_conflict use_variable
BEGIN
    RETURN (
        SELECT next.run_at FROM (
            SELECT pending.run_at, pending.instruction LIKE key AND pending.tags <@ tags AS is_offered,
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
    task text, level integer, key text, tags text[], names text[], clock timestamptz, room integer
)
RETURNS tid[] LANGUAGE plpgsql AS $planton$
#variable_conflict use_variable
BEGIN
    RETURN ARRAY(
        SELECT pending.ctid FROM planton_pending AS pending
        WHERE pending.task_name = task AND pending.priority <= level AND pending.run_at <= clock
          AND pending.instruction LIKE key AND pending.tags <@ tags
          AND pending.instruction NOT IN (SELECT unnest(names))
        ORDER BY pending.priority DESC, pending.run_at, pending.id LIMIT room
        FOR UPDATE SKIP LOCKED
    );
END $planton$;

CREATE OR REPLACE FUNCTION planton_next_due_of_rest(task text, level integer, after timestamptz)
RETURNS timestamptz LANGUAGE plpgsql STABLE AS $planton$
#variable_conflict use_variable
BEGIN
    RETURN (
        SELECT min(pending.run_at) FROM planton_pending AS pending
        WHERE pending.task_name = task AND pending.priority <= level AND pending.run_at > after
          AND pending.run_at < '9999-01-01'
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
    retries integer, OUT given text[], OUT problem jsonb
)
LANGUAGE plpgsql AS $planton$
DECLARE
    before text[];
    state text;
    message text;
    detail text;
    hint text;
BEGIN
    LOOP
        given := '{}';
        BEGIN
            IF mode = 'marks' THEN
                given := planton_run(statement, room, names, clock);
                PERFORM planton_requeue_active(task, given, retries);
            ELSIF mode = 'locks' THEN
                given := planton_found(task, statement, room, names, clock);
            ELSIF mode = 'writes' THEN
                before := planton_traces();
                given := planton_run(statement, room, names, clock);
                mode := planton_mode_by_traces(before);
                CONTINUE WHEN mode = 'locks';
                PERFORM planton_requeue_active(task, given, retries);
            ELSE
                PERFORM set_config('transaction_read_only', 'on', true);
                given := planton_found(task, statement, room, names, clock);
                mode := 'reads';
                RAISE SQLSTATE 'PLEND';  -- undoes the setting, as there is nothing else to undo
            END IF;
            RETURN;
        EXCEPTION
            WHEN SQLSTATE 'PLEND' THEN
                RETURN;
            WHEN OTHERS THEN
                GET STACKED DIAGNOSTICS state = RETURNED_SQLSTATE, message = MESSAGE_TEXT,
                    detail = PG_EXCEPTION_DETAIL, hint = PG_EXCEPTION_HINT;
                IF state <> '25006' OR mode IN ('marks', 'locks', 'writes') THEN
                    given := '{}';
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

-- The instructions that the user's statement returns: $1 is how many at most, $2 what is active,
-- $3 the time.
CREATE OR REPLACE FUNCTION planton_run(
    statement text, most integer, names text[], clock timestamptz
)
RETURNS text[] LANGUAGE plpgsql AS $planton$
DECLARE
    one text;
    given text[] := '{}';
BEGIN
    FOR one IN EXECUTE statement USING most, names, clock LOOP
        IF cardinality(given) = most THEN
            RAISE EXCEPTION 'gave more instructions than its limit of %', most
                USING ERRCODE = 'PLBAD';
        ELSIF octet_length(one) BETWEEN 1 AND 2000 THEN
            given := array_append(given, one);
        ELSE
            RAISE EXCEPTION 'gave %: an instruction must name its work', CASE
                WHEN one IS NULL THEN 'a NULL' WHEN one = '' THEN 'an empty text'
                ELSE 'a text of ' || octet_length(one) || ' bytes, 2000 are the most'
            END USING ERRCODE = 'PLBAD';
        END IF;
    END LOOP;
    RETURN given;
END $planton$;

-- A statement that marks will not return these again: what is active is queued, and comes when that
-- claim has ended. Not for long: somebody's open transaction may have queued it; then the statement is
-- undone.
CREATE OR REPLACE FUNCTION planton_requeue_active(task text, given text[], granted integer)
RETURNS void LANGUAGE plpgsql
SET enable_seqscan = off SET enable_bitmapscan = off SET lock_timeout = '100ms'
AS $planton$
BEGIN
    INSERT INTO planton_pending (task_name, instruction, retries)
    SELECT active.task_name, active.instruction, granted FROM planton_active AS active
    WHERE active.task_name = task AND active.instruction = ANY (given)
    ORDER BY active.instruction ON CONFLICT (task_name, instruction) DO NOTHING;
END $planton$;

-- What a statement that does not mark gives. Its rows are found again while they are active, queued,
-- or failed for good: it is asked for more, so that those behind them are reached.
CREATE OR REPLACE FUNCTION planton_found(
    task text, statement text, room integer, names text[], clock timestamptz
)
RETURNS text[] LANGUAGE plpgsql AS $planton$
DECLARE
    wanted integer := room + cardinality(names);
    most integer := NULL;           -- more than that cannot be left out
    given text[];
    new text[];
BEGIN
    LOOP
        given := planton_run(statement, wanted, names, clock);
        new := planton_not_known(task, given, names, room);
        IF cardinality(new) = room OR cardinality(given) < wanted OR wanted >= most THEN
            RETURN new;
        END IF;
        most := coalesce(most, wanted + planton_known(task));
        wanted := least(wanted::bigint * 32, most);
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

-- Those that are neither active, nor queued, nor failed for good; each once, in their order.
CREATE OR REPLACE FUNCTION planton_not_known(task text, given text[], names text[], room integer)
RETURNS text[] LANGUAGE plpgsql STABLE SET enable_seqscan = off SET enable_bitmapscan = off
AS $planton$
BEGIN
    RETURN ARRAY(
        SELECT found.instruction FROM unnest(given) WITH ORDINALITY AS found (instruction, place)
        WHERE found.instruction NOT IN (SELECT unnest(names))
          AND found.instruction NOT IN (
            SELECT pending.instruction FROM planton_pending AS pending
            WHERE pending.task_name = task AND pending.instruction = ANY (given)
        ) AND found.instruction NOT IN (
            SELECT ended.instruction FROM planton_ended AS ended
            WHERE ended.task_name = task AND ended.instruction = ANY (given)
              AND ended.status <> 'succeeded' AND NOT ended.superseded
        )
        GROUP BY found.instruction ORDER BY min(found.place) LIMIT room
    );
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
    levels integer := 0;
BEGIN
    SELECT row.paused_at IS NOT NULL, row.concurrency INTO is_paused, concurrency
    FROM planton_task AS row WHERE row.task_name = task;
    SELECT count(*), min(counted.lease_expires_at) INTO active, first_expiry
    FROM planton_active AS counted WHERE counted.task_name = task;
    LOOP
        level := planton_next_level(task, level, '{}');
        EXIT WHEN level IS NULL;
        levels := levels + 1;
        IF levels > 32 THEN
            first_due := least(first_due, planton_next_due_of_rest(task, level, '-infinity'));
            EXIT;
        END IF;
        first_due := least(first_due, planton_next_due(task, level, key, tags, '-infinity'));
    END LOOP;
    IF cron IS NOT NULL THEN
        SELECT own.next_fire_at INTO kept FROM planton_cron AS own
        WHERE own.task_name = task AND own.key = cron;
    END IF;
    clock := clock_timestamp();
    RETURN NEXT;
END $planton$;
