-- Instructions move one way through three tables: pending, active, ended. The tables are small
-- but for the history, so moving a row costs half of updating a status among millions.

CREATE TABLE planton_task (
    task_name text PRIMARY KEY,
    paused_at timestamptz,           -- NULL when not paused
    concurrency integer CHECK (concurrency >= 1),  -- overrides that of the code when not NULL
    next_fire_at timestamptz         -- of a cron task
);

-- Enqueued, due later, given back, or waiting for a retry.
CREATE TABLE planton_pending (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    task_name text NOT NULL,
    instruction text NOT NULL,
    payload json,                    -- as it was given, the order of keys included
    priority integer NOT NULL DEFAULT 0,           -- high first
    run_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    tags text[] NOT NULL DEFAULT '{}',
    retries integer NOT NULL DEFAULT 0,            -- that are left
    timeout double precision,                      -- seconds that one delivery may take
    delivery integer NOT NULL DEFAULT 0,           -- how often it was handed out so far
    error text,                                    -- of the last try
    created_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (task_name, instruction)
);
-- The order of a claim. Only this index has it, so that the planner cannot take the primary key
-- for the ORDER BY and walk past all rows of other tasks.
CREATE INDEX planton_pending_due ON planton_pending (task_name, priority DESC, run_at, id);

-- Claimed and not ended; counted against the concurrency. The free space in its pages lets a
-- heartbeat write the new version of a row beside the old one, without touching an index.
CREATE TABLE planton_active (
    receipt uuid PRIMARY KEY,        -- random: names one claim and is never used again
    task_name text NOT NULL,
    instruction text NOT NULL,
    payload json,
    priority integer NOT NULL DEFAULT 0,
    tags text[] NOT NULL DEFAULT '{}',
    retries integer NOT NULL DEFAULT 0,
    timeout double precision,
    delivery integer NOT NULL,
    error text,
    created_at timestamptz NOT NULL,
    claimed_at timestamptz NOT NULL,
    lease double precision NOT NULL, -- seconds that a heartbeat renews it for
    lease_expires_at timestamptz NOT NULL,
    UNIQUE (task_name, instruction)  -- never two claims of one instruction
) WITH (fillfactor = 70);

-- The history, until it is pruned.
CREATE TABLE planton_ended (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    task_name text NOT NULL,
    instruction text NOT NULL,
    payload json,
    priority integer NOT NULL DEFAULT 0,
    tags text[] NOT NULL DEFAULT '{}',
    retries integer NOT NULL DEFAULT 0,
    timeout double precision,
    delivery integer NOT NULL,
    status text NOT NULL CHECK (status IN ('succeeded', 'failed', 'dead')),
    result json,
    error text,
    created_at timestamptz NOT NULL,
    claimed_at timestamptz,
    ended_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE INDEX planton_ended_at ON planton_ended (ended_at);
CREATE INDEX planton_ended_task ON planton_ended (task_name, instruction);

-- All of them with one status, for people.
CREATE VIEW planton_instruction AS
SELECT 'queued' AS status, task_name, instruction, payload, priority, tags, retries, timeout,
       delivery, NULL::json AS result, error, created_at, run_at,
       NULL::timestamptz AS claimed_at, NULL::timestamptz AS lease_expires_at,
       NULL::timestamptz AS ended_at
FROM planton_pending
UNION ALL
SELECT 'running', task_name, instruction, payload, priority, tags, retries, timeout,
       delivery, NULL, error, created_at, NULL, claimed_at, lease_expires_at, NULL
FROM planton_active
UNION ALL
SELECT status, task_name, instruction, payload, priority, tags, retries, timeout,
       delivery, result, error, created_at, NULL, claimed_at, NULL, ended_at
FROM planton_ended;
