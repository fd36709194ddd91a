-- Schema 9: failed, cancelled and expired jobs are found by themselves. Jobs that complete are not in the index, so they cost what they did.

CREATE INDEX jobs_not_completed ON jobs (id) WHERE state > 4;
