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
