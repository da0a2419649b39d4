-- A failure counts until its instruction succeeds. That is marked here when it does: to look for
-- it at every claim would take an index of all that ever succeeded.
ALTER TABLE planton_ended ADD COLUMN is_past INTEGER NOT NULL DEFAULT 0;
UPDATE planton_ended SET is_past = 1
FROM (
    SELECT task_name, instruction, max(id) AS id FROM planton_ended
    WHERE status = 'succeeded' GROUP BY task_name, instruction
) AS later
WHERE planton_ended.status <> 'succeeded' AND planton_ended.id < later.id
  AND planton_ended.task_name = later.task_name
  AND planton_ended.instruction = later.instruction;
