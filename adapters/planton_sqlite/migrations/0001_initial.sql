-- Instructions move one way through three tables: pending, active, ended. The tables are small
-- but for the history, so moving a row costs less than updating a status among millions.
-- Times are seconds since 1970, UTC, by the database's clock.

CREATE TABLE planton_task (
    task_name TEXT PRIMARY KEY,
    paused_at REAL,                  -- NULL when not paused
    concurrency INTEGER CHECK (concurrency >= 1),  -- overrides that of the code when not NULL
    next_fire_at REAL,               -- of a cron task
    cron TEXT                        -- the expression and zone that it was reckoned by
) WITHOUT ROWID;

-- Enqueued, due later, given back, or waiting for a retry.
CREATE TABLE planton_pending (
    id INTEGER PRIMARY KEY,
    task_name TEXT NOT NULL,
    instruction TEXT NOT NULL,
    payload TEXT CHECK (payload IS NULL OR json_valid(payload)),  -- JSON
    priority INTEGER NOT NULL DEFAULT 0,           -- high first
    run_at REAL NOT NULL DEFAULT ((julianday('now') - 2440587.5) * 86400.0),
    tags TEXT NOT NULL DEFAULT '[]' CHECK (json_type(tags) = 'array'),
    retries INTEGER NOT NULL DEFAULT 0,            -- that are left
    timeout REAL,                                  -- seconds that the work may take
    delivery INTEGER NOT NULL DEFAULT 0,           -- how often it was handed out so far
    error TEXT,                                    -- of the last try
    created_at REAL NOT NULL DEFAULT ((julianday('now') - 2440587.5) * 86400.0),
    UNIQUE (task_name, instruction)
);
CREATE INDEX planton_pending_due ON planton_pending (task_name, priority DESC, run_at, id);
-- Tells at once that nothing is due, whatever waits for later.
CREATE INDEX planton_pending_run_at ON planton_pending (task_name, run_at);

-- Claimed and not ended; counted against the concurrency.
CREATE TABLE planton_active (
    receipt INTEGER PRIMARY KEY,     -- random: names one claim and is never used again
    task_name TEXT NOT NULL,
    instruction TEXT NOT NULL,
    payload TEXT,
    priority INTEGER NOT NULL DEFAULT 0,
    tags TEXT NOT NULL DEFAULT '[]',
    retries INTEGER NOT NULL DEFAULT 0,
    timeout REAL,
    delivery INTEGER NOT NULL,
    error TEXT,
    created_at REAL NOT NULL,
    claimed_at REAL NOT NULL,
    lease REAL NOT NULL,             -- seconds that a heartbeat renews it for
    lease_expires_at REAL NOT NULL,
    UNIQUE (task_name, instruction)  -- never two claims of one instruction
);

-- The history, until it is pruned.
CREATE TABLE planton_ended (
    id INTEGER PRIMARY KEY,
    task_name TEXT NOT NULL,
    instruction TEXT NOT NULL,
    payload TEXT,
    priority INTEGER NOT NULL DEFAULT 0,
    tags TEXT NOT NULL DEFAULT '[]',
    retries INTEGER NOT NULL DEFAULT 0,
    timeout REAL,
    delivery INTEGER NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('succeeded', 'failed', 'dead')),
    result TEXT,
    error TEXT,
    created_at REAL NOT NULL,
    claimed_at REAL NOT NULL,
    ended_at REAL NOT NULL
);
CREATE INDEX planton_ended_at ON planton_ended (ended_at);

-- All of them with one status, for people.
CREATE VIEW planton_instruction AS
SELECT 'queued' AS status, task_name, instruction, payload, priority, tags, retries, delivery,
       NULL AS result, error, datetime(created_at, 'unixepoch') AS created_at,
       NULL AS claimed_at, NULL AS ended_at, datetime(run_at, 'unixepoch') AS run_at,
       NULL AS lease_expires_at
FROM planton_pending
UNION ALL
SELECT 'running', task_name, instruction, payload, priority, tags, retries, delivery,
       NULL, error, datetime(created_at, 'unixepoch'),
       datetime(claimed_at, 'unixepoch'), NULL, NULL,
       datetime(lease_expires_at, 'unixepoch')
FROM planton_active
UNION ALL
SELECT status, task_name, instruction, payload, priority, tags, retries, delivery,
       result, error, datetime(created_at, 'unixepoch'),
       datetime(claimed_at, 'unixepoch'), datetime(ended_at, 'unixepoch'), NULL, NULL
FROM planton_ended;
