-- Queue an instruction, from any language, as part of the caller's transaction; false, and nothing
-- changed, if it is queued already. The caller needs INSERT on planton_pending and nothing else.
CREATE OR REPLACE FUNCTION planton_enqueue(
    task_name text, instruction text, payload json DEFAULT NULL, priority integer DEFAULT 0,
    run_at timestamptz DEFAULT NULL, tags text[] DEFAULT '{}', retries integer DEFAULT 0,
    timeout double precision DEFAULT NULL, partition text DEFAULT ''
)
RETURNS boolean LANGUAGE plpgsql AS $planton$
#variable_conflict use_column
DECLARE
    count integer;
BEGIN
    -- Without the columns of the conflict, which would ask for SELECT.
    INSERT INTO planton_pending (
        task_name, instruction, payload, priority, run_at, tags, retries, timeout, partition
    )
    VALUES (
        $1, $2, $3, $4, coalesce($5, clock_timestamp()), $6, $7, $8, $9
    )
    ON CONFLICT DO NOTHING;
    GET DIAGNOSTICS count = ROW_COUNT;
    RETURN count = 1;
END $planton$;
