-- Instructions move one way through three tables: pending, active, ended. The tables are small
-- but for the history, so moving a row costs less than updating a status among millions.
-- Times are seconds since 1970, UTC, by the database's clock. Rows may be inserted by plain SQL; the
-- CHECKs keep out what no claim could use.

CREATE TABLE planton_task (
    task_name TEXT PRIMARY KEY,
    paused_at REAL,                                -- NULL when not paused
    concurrency INTEGER CHECK (concurrency >= 1),  -- overrides that of the code when not NULL
    changes INTEGER NOT NULL DEFAULT 0,            -- counted by the triggers of wake_on_change
    turn TEXT NOT NULL DEFAULT ''                  -- the partition that was served last
) WITHOUT ROWID;

-- Enqueued, due later, given back, or waiting for a retry.
CREATE TABLE planton_pending (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    task_name TEXT NOT NULL CHECK (
        typeof(task_name) = 'text' AND length(CAST(task_name AS BLOB)) BETWEEN 1 AND 500
        AND instr(task_name, char(0)) = 0
    ),
    instruction TEXT NOT NULL CHECK (
        typeof(instruction) = 'text' AND length(CAST(instruction AS BLOB)) BETWEEN 1 AND 2000
        AND instr(instruction, char(0)) = 0
    ),
    payload TEXT CHECK (payload IS NULL OR json_valid(payload)),     -- JSON
    priority INTEGER NOT NULL DEFAULT 0 CHECK (    -- high first
        typeof(priority) = 'integer' AND priority BETWEEN -2147483648 AND 2147483647
    ),
    run_at REAL NOT NULL DEFAULT ((julianday('now') - 2440587.5) * 86400.0)
        CHECK (typeof(run_at) = 'real'),
    tags TEXT NOT NULL DEFAULT '[]' CHECK (json_type(tags) = 'array'),
    retries INTEGER NOT NULL DEFAULT 0 CHECK (
        typeof(retries) = 'integer' AND retries BETWEEN 0 AND 2147483647
    ),
    timeout REAL CHECK (timeout IS NULL OR typeof(timeout) = 'real' AND timeout > 0 AND timeout < 1e9),
    "partition" TEXT NOT NULL DEFAULT '' CHECK (
        typeof("partition") = 'text' AND length(CAST("partition" AS BLOB)) <= 500
        AND instr("partition", char(0)) = 0
    ),
    delivery INTEGER NOT NULL DEFAULT 0 CHECK (
        typeof(delivery) = 'integer' AND delivery BETWEEN 0 AND 1000000000
    ),
    failures INTEGER NOT NULL DEFAULT 0,           -- since it was enqueued or retried
    undelivered INTEGER NOT NULL DEFAULT 0,        -- how often in a row a dispatcher gave it back
    error TEXT,                                    -- of the last try
    created_at REAL NOT NULL DEFAULT ((julianday('now') - 2440587.5) * 86400.0)
        CHECK (typeof(created_at) = 'real'),
    UNIQUE (task_name, instruction)
);
CREATE INDEX planton_pending_due ON planton_pending (task_name, priority, run_at, id);
-- The order within a partition. What has none is not in it: tasks without partitions do not pay.
CREATE INDEX planton_pending_partition
ON planton_pending (task_name, "partition", priority DESC, run_at, id) WHERE "partition" <> '';

-- Claimed and not ended; counted against the concurrency. The id and the token are the receipt.
CREATE TABLE planton_active (
    id INTEGER PRIMARY KEY AUTOINCREMENT,          -- never used again
    token INTEGER NOT NULL,                        -- random; new with each claim
    task_name TEXT NOT NULL,
    instruction TEXT NOT NULL,
    payload TEXT,
    priority INTEGER NOT NULL DEFAULT 0,
    tags TEXT NOT NULL DEFAULT '[]',
    retries INTEGER NOT NULL DEFAULT 0,
    timeout REAL,
    "partition" TEXT NOT NULL DEFAULT '',
    delivery INTEGER NOT NULL,
    failures INTEGER NOT NULL DEFAULT 0,
    undelivered INTEGER NOT NULL DEFAULT 0,
    error TEXT,
    created_at REAL NOT NULL,
    claimed_at REAL NOT NULL,
    claimed_by TEXT,
    lease REAL NOT NULL,                           -- seconds that a heartbeat renews it for
    lease_expires_at REAL NOT NULL,
    UNIQUE (task_name, instruction)                -- never two claims of one instruction
);
CREATE INDEX planton_active_lease ON planton_active (task_name, lease_expires_at);

