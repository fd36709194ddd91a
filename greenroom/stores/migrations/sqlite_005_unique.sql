-- Schema 5: unique keys that are taken.

CREATE TABLE unique_keys (
    key        TEXT PRIMARY KEY NOT NULL,
    job        INTEGER NOT NULL,
    until      REAL,              -- free again then, whatever the job does; NULL: only when it is finished
    until_done INTEGER NOT NULL,  -- 1: free again when the job is finished
    sum        INTEGER NOT NULL   -- of all the others
) STRICT, WITHOUT ROWID;

CREATE INDEX unique_until ON unique_keys (until) WHERE until IS NOT NULL;
