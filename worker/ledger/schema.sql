-- The ledger, schema version 6.
--
-- Versions (PRAGMA user_version; worker/ledger/migrations.py):
--   1  the first
--   2  the samples that were refused, one by one; segments of a queue in seconds; what scopes are not entitled to;
--      captured windows that were read again
--   3  repairs of every kind, with their progress; buckets that are sent again in part; several tokens: which one a scope
--      is asked with, and the requests of each; buckets that are imported
--   4  buckets are found by chapters
--   5  tokens that Cloudflare refuses
--   6  states of deliveries are compared one by one
--
-- A fact and the change of state that it justifies are always written in one transaction. Nothing here is updated
-- after it was inserted except what a sentence below says.

-- Names of the catalogue. Never changed.
CREATE TABLE dataset (
    id   INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE
) STRICT;

-- Zones and accounts that were ever seen. A scope that disappears keeps its row and its history; gone_at says since when.
CREATE TABLE scope (
    id           INTEGER PRIMARY KEY,
    tag          TEXT NOT NULL UNIQUE,  -- Cloudflare's id
    name         TEXT NOT NULL,         -- follows renames
    account_tag  TEXT NOT NULL,
    account_name TEXT NOT NULL,
    plan         TEXT NOT NULL,
    first_seen_at INTEGER NOT NULL,
    gone_at      INTEGER                -- unix seconds of the first listing without it
) STRICT;

-- Which token a scope is asked with, by its name in the configuration. Follows the listings.
CREATE TABLE scope_token (
    scope_id INTEGER PRIMARY KEY REFERENCES scope (id),
    token    TEXT NOT NULL
) STRICT;

-- From which window on a scope is expected to have a bucket: what is expected and not captured is a hole.
CREATE TABLE expectation (
    dataset_id    INTEGER NOT NULL REFERENCES dataset (id),
    scope_id      INTEGER NOT NULL REFERENCES scope (id),
    width_seconds INTEGER NOT NULL,
    from_start    INTEGER NOT NULL,
    until         INTEGER,  -- windows that end later are expected in another width; NULL for the width in force
    PRIMARY KEY (dataset_id, scope_id, width_seconds)
) STRICT, WITHOUT ROWID;

-- Datasets that a scope's plan, or the token, does not give: no window of them is expected from then on. Replaced by each
-- look at what the scope is entitled to.
CREATE TABLE denial (
    dataset_id INTEGER NOT NULL REFERENCES dataset (id),
    scope_id   INTEGER NOT NULL REFERENCES scope (id),
    denied_at  INTEGER NOT NULL,  -- unix seconds, of the first look that found it so
    detail     TEXT NOT NULL,     -- bounded text
    PRIMARY KEY (dataset_id, scope_id)
) STRICT, WITHOUT ROWID;

-- Every series that ever had a sample, or was to be imported, by its label block (worker/series.py). Never changed.
CREATE TABLE series (
    id       INTEGER PRIMARY KEY CHECK (id BETWEEN 1 AND 4294967295),  -- packed as a uint32
    labels   BLOB NOT NULL UNIQUE,
    checksum INTEGER NOT NULL  -- CRC-32 over both (worker/ledger/packing.py)
) STRICT;

-- One captured bucket. Never changed; deleted only by retention, after every destination has decided on it.
CREATE TABLE bucket (
    id            INTEGER PRIMARY KEY AUTOINCREMENT,  -- never given twice: an answer may come after its bucket is gone
    dataset_id    INTEGER NOT NULL REFERENCES dataset (id),
    scope_id      INTEGER NOT NULL REFERENCES scope (id),
    width_seconds INTEGER NOT NULL,
    start         INTEGER NOT NULL,  -- unix seconds
    timestamp_ms  INTEGER NOT NULL,  -- what its samples carry; fixed here so that sending again sends the same
    captured_at   INTEGER NOT NULL,
    series_ids    BLOB NOT NULL,     -- uint32, little-endian, one per sample
    sample_values BLOB NOT NULL,     -- float64, little-endian, one per sample, in the same order
    checksum      INTEGER NOT NULL  -- CRC-32 over all of the above but captured_at (worker/ledger/packing.py)
) STRICT;
CREATE INDEX bucket_by_start ON bucket (start);

-- A chapter is 64 windows in a row of all scopes. Buckets come window after window, each with all scopes: were it all windows
-- of a scope in a row, every bucket would change a page of its own; as it is those of a hundred scopes change a few. To
-- look for a scope's buckets is one look into each chapter.
CREATE UNIQUE INDEX bucket_key ON bucket (dataset_id, width_seconds, start / (64 * width_seconds), scope_id, start);

-- The chapters that have a bucket; some may have none any more.
CREATE TABLE chapter (
    dataset_id    INTEGER NOT NULL REFERENCES dataset (id),
    width_seconds INTEGER NOT NULL,
    number        INTEGER NOT NULL,
    PRIMARY KEY (dataset_id, width_seconds, number)
) STRICT, WITHOUT ROWID;

-- Buckets for whoever looks for those of a scope. With bounds for the chapter the others are not looked into.
CREATE VIEW captured AS
SELECT
    chapter.dataset_id, bucket.scope_id, chapter.width_seconds, chapter.number AS chapter, bucket.start,
    bucket.id, bucket.timestamp_ms, bucket.series_ids, bucket.sample_values, bucket.checksum
FROM chapter CROSS JOIN bucket
    ON bucket.dataset_id = chapter.dataset_id AND bucket.width_seconds = chapter.width_seconds
    AND bucket.start / (64 * bucket.width_seconds) = +chapter.number;

