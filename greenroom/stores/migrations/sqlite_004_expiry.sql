-- Schema 4: waiting jobs that must begin by a time are found by it. An expression over the few rows that have extras costs the others nothing.

CREATE INDEX jobs_expiring ON jobs (CASE WHEN json_valid(extras) THEN extras ->> '$.expires_at' END)
    WHERE state < 3 AND attempt = 0 AND extras IS NOT NULL;
