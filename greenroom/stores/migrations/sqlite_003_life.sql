-- Schema 3: the whole life of a job: options that few have, the state "expired", and the history of runs that did not complete it.

-- A CHECK cannot be changed in place, so the table is made anew.
CREATE TABLE jobs_3 (
    id               INTEGER PRIMARY KEY CHECK (id BETWEEN 1 AND 9007199254740991),
    lane             INTEGER NOT NULL,
    state            INTEGER NOT NULL CHECK (state BETWEEN 1 AND 7 AND state != 3),  -- greenroom.job.State; running is recorded as 2
    finished_at      REAL CHECK ((finished_at IS NULL) = (state < 4)),
    worker           TEXT,
    rank             INTEGER NOT NULL,
    priority         INTEGER NOT NULL,
    place            INTEGER NOT NULL,
    raw              INTEGER NOT NULL,
    cancel_requested INTEGER NOT NULL DEFAULT 0,
    submitted_at     REAL NOT NULL,
    run_at           REAL CHECK (run_at IS NOT NULL OR state != 1),
    started_at       REAL,
    fence            INTEGER NOT NULL,
    attempt          INTEGER NOT NULL,
    crashes          INTEGER NOT NULL DEFAULT 0,
    requeues         INTEGER NOT NULL DEFAULT 0,
    payload_bytes    INTEGER NOT NULL,
    result_bytes     INTEGER NOT NULL DEFAULT 0,
    result_raw       INTEGER NOT NULL DEFAULT 0,
    payload          BLOB,  -- up to 512 bytes; NULL: in payloads
    result           BLOB,  -- up to 512 bytes; NULL: none, or in results when result_bytes is not 0
    error            TEXT,  -- JSON; of a waiting job: of its latest failure
    extras           TEXT,  -- JSON: options that are not at their default, and what becomes of them; NULL: none
    row_sum          INTEGER,
    payload_sum      INTEGER,
    result_sum       INTEGER
) STRICT;

INSERT INTO jobs_3 (id, lane, state, finished_at, worker, rank, priority, place, raw, cancel_requested, submitted_at, run_at, started_at,
        fence, attempt, crashes, requeues, payload_bytes, result_bytes, result_raw, payload, result, error, row_sum, payload_sum, result_sum)
    SELECT id, lane, state, finished_at, worker, rank, priority, place, raw, cancel_requested, submitted_at, run_at, started_at,
        fence, attempt, crashes, requeues, payload_bytes, result_bytes, result_raw, payload, result, error, row_sum, payload_sum, result_sum
    FROM jobs;
DROP TABLE jobs;
ALTER TABLE jobs_3 RENAME TO jobs;

CREATE INDEX jobs_queued ON jobs (lane, rank) WHERE state = 2;
CREATE INDEX jobs_scheduled ON jobs (run_at, id) WHERE state = 1;
CREATE INDEX jobs_cancelled ON jobs (id) WHERE cancel_requested = 1 AND state < 4;

ALTER TABLE lanes ADD COLUMN expired INTEGER NOT NULL DEFAULT 0;

-- Runs that did not complete their job; the last one that did is in the job's row.
CREATE TABLE runs (
    job        INTEGER NOT NULL,
    attempt    INTEGER NOT NULL,  -- which lease of the job it was
    worker     TEXT NOT NULL,
    started_at REAL,
    ended_at   REAL NOT NULL,
    outcome    TEXT NOT NULL,     -- a word of greenroom.job.RUN_OUTCOMES
    error      TEXT,              -- JSON
    sum        INTEGER NOT NULL,  -- of all the others
    PRIMARY KEY (job, attempt)
) STRICT, WITHOUT ROWID;
