-- Who has a claim, or had it: the name of its storage.
ALTER TABLE planton_active ADD COLUMN claimed_by TEXT;
ALTER TABLE planton_ended ADD COLUMN claimed_by TEXT;

DROP VIEW planton_instruction;
CREATE VIEW planton_instruction AS
SELECT 'queued' AS status, task_name, instruction, payload, priority, tags, retries, delivery,
       NULL AS result, error, datetime(created_at, 'unixepoch') AS created_at,
       NULL AS claimed_at, NULL AS ended_at, datetime(run_at, 'unixepoch') AS run_at,
       NULL AS lease_expires_at, NULL AS claimed_by
FROM planton_pending
UNION ALL
SELECT 'running', task_name, instruction, payload, priority, tags, retries, delivery,
       NULL, error, datetime(created_at, 'unixepoch'),
       datetime(claimed_at, 'unixepoch'), NULL, NULL,
       datetime(lease_expires_at, 'unixepoch'), claimed_by
FROM planton_active
UNION ALL
SELECT status, task_name, instruction, payload, priority, tags, retries, delivery,
       result, error, datetime(created_at, 'unixepoch'),
       datetime(claimed_at, 'unixepoch'), datetime(ended_at, 'unixepoch'), NULL, NULL,
       claimed_by
FROM planton_ended;
