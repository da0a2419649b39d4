-- Who has a claim, or had it: the name of its storage.
ALTER TABLE planton_active ADD COLUMN claimed_by text;
ALTER TABLE planton_ended ADD COLUMN claimed_by text;

CREATE OR REPLACE VIEW planton_instruction AS
SELECT 'queued' AS status, task_name, instruction, payload, priority, tags, retries, timeout,
       delivery, NULL::json AS result, error, created_at, run_at,
       NULL::timestamptz AS claimed_at, NULL::timestamptz AS lease_expires_at,
       NULL::timestamptz AS ended_at, NULL::text AS claimed_by
FROM planton_pending
UNION ALL
SELECT 'running', task_name, instruction, payload, priority, tags, retries, timeout,
       delivery, NULL, error, created_at, NULL, claimed_at, lease_expires_at, NULL,
       claimed_by
FROM planton_active
UNION ALL
SELECT status, task_name, instruction, payload, priority, tags, retries, timeout,
       delivery, result, error, created_at, NULL, claimed_at, NULL, ended_at, claimed_by
FROM planton_ended;
