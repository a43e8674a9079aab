"""Finalized Cloudflare analytics, kept in SQLite and pushed over Prometheus remote write.

A bucket's way through the package, in the order to read it: `cloudflare` fetches it once its window is final,
`collect` decides which windows are due, `ledger` keeps it, `push` takes it from there, `remote_write` delivers it.
"""

__version__ = "0.1.0"
