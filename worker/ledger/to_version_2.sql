-- Brings a ledger from schema version 1 to version 2, in the transaction of worker/ledger/migrations.py. Never changed:
-- it makes version 2 as that was, also when schema.sql has gone on.
--
-- SQLite cannot alter a CHECK, so the tables are made anew. The old ones are renamed out of the way, and not the new
-- ones into their place: the schema then reads as schema.sql does, to the letter. A renaming takes along what refers to
-- the table, so delivery_1 refers to destination_1, and nothing refers to either when it is dropped.

ALTER TABLE destination RENAME TO destination_1;
ALTER TABLE delivery RENAME TO delivery_1;
DROP INDEX delivery_queue;
DROP INDEX delivery_by_job;
DROP INDEX delivery_acknowledged;
DROP INDEX delivery_undelivered;

CREATE TABLE destination (
    id              INTEGER PRIMARY KEY,
    name            TEXT NOT NULL UNIQUE,
    segment_seconds INTEGER NOT NULL,  -- how long a segment of its queue is (see delivery_queue); 1 if it is strict
    gone_at         INTEGER,  -- set when the configuration does not name it any more; its rows are then nobody's duty
    last_success_at INTEGER,  -- when it last acknowledged something
    last_failure_at INTEGER,
    last_failure    TEXT      -- what it, or the way to it, said then; bounded text
) STRICT;

CREATE TABLE delivery (
    bucket_id      INTEGER NOT NULL REFERENCES bucket (id) ON DELETE CASCADE,
    destination_id INTEGER NOT NULL REFERENCES destination (id),
    state          TEXT NOT NULL CHECK (state IN ('pending', 'acknowledged', 'partial', 'refused', 'expired', 'damaged')),
    segment        INTEGER NOT NULL,  -- place in the queue, see delivery_queue
    scope_id       INTEGER NOT NULL,  -- copied from the bucket, for the queue
    start          INTEGER NOT NULL,  -- copied from the bucket, for the queue
    window_end     INTEGER NOT NULL,  -- start + width of the bucket, for its age
    sample_count   INTEGER NOT NULL,  -- copied from the bucket, for the backlog
    job_id         INTEGER REFERENCES job (id),  -- the repair that asked for it again: exempt from the replay bound
    decided_at     INTEGER,
    status         INTEGER,           -- HTTP status of a refusal
    reason         TEXT,              -- bounded text
    PRIMARY KEY (bucket_id, destination_id)
) STRICT, WITHOUT ROWID;

-- Empty: version 1 decided on whole requests, and which of their samples the receiver meant is not known.
CREATE TABLE refusal (
    destination_id INTEGER NOT NULL,
    bucket_id      INTEGER NOT NULL,
    series_ids     BLOB NOT NULL,     -- uint32, little-endian
    status         INTEGER,           -- HTTP status; NULL where no answer came
    reason         TEXT NOT NULL,     -- bounded text
    refused_at     INTEGER NOT NULL,
    FOREIGN KEY (bucket_id, destination_id) REFERENCES delivery (bucket_id, destination_id) ON DELETE CASCADE
) STRICT;
CREATE INDEX refusal_by_delivery ON refusal (bucket_id, destination_id);
CREATE INDEX refusal_by_destination ON refusal (destination_id);

-- Before the rows: an index over rows that are there is sorted in memory, all of it (see temp_store).
CREATE INDEX delivery_queue ON delivery (destination_id, segment, scope_id, start, bucket_id, window_end, sample_count)
    WHERE state = 'pending';
CREATE INDEX delivery_by_job ON delivery (job_id) WHERE job_id IS NOT NULL;
CREATE INDEX delivery_acknowledged ON delivery (destination_id) WHERE state = 'acknowledged';
CREATE INDEX delivery_undelivered ON delivery (destination_id, state, start)
    WHERE state IN ('partial', 'refused', 'expired', 'damaged');

-- A segment of a destination that is not strict was 32 windows, and is 32 minutes.
INSERT INTO destination (id, name, segment_seconds, gone_at, last_success_at, last_failure_at, last_failure)
SELECT
    id, name, CASE segment_windows WHEN 1 THEN 1 ELSE 32 * 60 END, gone_at, last_success_at, last_failure_at, last_failure
FROM destination_1;

INSERT INTO delivery
    (bucket_id, destination_id, state, segment, scope_id, start, window_end, sample_count, job_id, decided_at, status, reason)
SELECT
    old.bucket_id, old.destination_id, old.state,
    CASE old.state
        WHEN 'pending' THEN old.start - old.start % max(old.window_end - old.start, destination.segment_seconds)
        ELSE old.segment
    END,
    old.scope_id, old.start, old.window_end, old.sample_count, old.job_id, old.decided_at, old.status, old.reason
FROM delivery_1 AS old CROSS JOIN destination ON destination.id = old.destination_id
ORDER BY old.bucket_id, old.destination_id;

DROP TABLE delivery_1;
DROP TABLE destination_1;

CREATE TABLE denial (
    dataset_id INTEGER NOT NULL REFERENCES dataset (id),
    scope_id   INTEGER NOT NULL REFERENCES scope (id),
    denied_at  INTEGER NOT NULL,  -- unix seconds, of the first look that found it so
    detail     TEXT NOT NULL,     -- bounded text
    PRIMARY KEY (dataset_id, scope_id)
) STRICT, WITHOUT ROWID;

CREATE TABLE reading (
    bucket_id           INTEGER NOT NULL REFERENCES bucket (id) ON DELETE CASCADE,
    after_seconds       INTEGER NOT NULL,  -- how long after its capture it was to be read
    dataset_id          INTEGER NOT NULL,  -- copied from the bucket, for the newest readings of a dataset
    read_at             INTEGER NOT NULL,
    samples_differing   INTEGER NOT NULL,
    relative_difference REAL,  -- of the total of its first metric; NULL where none of its metrics can be summed
    PRIMARY KEY (bucket_id, after_seconds)
) STRICT, WITHOUT ROWID;
CREATE INDEX reading_by_dataset ON reading (dataset_id, bucket_id);
