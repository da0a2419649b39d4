-- The dispatchers that run, each renewed every few seconds. To stop them from psql:
-- UPDATE planton_dispatcher SET stop_requested_at = now();
-- Not logged: what is true for some seconds only need not survive a crash of the server.
CREATE UNLOGGED TABLE planton_dispatcher (
    id text PRIMARY KEY,
    host text NOT NULL,
    pid integer NOT NULL,
    version text NOT NULL,           -- of planton
    started_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    seen_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    stop_requested_at timestamptz,
    tasks integer NOT NULL DEFAULT 0 -- how many it has
) WITH (fillfactor = 50);

-- What they say of their tasks: where each stands, and why it did what it did.
CREATE UNLOGGED TABLE planton_decision (
    dispatcher_id text NOT NULL,
    task_name text NOT NULL,
    reported_at timestamptz NOT NULL,
    report json NOT NULL,
    PRIMARY KEY (task_name, dispatcher_id)
) WITH (fillfactor = 50);
CREATE INDEX planton_decision_dispatcher ON planton_decision (dispatcher_id);
