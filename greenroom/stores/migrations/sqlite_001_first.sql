-- Schema 1. Never edited once released: a change is a new file.

-- One row: numbers that must survive, by name.
CREATE TABLE meta (
    name  TEXT PRIMARY KEY NOT NULL,
    value INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

INSERT INTO meta (name, value) VALUES
    ('next_job', 1),    -- the first number of kind "job" (ids and places) not handed out
    ('next_fence', 1),
    ('pruned', 0);      -- finished jobs deleted so far; the lanes' finished counts include them

-- A lane is a queue and a task. The counters move in the transaction that moves the jobs.
CREATE TABLE lanes (
    id        INTEGER PRIMARY KEY,
    queue     TEXT NOT NULL,
    task      TEXT NOT NULL,
    scheduled INTEGER NOT NULL DEFAULT 0 CHECK (scheduled >= 0),
    queued    INTEGER NOT NULL DEFAULT 0 CHECK (queued >= 0),  -- leased ones too
    completed INTEGER NOT NULL DEFAULT 0,
    failed    INTEGER NOT NULL DEFAULT 0,
    cancelled INTEGER NOT NULL DEFAULT 0,
    requeued  INTEGER NOT NULL DEFAULT 0,
    waiting_bytes INTEGER NOT NULL DEFAULT 0 CHECK (waiting_bytes >= 0),  -- payloads of the scheduled and queued ones
    UNIQUE (queue, task)
) STRICT;

-- Columns that scans look at come first: SQLite decodes a row from the left.
CREATE TABLE jobs (
    id               INTEGER PRIMARY KEY CHECK (id BETWEEN 1 AND 9007199254740991),
    lane             INTEGER NOT NULL,
    state            INTEGER NOT NULL CHECK (state BETWEEN 1 AND 6 AND state != 3),  -- greenroom.job.State; running is recorded as 2
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
    error            TEXT   -- JSON
) STRICT;

CREATE INDEX jobs_queued ON jobs (lane, rank) WHERE state = 2;
CREATE INDEX jobs_scheduled ON jobs (run_at, id) WHERE state = 1;
CREATE INDEX jobs_cancelled ON jobs (id) WHERE cancel_requested = 1 AND state < 4;

-- Large ones live apart: a change of the job's row would rewrite them.
CREATE TABLE payloads (job INTEGER PRIMARY KEY, data BLOB NOT NULL) STRICT;
CREATE TABLE results (job INTEGER PRIMARY KEY, data BLOB NOT NULL) STRICT;

CREATE TABLE leases (
    job        INTEGER PRIMARY KEY,
    fence      INTEGER NOT NULL CHECK (fence > 0),
    instance   BLOB NOT NULL,
    worker     TEXT NOT NULL,
    granted_at REAL NOT NULL
) STRICT;

CREATE TABLE submissions (
    id         BLOB PRIMARY KEY NOT NULL,
    body_hash  BLOB NOT NULL,
    outcome    TEXT NOT NULL,
    created_at REAL NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX submissions_created ON submissions (created_at);
