-- Counts what `wake_on_change` is told of by triggers on the user's tables.
ALTER TABLE planton_task ADD COLUMN changes INTEGER NOT NULL DEFAULT 0;