-- The history, until it is pruned.
CREATE TABLE planton_ended (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    task_name TEXT NOT NULL,
    instruction TEXT NOT NULL,
    payload TEXT,
    priority INTEGER NOT NULL DEFAULT 0,
    tags TEXT NOT NULL DEFAULT '[]',
    retries INTEGER NOT NULL DEFAULT 0,
    timeout REAL,
    "partition" TEXT NOT NULL DEFAULT '',
    delivery INTEGER NOT NULL,
    status TEXT NOT NULL CHECK (status IN ('succeeded', 'failed', 'dead')),
    superseded INTEGER NOT NULL DEFAULT 0,         -- a failure after which it has succeeded
    result TEXT,
    error TEXT,
    created_at REAL NOT NULL,
    claimed_at REAL NOT NULL,
    claimed_by TEXT,
    ended_at REAL NOT NULL
);
CREATE INDEX planton_ended_at ON planton_ended (ended_at);
-- What failed for good: a plain SELECT leaves it out, and `retry` looks for it.
CREATE INDEX planton_ended_failed ON planton_ended (task_name, instruction)
WHERE status <> 'succeeded' AND NOT superseded;

-- The next time of each expression that a cron task has: of one, or of two while a program is
-- deployed whose new version has another one.
CREATE TABLE planton_cron (
    task_name TEXT NOT NULL,
    key TEXT NOT NULL,               -- the expression, its time zone, its policies
    next_fire_at REAL NOT NULL,
    PRIMARY KEY (task_name, key)
) WITHOUT ROWID;

-- The times that have fired and that an expression of the task has yet to come to.
CREATE TABLE planton_fired (
    task_name TEXT NOT NULL,
    fire_at REAL NOT NULL,
    PRIMARY KEY (task_name, fire_at)
) WITHOUT ROWID;

-- The dispatchers that run, each renewed every few seconds. To stop them from a shell:
-- UPDATE planton_dispatcher SET stop_requested_at = unixepoch();
CREATE TABLE planton_dispatcher (
    id TEXT PRIMARY KEY,
    host TEXT NOT NULL,
    pid INTEGER NOT NULL,
    version TEXT NOT NULL,           -- of planton
    started_at REAL NOT NULL,
    seen_at REAL NOT NULL,
    stop_requested_at REAL CHECK (typeof(stop_requested_at) IN ('real', 'null')),
    tasks INTEGER NOT NULL DEFAULT 0 -- how many it has
) WITHOUT ROWID;

-- What they say of their tasks: where each stands, and why it did what it did.
CREATE TABLE planton_decision (
    dispatcher_id TEXT NOT NULL,
    task_name TEXT NOT NULL,
    reported_at REAL NOT NULL,
    report TEXT NOT NULL CHECK (json_valid(report)),
    PRIMARY KEY (task_name, dispatcher_id)
) WITHOUT ROWID;

-- All instructions with one status, for people.
CREATE VIEW planton_instruction AS
SELECT 'queued' AS status, task_name, instruction, payload, priority, tags, retries,
       "partition", delivery,
       NULL AS result, error, datetime(created_at, 'unixepoch') AS created_at,
       NULL AS claimed_at, NULL AS ended_at, datetime(run_at, 'unixepoch') AS run_at,
       NULL AS lease_expires_at, NULL AS claimed_by
FROM planton_pending
UNION ALL
SELECT 'running', task_name, instruction, payload, priority, tags, retries,
       "partition", delivery,
       NULL, error, datetime(created_at, 'unixepoch'),
       datetime(claimed_at, 'unixepoch'), NULL, NULL,
       datetime(lease_expires_at, 'unixepoch'), claimed_by
FROM planton_active
UNION ALL
SELECT status, task_name, instruction, payload, priority, tags, retries,
       "partition", delivery,
       result, error, datetime(created_at, 'unixepoch'),
       datetime(claimed_at, 'unixepoch'), datetime(ended_at, 'unixepoch'), NULL, NULL,
       claimed_by
FROM planton_ended;
