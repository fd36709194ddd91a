-- Schema 2: checksums (greenroom/stores/sums.py). NULL: the row is from schema 1 and has none; it gets one when it is written again.

ALTER TABLE meta ADD COLUMN sum INTEGER;         -- name, value
ALTER TABLE lanes ADD COLUMN sum INTEGER;        -- id, queue, task; the counters are checked against the rows
ALTER TABLE jobs ADD COLUMN row_sum INTEGER;     -- all columns but payload and result
ALTER TABLE jobs ADD COLUMN payload_sum INTEGER; -- wherever the payload is kept
ALTER TABLE jobs ADD COLUMN result_sum INTEGER;
ALTER TABLE leases ADD COLUMN sum INTEGER;
ALTER TABLE submissions ADD COLUMN sum INTEGER;

-- Waiting jobs that did not match their sums: never delivered, never deleted, not counted in their lanes any more. Their rows stay as found.
CREATE TABLE damaged (
    job     INTEGER PRIMARY KEY,
    what    TEXT NOT NULL,  -- row or payload
    seen_at REAL NOT NULL
) STRICT;
