-- The next time of each time table that a cron task has: of one, or of two while a program is
-- deployed whose new version has another expression.
CREATE TABLE planton_cron (
    task_name TEXT NOT NULL,
    key TEXT NOT NULL,               -- the expression, its time zone, its policies
    next_fire_at REAL NOT NULL,
    -- Whether it was dispatched by another time table of the task, which has it, too.
    is_done INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (task_name, key)
) WITHOUT ROWID;
INSERT INTO planton_cron (task_name, key, next_fire_at)
SELECT task_name, cron, next_fire_at FROM planton_task
WHERE cron IS NOT NULL AND next_fire_at IS NOT NULL;
ALTER TABLE planton_task DROP COLUMN next_fire_at;
ALTER TABLE planton_task DROP COLUMN cron;
