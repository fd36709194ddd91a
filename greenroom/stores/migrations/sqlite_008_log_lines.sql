-- Schema 8: the log lines that runs of a job wrote. How many there are, and which are kept, stands in the extras of the job.

CREATE TABLE log_lines (
    job     INTEGER NOT NULL,
    seq     INTEGER NOT NULL,  -- 1, 2 … in the job, over all its runs
    at      REAL NOT NULL,     -- by the worker's clock
    attempt INTEGER NOT NULL,  -- of the run
    text    TEXT NOT NULL,
    sum     INTEGER NOT NULL,  -- of all the others
    PRIMARY KEY (job, seq)
) STRICT, WITHOUT ROWID;
