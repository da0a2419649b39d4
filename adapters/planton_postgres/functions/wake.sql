-- Wake-ups: one NOTIFY a statement, with the names of the tasks that it concerns. Commits that
-- notify take turns, so there is none where nobody could want it; and
-- `SET LOCAL planton.wake_ups = off` (or ALTER DATABASE … SET) turns them off.

-- The channel of the tables in this schema; there may be others in the database.
CREATE OR REPLACE FUNCTION planton_channel() RETURNS text LANGUAGE sql STABLE AS $$
    SELECT 'planton_' || md5(relnamespace::regnamespace::text)
    FROM pg_class WHERE oid = 'planton_task'::regclass
$$;

-- `kind` is why: "due", "slot" (one was freed), "task" (its settings) or "change" (in a table of
-- the user's). No names means all tasks: a payload has less than 8000 bytes.
CREATE OR REPLACE FUNCTION planton_notify(channel text, kind text, task_names text[])
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    payload text := json_build_array(kind, task_names)::text;
BEGIN
    IF octet_length(payload) >= 8000 THEN
        payload := json_build_array(kind, NULL)::text;
    END IF;
    PERFORM pg_notify(channel, payload);
END $$;

CREATE OR REPLACE FUNCTION planton_rows_changed() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
    task_names text[];
BEGIN
    IF current_setting('planton.wake_ups', true) = 'off' THEN
        RETURN NULL;
    END IF;
    task_names := ARRAY(SELECT DISTINCT task_name FROM changed);
    IF task_names <> '{}' THEN
        PERFORM planton_notify(
            'planton_' || md5(quote_ident(TG_TABLE_SCHEMA)), TG_ARGV[0], task_names
        );
    END IF;
    RETURN NULL;
END $$;

CREATE OR REPLACE TRIGGER planton_wake AFTER INSERT ON planton_pending
REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION planton_rows_changed('due');

CREATE OR REPLACE TRIGGER planton_wake AFTER DELETE ON planton_active
REFERENCING OLD TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION planton_rows_changed('slot');

-- By row, as it concerns one: the claim writes here too, and must not pay for it.
CREATE OR REPLACE FUNCTION planton_task_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('planton.wake_ups', true) IS DISTINCT FROM 'off' THEN
        PERFORM planton_notify(
            'planton_' || md5(quote_ident(TG_TABLE_SCHEMA)), 'task', ARRAY[NEW.task_name]
        );
    END IF;
    RETURN NULL;
END $$;

CREATE OR REPLACE TRIGGER planton_wake AFTER UPDATE OF paused_at, concurrency ON planton_task
FOR EACH ROW WHEN (
    OLD.paused_at IS DISTINCT FROM NEW.paused_at OR OLD.concurrency IS DISTINCT FROM NEW.concurrency
)
EXECUTE FUNCTION planton_task_changed();

-- Tables of the user's. A statement that changed no row wakes nobody, and neither does what a claim
-- changes: two tasks of one table would wake each other for ever.
CREATE OR REPLACE FUNCTION planton_table_changed() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('planton.wake_ups', true) IS DISTINCT FROM 'off'
        AND coalesce(current_setting('planton.claims', true), '') = ''
        AND EXISTS (SELECT FROM changed)
    THEN
        PERFORM pg_notify(
            TG_ARGV[0], json_build_array('change', json_build_array(TG_ARGV[1]))::text
        );
    END IF;
    RETURN NULL;
END $$;

-- Make triggers for a table, or drop them; whether that was to do. One process at a time: the others
-- find them made. They are looked for first because making them waits for all who write to the table,
-- and makes all wait who want to.
CREATE OR REPLACE FUNCTION planton_wake_on_change(
    target regclass, task text, is_wanted boolean DEFAULT true
)
RETURNS boolean LANGUAGE plpgsql AS $$
DECLARE
    event text;
    name text;
    is_changed boolean := false;
BEGIN
    PERFORM pg_advisory_xact_lock(7382190455018237);
    FOREACH event IN ARRAY ARRAY['insert', 'update'] LOOP
        name := 'planton_' || event || '_' || md5(planton_channel() || ' ' || task);
        CONTINUE WHEN is_wanted = EXISTS (
            SELECT FROM pg_trigger WHERE tgrelid = target AND tgname = name
        );
        IF is_wanted THEN
            EXECUTE format(
                'CREATE TRIGGER %I AFTER %s ON %s REFERENCING NEW TABLE AS changed'
                ' FOR EACH STATEMENT EXECUTE FUNCTION planton_table_changed(%L, %L)',
                name, event, target, planton_channel(), task
            );
        ELSE
            EXECUTE format('DROP TRIGGER %I ON %s', name, target);
        END IF;
        is_changed := true;
    END LOOP;
    RETURN is_changed;
END $$;
