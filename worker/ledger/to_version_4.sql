-- Brings a ledger from schema version 3 to version 4, in the transaction of worker/ledger/migrations.py. Never changed: it
-- makes version 4 as that was, also when schema.sql has gone on.
--
-- SQLite cannot drop the UNIQUE of a table, and to make the table anew would copy gigabytes. The text that says it is
-- replaced instead, which changes nothing about the rows, and its index becomes one that can be dropped.

PRAGMA writable_schema = ON;

-- No more than that of the text: a table that is not as version 3 had it is found out, now or when the schema is compared.
UPDATE sqlite_schema SET sql = replace(
    sql,
    ',  -- CRC-32 over all of the above but captured_at (worker/ledger/packing.py)
    UNIQUE (dataset_id, scope_id, width_seconds, start)',
    '  -- CRC-32 over all of the above but captured_at (worker/ledger/packing.py)'
)
WHERE type = 'table' AND name = 'bucket';

UPDATE sqlite_schema SET
    name = 'bucket_key_3',
    sql = 'CREATE UNIQUE INDEX bucket_key_3 ON bucket (dataset_id, scope_id, width_seconds, start)'
WHERE name = 'sqlite_autoindex_bucket_1';

-- With another number SQLite reads what it knows of the schema anew; no ledger has seen as many changes as that.
PRAGMA schema_version = 1000000;
PRAGMA writable_schema = OFF;

DROP INDEX bucket_key_3;

CREATE UNIQUE INDEX bucket_key ON bucket (dataset_id, width_seconds, start / (64 * width_seconds), scope_id, start);

CREATE TABLE chapter (
    dataset_id    INTEGER NOT NULL REFERENCES dataset (id),
    width_seconds INTEGER NOT NULL,
    number        INTEGER NOT NULL,
    PRIMARY KEY (dataset_id, width_seconds, number)
) STRICT, WITHOUT ROWID;

INSERT INTO chapter (dataset_id, width_seconds, number)
SELECT DISTINCT dataset_id, width_seconds, start / (64 * width_seconds) FROM bucket;

CREATE VIEW captured AS
SELECT
    chapter.dataset_id, bucket.scope_id, chapter.width_seconds, chapter.number AS chapter, bucket.start,
    bucket.id, bucket.timestamp_ms, bucket.series_ids, bucket.sample_values, bucket.checksum
FROM chapter CROSS JOIN bucket
    ON bucket.dataset_id = chapter.dataset_id AND bucket.width_seconds = chapter.width_seconds
    AND bucket.start / (64 * bucket.width_seconds) = +chapter.number;
