-- The strict claim: counts what is active and claims under the cap, exactly, over the whole fleet. The
-- steps have the names and the order of the class Claim in planton_sqlite/_claim.py.
--
-- Why it is exact: whoever holds the lock of the task is alone in adding rows of it. VOLATILE, so that
-- each statement sees what was committed before *it* began: the count begins when the lock is held,
-- and from then on others can only delete. No claim adds a row at or above its cap; a cap that was
-- lowered leaves the rows that are there. The same holds for each partition: it is counted after the
-- lock, and what a statement gave is cut to its room before it is recorded. SECURITY INVOKER, for
-- ever: it runs the user's own statement. Nothing in it waits for another transaction, but for that
-- statement.
CREATE OR REPLACE FUNCTION planton_claim(task text, request jsonb)
RETURNS TABLE (
    kind text, id bigint, instruction text, payload text, delivery integer, timeout double precision,
    partition text
)
LANGUAGE plpgsql VOLATILE SECURITY INVOKER AS $planton$
#variable_conflict use_column
DECLARE
    asked record;                   -- the request
    cap integer;                    -- the concurrency in force
    is_paused boolean;
    active integer;                 -- how many rows there were, expired ones included
    held integer;                   -- how many there are by now: counted, less ended, plus added
    names text[];                   -- the instructions that are active, rescued ones included
    first_expiry timestamptz;
    ids_from bigint;                -- the count begins here: no row has a lower id, see planton_draw
    lowest bigint;                  -- the lowest id that was counted
    ids bigint[];                   -- of the claims that are added
    clock timestamptz;              -- when leases are over, and work is due
    recorded_at timestamptz;
    room integer;
    claimed integer := 0;
    count integer;
    level integer := NULL;          -- the priority that is looked at
    levels integer := 0;            -- how many there were
    passed jsonb;                   -- by priority: (run_at, id) of the last row taken there
    places tid[];
    due tid[] := '{}';              -- the places of the rows that are taken; they are locked
    last_run_at timestamptz;
    last_id bigint;
    next_due timestamptz;
    began timestamptz;
    took interval;
    walked bigint;                  -- how many index entries it read, dead rows included
    partitions jsonb;               -- by name: how many of it are active by now
    is_full boolean := false;       -- nothing was found, for what is due is of full partitions
    given text[] := '{}';
    owners text[];                  -- the partition of each that was given
    marked text[] := '{}';          -- what the statement has marked, `given` and more
    marked_for text[];
    moved integer := 0;             -- how many of them wait for room in their partition
    mode text;
    problem jsonb;
    seqscan text := current_setting('enable_seqscan');
    bitmapscan text := current_setting('enable_bitmapscan');
    plan_cache_mode text := current_setting('plan_cache_mode');
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'planton_claim needs READ COMMITTED, not %',
            current_setting('transaction_isolation') USING ERRCODE = 'active_sql_transaction';
    END IF;
    -- Keys that are not known are ignored, and each that may be missing has a default: clients and
    -- this function are deployed one after the other.
    SELECT * INTO asked FROM jsonb_to_record(
        '{"key": "%", "tags": [], "keeps": true, "retries": 0, "passed": {}, "is_alone": false}'
        || jsonb_strip_nulls(request)
    ) AS asked (
        "limit" integer, concurrency integer, lease double precision, deliveries integer,
        key text, tags text[], claimed_by text, token bigint, keeps boolean,
        passed jsonb,
        statement text, mode text, retries integer, partition_concurrency integer,
        cron text, kept timestamptz, fires timestamptz[], next_fire_at timestamptz,
        is_alone boolean
    );

    -- 1. lock the row of the task, or go away
    SELECT coalesce(task_row.concurrency, asked.concurrency), task_row.paused_at IS NOT NULL,
           task_row.ids_from
    INTO cap, is_paused, ids_from
    FROM planton_task AS task_row WHERE task_row.task_name = task FOR NO KEY UPDATE SKIP LOCKED;
    IF FOUND AND (cap IS NULL OR asked."limit" IS NULL) THEN
        RAISE EXCEPTION 'planton_claim needs a concurrency and a limit, not %', request
            USING ERRCODE = 'null_value_not_allowed';
    ELSIF NOT FOUND THEN
        kind := CASE
            WHEN EXISTS (SELECT FROM planton_task AS task_row WHERE task_row.task_name = task)
            THEN 'locked' ELSE 'unknown'
        END;
        RETURN NEXT;
        RETURN;
    ELSIF is_paused THEN
        kind := 'paused';
        RETURN NEXT;
        RETURN;
    END IF;
    -- Our own statements are planned once, perhaps while the tables are empty: then they must not
    -- read all of a table, or sort it, for as long as the plan is kept.
    PERFORM set_config('enable_seqscan', 'off', true), set_config('enable_bitmapscan', 'off', true),
            set_config('plan_cache_mode', 'force_generic_plan', true);

    -- 2. count what is active; below ids_from there are dead rows only
    SELECT count(*), min(counted.lease_expires_at), min(counted.id),
           coalesce(array_agg(counted.instruction), '{}')
    INTO active, first_expiry, lowest, names
    FROM planton_active AS counted
    WHERE counted.task_name = task AND counted.id + 0 >= ids_from;
    held := active;
    clock := clock_timestamp();

    -- 3. rescue claims whose lease is over
    IF first_expiry <= clock THEN
        held := held - planton_end_exhausted(task, asked.deliveries, clock, asked.keeps);
        held := held - planton_requeue_not_offered(task, asked.key, asked.tags, clock);
        -- The others hold their slots already, but no more of them start than may run now. What could
        -- not be ended or given back, as somebody has locked it, stays.
        count := (
            SELECT count(*) FROM planton_active AS expired
            WHERE expired.task_name = task AND expired.lease_expires_at <= clock
              AND expired.instruction LIKE asked.key AND expired.tags <@ asked.tags
        );
        RETURN QUERY
        UPDATE planton_active AS rescued
        SET token = asked.token, delivery = least(rescued.delivery + 1, 1000000000),
            claimed_at = clock, claimed_by = asked.claimed_by, lease = asked.lease,
            lease_expires_at = clock + least(asked.lease, rescued.timeout) * interval '1 second'
        WHERE rescued.id = ANY (ARRAY(
            SELECT expired.id FROM planton_active AS expired
            WHERE expired.task_name = task AND expired.lease_expires_at <= clock
              AND expired.instruction LIKE asked.key AND expired.tags <@ asked.tags
            ORDER BY expired.lease_expires_at, expired.id
            LIMIT greatest(0, least(asked."limit", cap - (held - count))) FOR UPDATE SKIP LOCKED
        ))
        RETURNING 'rescued', rescued.id, rescued.instruction, rescued.payload::text,
                  rescued.delivery, rescued.timeout, rescued.partition;
        GET DIAGNOSTICS claimed = ROW_COUNT;
        SELECT min(left_over.lease_expires_at) FILTER (WHERE left_over.lease_expires_at > clock),
               coalesce(array_agg(left_over.instruction), '{}')
        INTO first_expiry, names
        FROM planton_active AS left_over WHERE left_over.task_name = task;
    END IF;

    -- 4. room
    room := least(asked."limit" - claimed, cap - held);

    -- 5. take due rows of the queue. What is active stays there. With partitions, these take turns;
    -- else priority by priority. What was taken before is passed over: its dead rows stay in the
    -- index while a snapshot is held open.
    IF asked.partition_concurrency IS NOT NULL THEN
        partitions := planton_partitions(task, ids_from);
        IF room > 0 THEN
            SELECT taken.partitions, taken.due, taken.next_due, taken.is_full
            INTO partitions, due, next_due, is_full
            FROM planton_take_turns(
                task, asked.partition_concurrency, partitions, asked.key, asked.tags, names, clock, room
            ) AS taken;
        END IF;
    END IF;
    passed := asked.passed;
    began := clock_timestamp();
    walked := pg_stat_get_xact_tuples_returned('planton_pending_due'::regclass);
    WHILE asked.partition_concurrency IS NULL AND room > cardinality(due) LOOP
        level := planton_next_level(task, level, passed);
        EXIT WHEN level IS NULL;
        levels := levels + 1;
        IF levels > 32 THEN  -- very many priorities: the rest is sorted
            due := due || planton_take_rest(
                task, level, asked.key, asked.tags, names, clock, room - cardinality(due), '{}', false
            );
            next_due := least(next_due, planton_next_due_of_rest(task, level, names, clock));
            EXIT;
        END IF;
        SELECT array_agg(taken.place), max(taken.run_at), (array_agg(taken.id))[count(*)]
        INTO places, last_run_at, last_id
        FROM (
            SELECT pending.ctid AS place, pending.run_at, pending.id
            FROM planton_pending AS pending
            WHERE pending.task_name = task AND pending.priority = level
              AND pending.run_at <= clock AND (pending.run_at, pending.id) > (
                  coalesce((passed -> level::text ->> 0)::timestamptz, '-infinity'),
                  coalesce((passed -> level::text ->> 1)::bigint, -9223372036854775808)
              )
              AND pending.instruction LIKE asked.key AND pending.tags <@ asked.tags
              AND pending.instruction NOT IN (SELECT unnest(names))
            ORDER BY pending.run_at, pending.id LIMIT room - cardinality(due)
            FOR UPDATE SKIP LOCKED
        ) AS taken;
        IF places IS NOT NULL THEN
            due := due || places;
            passed := passed || jsonb_build_object(level, jsonb_build_array(last_run_at, last_id));
        END IF;
        IF room > cardinality(due) THEN
            next_due := least(
                next_due, planton_next_due(task, level, asked.key, asked.tags, names, clock)
            );
        END IF;
    END LOOP;
    room := room - cardinality(due);
    walked := pg_stat_get_xact_tuples_returned('planton_pending_due'::regclass) - walked;
    took := clock_timestamp() - began;

    -- 6. ask the user's own statement for the room that is left, planned as the user has set it
    mode := asked.mode;
    IF asked.statement IS NOT NULL AND room > 0 THEN
        PERFORM set_config('enable_seqscan', seqscan, true),
                set_config('enable_bitmapscan', bitmapscan, true),
                set_config('plan_cache_mode', plan_cache_mode, true),
                set_config('planton.claims', task, true);
        SELECT answer.marked, answer.marked_for, answer.given, answer.owners, answer.moved,
               answer.mode, answer.problem
        INTO marked, marked_for, given, owners, moved, mode, problem
        FROM planton_ask(
            task, asked.statement, mode, room, names, clock, asked.retries,
            asked.partition_concurrency, partitions
        ) AS answer;
        PERFORM set_config('enable_seqscan', 'off', true),
                set_config('enable_bitmapscan', 'off', true),
                set_config('plan_cache_mode', 'force_generic_plan', true);
    END IF;
    -- A cron task: the times were reckoned outside, from the kept time; if that is still the one,
    -- as many fire as there is room, each once for all expressions.
    IF asked.cron IS NOT NULL THEN
        given := planton_fire(
            task, asked.cron, asked.kept, asked.fires[1:greatest(room, 0)],
            coalesce(asked.fires[greatest(room, 0) + 1], asked.next_fire_at)
        );
    END IF;

    -- 7. record each with a new receipt: what is due, without ON CONFLICT, as a conflict would be a
    -- broken invariant and must be loud; then what the source gave, but for what is queued or active
    recorded_at := clock_timestamp();
    ids := planton_draw(cardinality(due) + cardinality(given), ids_from);
    IF cardinality(due) > 0 THEN
        RETURN QUERY
        WITH gone AS (
            DELETE FROM planton_pending AS pending WHERE pending.ctid = ANY (due) RETURNING pending.*
        )
        INSERT INTO planton_active AS recorded (
            id, token, task_name, instruction, payload, priority, tags, retries, timeout, partition,
            delivery, failures, undelivered, error, created_at, claimed_at, claimed_by, lease,
            lease_expires_at
        )
        SELECT ids[row_number() OVER in_order], asked.token, gone.task_name, gone.instruction,
               gone.payload, gone.priority, gone.tags, gone.retries, gone.timeout, gone.partition,
               least(gone.delivery + 1, 1000000000), gone.failures, gone.undelivered, gone.error,
               gone.created_at, recorded_at, asked.claimed_by, asked.lease,
               recorded_at + least(asked.lease, gone.timeout) * interval '1 second'
        FROM gone WINDOW in_order AS (ORDER BY gone.priority DESC, gone.run_at, gone.id)
        ORDER BY gone.priority DESC, gone.run_at, gone.id
        RETURNING 'claimed', recorded.id, recorded.instruction, recorded.payload::text,
                  recorded.delivery, recorded.timeout, recorded.partition;
        GET DIAGNOSTICS count = ROW_COUNT;
        claimed := claimed + count;
        held := held + count;
        IF cardinality(marked) > 0 THEN  -- what was just taken, and is marked anew, waits again
            PERFORM planton_requeue_active(task, marked, marked_for, asked.retries);
        END IF;
    END IF;
    IF cardinality(given) > 0 THEN
        RETURN QUERY
        INSERT INTO planton_active AS recorded (
            id, token, task_name, instruction, partition, retries, delivery, created_at, claimed_at,
            claimed_by, lease, lease_expires_at
        )
        SELECT ids[cardinality(due) + each.place], asked.token, task, each.instruction,
               coalesce(each.owner, ''), asked.retries, 1, recorded_at, recorded_at, asked.claimed_by, asked.lease,
               recorded_at + asked.lease * interval '1 second'
        FROM unnest(given, owners) WITH ORDINALITY AS each (instruction, owner, place)
        WHERE each.instruction NOT IN (
            SELECT pending.instruction FROM planton_pending AS pending
            WHERE pending.task_name = task AND pending.instruction = ANY (given)
        )
        ORDER BY each.place ON CONFLICT (task_name, instruction) DO NOTHING
        RETURNING 'claimed', recorded.id, recorded.instruction, recorded.payload::text,
                  recorded.delivery, recorded.timeout, recorded.partition;
        GET DIAGNOSTICS count = ROW_COUNT;
        claimed := claimed + count;
        held := held + count;
    END IF;

    lowest := least(lowest, (SELECT min(id) FROM unnest(ids) AS id));
    IF lowest > ids_from + 1000 THEN
        -- Kept in the database, where it is as true as the rows that it is about.
        UPDATE planton_task AS task_row SET ids_from = lowest WHERE task_row.task_name = task;
    END IF;
    IF claimed = 0 AND active = held AND moved = 0 AND asked.is_alone
        AND asked.statement IS NULL AND asked.cron IS NULL
    THEN
        -- Nothing was changed, and nothing else shares the commit: no need to wait for the disk.
        PERFORM set_config('synchronous_commit', 'off', true);
    END IF;
    kind := 'state';
    id := NULL;
    payload := jsonb_build_object(
        'active', active, 'held', held, 'claimed', claimed, 'cap', cap, 'mode', mode,
        'problem', problem, 'passed', passed, 'moved', moved, 'is_full', is_full,
        'walked', walked - cardinality(due), 'took', extract(epoch FROM took),
        'clock', extract(epoch FROM clock_timestamp()),
        'first_expiry', extract(epoch FROM nullif(first_expiry, 'infinity')),
        'next_due', extract(epoch FROM next_due)
    );
    RETURN NEXT;
END $planton$;
-- It runs any statement, with the rights of whoever calls it: nobody gets it by chance.
REVOKE EXECUTE ON FUNCTION planton_claim(text, jsonb) FROM PUBLIC;
