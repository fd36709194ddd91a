-- Schema 10: how much may wait in a queue (greenroom.records.QueueLimit).

CREATE TABLE queue_limits (
    queue     TEXT NOT NULL PRIMARY KEY,
    max_jobs  INTEGER CHECK (max_jobs > 0),  -- NULL: any number
    max_bytes INTEGER CHECK (max_bytes > 0),
    urgent    INTEGER,  -- NULL: no priority goes beyond
    extra     INTEGER NOT NULL CHECK (extra > 0),
    set_at    REAL NOT NULL,
    reason    TEXT NOT NULL,
    set_by    TEXT NOT NULL,
    sum       INTEGER NOT NULL,  -- of all the others
    CHECK (max_jobs IS NOT NULL OR max_bytes IS NOT NULL)
) STRICT, WITHOUT ROWID;