-- The remote-write endpoints, by the name in the configuration.
CREATE TABLE destination (
    id              INTEGER PRIMARY KEY,
    name            TEXT NOT NULL UNIQUE,
    segment_seconds INTEGER NOT NULL,  -- how long a segment of its queue is (see delivery_queue); 1 if it is strict
    gone_at         INTEGER,  -- set when the configuration does not name it any more; its rows are then nobody's duty
    last_success_at INTEGER,  -- when it last acknowledged something
    last_failure_at INTEGER,
    last_failure    TEXT      -- what it, or the way to it, said then; bounded text
) STRICT;

-- What became of one bucket at one destination. The state is a word and not a number, so that no single
-- flipped bit turns one state into another.
--   pending       to be sent
--   acknowledged  the receiver answered 2xx to all of its samples
--   partial       the same, but for the samples in the table refusal
--   refused       the receiver will take none of its samples; status and reason say what it said
--   expired       older than the replay bound, or than what the receiver takes, before it could be delivered
--   damaged       its content did not match its checksum when it was read to be sent
-- States are compared one by one, here and where rows are undelivered: for every row that changes SQLite would make a
-- table of its own of each list with more than two of them, which takes a third of the time of an acknowledgement.
CREATE TABLE delivery (
    bucket_id      INTEGER NOT NULL REFERENCES bucket (id) ON DELETE CASCADE,
    destination_id INTEGER NOT NULL REFERENCES destination (id),
    state          TEXT NOT NULL CHECK (
        state = 'pending' OR state = 'acknowledged' OR state = 'partial' OR state = 'refused' OR state = 'expired'
        OR state = 'damaged'
    ),
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

-- Samples that a receiver refused, each tried alone or with others of its bucket that were refused like it. They go
-- with the delivery: asking for it again forgets them.
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

-- The newest of a destination, by the rowid behind it.
CREATE INDEX refusal_by_destination ON refusal (destination_id);

-- The queue of a destination is one range scan of this index. A segment is half an hour, or one window where that is
-- longer; within it all windows of a scope follow each other, oldest first, so that a batch holds many samples of few
-- series, which is what a receiver takes fastest. A strict destination takes no sample that is older than the newest of
-- its series: there a segment is one window, and the oldest window of any scope goes first.
CREATE INDEX delivery_queue ON delivery (destination_id, segment, scope_id, start, bucket_id, window_end, sample_count)
    WHERE state = 'pending';

-- What became of what a repair asked for.
CREATE INDEX delivery_by_job ON delivery (job_id, state, destination_id, sample_count) WHERE job_id IS NOT NULL;

-- The samples that are pending of a bucket that was acknowledged before, where they are not all of it. It counts while the
-- delivery is pending; asking for that again replaces it.
CREATE TABLE part (
    bucket_id      INTEGER NOT NULL,
    destination_id INTEGER NOT NULL,
    series_ids     BLOB NOT NULL,  -- uint32, little-endian
    PRIMARY KEY (bucket_id, destination_id),
    FOREIGN KEY (bucket_id, destination_id) REFERENCES delivery (bucket_id, destination_id) ON DELETE CASCADE
) STRICT, WITHOUT ROWID;

-- For the number of rows by state, without reading the table.
CREATE INDEX delivery_acknowledged ON delivery (destination_id) WHERE state = 'acknowledged';

-- What the receiver or the bound decided against, for the status and for repair.
CREATE INDEX delivery_undelivered ON delivery (destination_id, state, start)
    WHERE state = 'partial' OR state = 'refused' OR state = 'expired' OR state = 'damaged';

-- Why a window has no bucket although it was asked for. Replaced at each attempt, deleted by the capture.
CREATE TABLE hole (
    dataset_id    INTEGER NOT NULL REFERENCES dataset (id),
    scope_id      INTEGER NOT NULL REFERENCES scope (id),
    width_seconds INTEGER NOT NULL,
    start         INTEGER NOT NULL,
    reason        TEXT NOT NULL,  -- worker.ledger.HoleReason
    detail        TEXT NOT NULL,  -- bounded text
    attempts      INTEGER NOT NULL,
    attempted_at  INTEGER NOT NULL,
    PRIMARY KEY (dataset_id, scope_id, width_seconds, start)
) STRICT, WITHOUT ROWID;

CREATE INDEX hole_by_start ON hole (start);

-- When the requests of the last minutes to Cloudflare ended: what one process sent counts for the next one too.
CREATE TABLE request_log (
    token    TEXT NOT NULL,  -- its name in the configuration: each has a budget of its own
    api      TEXT NOT NULL,
    ended_at TEXT NOT NULL,  -- JSON, unix seconds of each; replaced after every query
    PRIMARY KEY (token, api)
) STRICT, WITHOUT ROWID;

-- Tokens that Cloudflare refuses; the first answer that it gives to one deletes its row.
CREATE TABLE token_refusal (
    token      TEXT PRIMARY KEY,  -- its name in the configuration
    refused_at INTEGER NOT NULL,  -- unix seconds of the first such answer
    detail     TEXT NOT NULL      -- what the newest one said; bounded text
) STRICT, WITHOUT ROWID;

-- Captured buckets that Cloudflare later answered differently for. The bucket stays as it is; the newest finding is kept.
CREATE TABLE drift (
    bucket_id         INTEGER PRIMARY KEY REFERENCES bucket (id) ON DELETE CASCADE,
    seen_at           INTEGER NOT NULL,
    samples_differing INTEGER NOT NULL
) STRICT;

-- A captured bucket that was read again on purpose, to see whether it was final. The bucket stays as it is.
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

-- The journal: every repair that was asked for. All but its first six columns changes as it is carried out.
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

-- Buckets of an import that are not captured yet: written by its command, captured once the import is asked for, and
-- deleted with that or when it is given up.
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
