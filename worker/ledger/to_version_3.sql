-- Brings a ledger from schema version 2 to version 3, in the transaction of worker/ledger/migrations.py. Never changed: it
-- makes version 3 as that was, also when schema.sql has gone on.
--
-- SQLite cannot alter a CHECK, so the journal is made anew. With legacy_alter_table a renaming does not take along what
-- refers to the table: delivery goes on to refer to job, whichever that is.

PRAGMA legacy_alter_table = ON;
ALTER TABLE job RENAME TO job_2;
PRAGMA legacy_alter_table = OFF;
DROP INDEX job_asked;

CREATE TABLE job (
    id              INTEGER PRIMARY KEY,
    kind            TEXT NOT NULL CHECK (kind IN ('resend', 'backfill', 'verify', 'export', 'import')),
    arguments       TEXT NOT NULL,  -- JSON, as the kind has it (worker/ledger/jobs.py)
    reason          TEXT NOT NULL,
    asked_by        TEXT NOT NULL,  -- user@host
    asked_at        INTEGER NOT NULL,
    state           TEXT NOT NULL CHECK (state IN ('staging', 'asked', 'running', 'done', 'failed', 'cancelled')),
    progress        TEXT NOT NULL,  -- JSON: how far it is, and where it goes on
    cancel_asked_at INTEGER,
    finished_at     INTEGER,
    result          TEXT            -- JSON, as the kind has it
) STRICT;
CREATE INDEX job_open ON job (id) WHERE state IN ('asked', 'running');

-- A resend of before was done when it had queued all.
INSERT INTO job (id, kind, arguments, reason, asked_by, asked_at, state, progress, finished_at, result)
SELECT
    id, kind, arguments, reason, asked_by, asked_at, state, '{}', finished_at,
    CASE WHEN result IS NOT NULL THEN json_object('queued', json(result)) END
FROM job_2;

DROP TABLE job_2;

DROP INDEX delivery_by_job;
CREATE INDEX delivery_by_job ON delivery (job_id, state, destination_id, sample_count) WHERE job_id IS NOT NULL;

CREATE TABLE part (
    bucket_id      INTEGER NOT NULL,
    destination_id INTEGER NOT NULL,
    series_ids     BLOB NOT NULL,  -- uint32, little-endian
    PRIMARY KEY (bucket_id, destination_id),
    FOREIGN KEY (bucket_id, destination_id) REFERENCES delivery (bucket_id, destination_id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

-- There was one token; what the configuration has no name for is called `default`.
CREATE TABLE scope_token (
    scope_id INTEGER PRIMARY KEY REFERENCES scope (id),
    token    TEXT NOT NULL
) STRICT;

INSERT INTO scope_token (scope_id, token) SELECT id, 'default' FROM scope;

ALTER TABLE request_log RENAME TO request_log_2;

CREATE TABLE request_log (
    token    TEXT NOT NULL,  -- its name in the configuration: each has a budget of its own
    api      TEXT NOT NULL,
    ended_at TEXT NOT NULL,  -- JSON, unix seconds of each; replaced after every query
    PRIMARY KEY (token, api)
) STRICT, WITHOUT ROWID;

INSERT INTO request_log (token, api, ended_at) SELECT 'default', api, ended_at FROM request_log_2;

DROP TABLE request_log_2;

CREATE TABLE staged (
    id            INTEGER PRIMARY KEY,
    job_id        INTEGER NOT NULL REFERENCES job (id),
    dataset_id    INTEGER NOT NULL REFERENCES dataset (id),
    scope_id      INTEGER NOT NULL REFERENCES scope (id),
    width_seconds INTEGER NOT NULL,
    start         INTEGER NOT NULL,
    timestamp_ms  INTEGER NOT NULL,
    series_ids    BLOB NOT NULL,
    sample_values BLOB NOT NULL,
    checksum      INTEGER NOT NULL  -- all of these as in bucket
) STRICT;
CREATE INDEX staged_by_job ON staged (job_id);
