-- Schema 7: queues and tasks whose jobs somebody holds back (greenroom.records.Pause).

CREATE TABLE pauses (
    kind      TEXT NOT NULL CHECK (kind IN ('queue', 'task')),
    name      TEXT NOT NULL,
    paused_at REAL NOT NULL,
    until     REAL,  -- NULL: until somebody resumes it
    reason    TEXT NOT NULL,
    paused_by TEXT NOT NULL,
    sum       INTEGER NOT NULL,  -- of all the others
    PRIMARY KEY (kind, name)
) STRICT, WITHOUT ROWID;
