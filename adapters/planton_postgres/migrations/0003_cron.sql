-- The next time of each time table that a cron task has: of one, or of two while a program is
-- deployed whose new version has another expression.
CREATE TABLE planton_cron (
    task_name text NOT NULL,
    key text NOT NULL,               -- the expression, its time zone, its policies
    next_fire_at timestamptz NOT NULL,
    -- Another time table of the task has it, too, and it was dispatched by that.
    is_done boolean NOT NULL DEFAULT false,
    PRIMARY KEY (task_name, key)
);
ALTER TABLE planton_task DROP COLUMN next_fire_at;
