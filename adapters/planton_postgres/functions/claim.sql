-- The strict claim: counts what is active and claims under the cap, exactly, over the whole fleet. Its
-- seven steps are those of the class Claim in planton_sqlite/_claim.py, by the same names; what they
-- are made of is in claim_steps.sql and ask.sql.
--
-- Why it is exact: whoever holds the lock of the task is alone in adding rows of it. VOLATILE, so that
-- each statement sees what was committed before *it* began: the count begins when the lock is held,
-- and from then on others can only delete rows, or renew their leases and change their tokens. What is
-- taken and asked for is cut to the room that the count leaves, before it is recorded; a cap that was
-- lowered leaves the rows that are there, and fewer of them are delivered again. The same holds for each
-- partition, but that all of its expired ones are delivered again. SECURITY INVOKER, for ever: it runs
-- the user's own statement. Nothing in it waits long for another transaction, but for that statement:
-- 5 ms for each that step 3 queues again, 100 ms in all, and 100 ms to queue what step 6 has marked. No
-- planner setting is in force here, or in what runs that statement, but the user's own.
CREATE OR REPLACE FUNCTION planton_claim(task text, request jsonb)
RETURNS TABLE (
    kind text, id bigint, instruction text, payload text, delivery integer, timeout double precision,
    partition text
)
LANGUAGE plpgsql VOLATILE SECURITY INVOKER AS $planton$
DECLARE
    asked record;                   -- the request
    own planton_task;               -- its row
    cap integer;                    -- the concurrency in force
    counted record;                 -- what is active by now; see planton_count
    active integer;                 -- how many there were at first, expired ones included
    clock timestamptz;              -- when leases are over, and work is due
    room integer;
    taken record;                   -- of the queue; see planton_take
    number integer;
    claimed integer := 0;           -- how many are delivered,
    uncounted integer := 0;         -- and how many of them since the last count
    given text[] := '{}';           -- what the source of the task gave,
    owners text[];                  -- the partition of each,
    moved integer := 0;             -- and how many more wait for room in theirs
    mode text;
    problem jsonb;
BEGIN
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'planton_claim needs READ COMMITTED, not %',
            current_setting('transaction_isolation') USING ERRCODE = 'active_sql_transaction';
    END IF;
    -- Keys that are not known are ignored, and each that may be missing has a default: clients and
    -- this function are deployed one after the other.
    SELECT * INTO asked FROM jsonb_to_record(
        '{"key": "%", "tags": [], "keeps": true, "retries": 0, "mode": "reads", "is_alone": false}'
        || jsonb_strip_nulls(request)
    ) AS asked (
        "limit" integer, concurrency integer, lease double precision, deliveries integer,
        key text, tags text[], claimed_by text, token bigint, keeps boolean, stopped jsonb,
        statement text, mode text, retries integer, partition_concurrency integer,
        cron text, kept timestamptz, fires timestamptz[], next_fire_at timestamptz,
        is_alone boolean
    );

    -- 1. lock the row of the task, or go away
    SELECT * INTO own FROM planton_task AS row WHERE row.task_name = task
    FOR NO KEY UPDATE SKIP LOCKED;
    IF own.task_name IS NULL THEN
        kind := CASE
            WHEN EXISTS (SELECT FROM planton_task AS row WHERE row.task_name = task)
            THEN 'locked' ELSE 'unknown'
        END;
        RETURN NEXT;
        RETURN;
    ELSIF own.paused_at IS NOT NULL THEN
        kind := 'paused';
        RETURN NEXT;
        RETURN;
    END IF;
    cap := coalesce(own.concurrency, asked.concurrency);
    IF cap IS NULL OR asked."limit" IS NULL
        OR asked.mode NOT IN ('reads', 'writes', 'locks', 'marks')
    THEN
        RAISE EXCEPTION 'planton_claim needs a concurrency, a limit and a mode, not %', request
            USING ERRCODE = 'null_value_not_allowed';
    END IF;

    -- 2. count what is active; the time is read after that
    counted := planton_count(task, asked.partition_concurrency, own.ids_from, '-infinity');
    active := counted.active;
    clock := clock_timestamp();

    -- 3. rescue claims whose lease is over; they hold their slots already
    IF counted.first_expiry <= clock THEN
        RETURN QUERY SELECT * FROM planton_rescue(task, asked, cap, clock);
        GET DIAGNOSTICS claimed = ROW_COUNT;
        counted := planton_count(task, asked.partition_concurrency, counted.ids_from, clock);
    END IF;

    -- 4. room
    room := greatest(0, least(asked."limit" - claimed, cap - counted.active));

    -- 5. take due rows of the queue, and record them: they are active when step 6 asks
    taken := planton_take(task, asked, counted, clock, room);
    IF taken.due <> '{}' THEN
        RETURN QUERY SELECT * FROM planton_record(
            task, asked, counted.ids_from, taken.due, NULL, NULL
        );
        GET DIAGNOSTICS uncounted = ROW_COUNT;
        claimed := claimed + uncounted;
        room := room - uncounted;
    END IF;

    -- 6. ask the source of the task for the room that is left: the user's own statement, or cron times
    IF asked.statement IS NOT NULL AND room > 0 OR asked.cron IS NOT NULL THEN
        IF uncounted > 0 THEN
            counted := planton_count(task, asked.partition_concurrency, counted.ids_from, clock);
            uncounted := 0;
        END IF;
        SELECT * INTO given, owners, moved, mode, problem
        FROM planton_ask(task, asked, counted, clock, room);
    END IF;

    -- 7. record what it gave, each with a new receipt, as step 5 has what was due
    IF given <> '{}' THEN
        RETURN QUERY SELECT * FROM planton_record(
            task, asked, counted.ids_from, '{}', given, owners
        );
        GET DIAGNOSTICS number = ROW_COUNT;
        claimed := claimed + number;
        uncounted := uncounted + number;
    END IF;

    IF claimed = 0 AND active = counted.active AND moved = 0 AND asked.is_alone
        AND asked.statement IS NULL AND asked.cron IS NULL
    THEN
        -- Nothing was changed, and nothing else shares the commit: no need to wait for the disk.
        PERFORM set_config('synchronous_commit', 'off', true);
    END IF;
    kind := 'state';
    payload := jsonb_build_object(
        'active', active, 'held', counted.active + uncounted, 'claimed', claimed, 'cap', cap,
        'mode', mode, 'problem', problem, 'moved', moved, 'is_full', taken.is_full,
        'stopped', taken.stopped, 'walked', taken.walked, 'took', taken.took,
        'clock', extract(epoch FROM clock_timestamp()),
        'first_expiry', extract(epoch FROM nullif(counted.first_expiry, 'infinity')),
        'next_due', extract(epoch FROM taken.next_due)
    );
    RETURN NEXT;
END $planton$;
-- It runs any statement, with the rights of whoever calls it: nobody gets it by chance.
REVOKE EXECUTE ON FUNCTION planton_claim(text, jsonb) FROM PUBLIC;
