-- How often in a row dispatchers gave it back because they could not deliver it: from the second
-- time on it pauses, so that one that no listener takes does not starve the others.
ALTER TABLE planton_pending ADD COLUMN given_back integer NOT NULL DEFAULT 0;
ALTER TABLE planton_active ADD COLUMN given_back integer NOT NULL DEFAULT 0;

-- What failed for good: a plain SELECT of a claim task leaves it out.
CREATE INDEX planton_ended_failed ON planton_ended (task_name, instruction)
WHERE status <> 'succeeded';
