-- Brings a ledger from schema version 4 to version 5, in the transaction of worker/ledger/migrations.py. Never changed: it
-- makes version 5 as that was, also when schema.sql has gone on.

CREATE TABLE token_refusal (
    token      TEXT PRIMARY KEY,  -- its name in the configuration
    refused_at INTEGER NOT NULL,  -- unix seconds of the first such answer
    detail     TEXT NOT NULL      -- what the newest one said; bounded text
) STRICT, WITHOUT ROWID;
