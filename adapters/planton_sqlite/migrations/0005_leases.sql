-- Every attempt asks whether a lease is over: with a thousand active ones that read them all.
CREATE INDEX planton_active_lease ON planton_active (task_name, lease_expires_at);
