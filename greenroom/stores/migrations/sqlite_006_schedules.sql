-- Schema 6: schedules, rules that submit a job again and again (greenroom/schedules.py says what the columns mean).

CREATE TABLE schedules (
    name       TEXT PRIMARY KEY NOT NULL,
    definition TEXT NOT NULL,  -- JSON: job (its options without the payload), cron or every, timezone, policies
    payload    BLOB NOT NULL,
    next_at    REAL,           -- NULL: paused, or no more
    planned_at REAL,
    last_at    REAL,
    last_job   INTEGER,
    runs       INTEGER NOT NULL,
    skipped    INTEGER NOT NULL,
    paused_at  REAL,
    reason     TEXT NOT NULL,
    sum        INTEGER NOT NULL  -- all of the row
) STRICT;
