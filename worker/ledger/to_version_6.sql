-- Brings a ledger from schema version 5 to version 6, in the transaction of worker/ledger/migrations.py. Never changed: it
-- makes version 6 as that was, also when schema.sql has gone on.
--
-- The two texts mean what they meant, so that no row and no index changes.

PRAGMA writable_schema = ON;

UPDATE sqlite_schema SET sql = replace(
    sql,
    'CHECK (state IN (''pending'', ''acknowledged'', ''partial'', ''refused'', ''expired'', ''damaged'')),',
    'CHECK (
        state = ''pending'' OR state = ''acknowledged'' OR state = ''partial'' OR state = ''refused'' OR state = ''expired''
        OR state = ''damaged''
    ),'
)
WHERE type = 'table' AND name = 'delivery';

UPDATE sqlite_schema SET sql = replace(
    sql,
    'WHERE state IN (''partial'', ''refused'', ''expired'', ''damaged'')',
    'WHERE state = ''partial'' OR state = ''refused'' OR state = ''expired'' OR state = ''damaged'''
)
WHERE type = 'index' AND name = 'delivery_undelivered';

-- With another number SQLite reads what it knows of the schema anew; no ledger has seen as many changes as that.
PRAGMA schema_version = 2000000;
PRAGMA writable_schema = OFF;
