-- Schema 11: jobs that asked how long they are kept, and failed jobs, which are kept longer than the others.

-- Finished jobs with the option keep_for. All of it follows from their rows, and is checked against them.
CREATE TABLE kept_jobs (
    job    INTEGER PRIMARY KEY,
    until  REAL NOT NULL,    -- finished_at + keep_for
    failed INTEGER NOT NULL  -- 1: it failed
) STRICT;

CREATE INDEX kept_jobs_until ON kept_jobs (until);

INSERT INTO meta (name, value) VALUES
    ('pruned_failed', (SELECT ifnull(sum(failed), 0) FROM lanes)
        - (SELECT count(*) FROM jobs WHERE state = 5 AND id NOT IN (SELECT job FROM damaged))),  -- so many of the pruned had failed
    ('keeping', 0);  -- jobs with a keep_for of more than an hour, finished or not
