-- Who may have something to do after a commit, and triggers that say more about it.

-- name: busy
-- The tasks with anything in the tables, all others can be left alone; and what `wake_on_change`
-- has counted.
SELECT name.value, coalesce(task.changes, 0)
FROM json_each(:names) AS name LEFT JOIN planton_task AS task ON task.task_name = name.value
WHERE task.task_name IS NOT NULL
   OR EXISTS (SELECT 1 FROM planton_pending WHERE task_name = name.value)
   OR EXISTS (SELECT 1 FROM planton_active WHERE task_name = name.value);

-- name: table
-- The table's name as it was made: SQLite does not mind the case of letters.
SELECT name FROM sqlite_master
WHERE name = :table COLLATE NOCASE AND type = 'table' AND name NOT LIKE 'sqlite!_%' ESCAPE '!';

-- name: count_changes
-- From 1 on, so that the first claim has something to keep.
INSERT INTO planton_task (task_name, changes) VALUES (:task_name, 1)
ON CONFLICT (task_name) DO UPDATE SET changes = max(changes, 1);

-- name: trigger_name
SELECT printf('planton wakes %Q after %s of %Q', :task_name, lower(:event), :table);

-- name: trigger_exists
SELECT EXISTS (SELECT 1 FROM sqlite_master WHERE type = 'trigger' AND name = :trigger);

-- name: create_trigger
-- No parameters are allowed in there, so SQLite itself writes it: %w inside of "", %Q is a text.
SELECT printf(
    'CREATE TRIGGER "%w" AFTER %s ON "%w" BEGIN '
    || 'UPDATE planton_task SET changes = changes + 1 WHERE task_name = %Q; END',
    :trigger, :event, :table, :task_name
);

-- name: drop_trigger
SELECT printf('DROP TRIGGER "%w"', :trigger);
