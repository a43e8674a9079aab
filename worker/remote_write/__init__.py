"""Prometheus remote write: from stored buckets to a receiver's verdict.

Owns the protocol: how a request is cut, encoded and compressed, how it is sent and with which credentials, and what an
answer means. Keeps no state about what was delivered: that is the ledger's, of which it knows nothing.
"""

from worker.remote_write.auth import secrets_of
from worker.remote_write.client import RemoteWriteClient
from worker.remote_write.encode import compress, write_request
from worker.remote_write.split import split_batch
from worker.remote_write.verdict import MAX_RETRY_AFTER_SECONDS, Accepted, Later, Refused, Verdict

__all__ = [
    "MAX_RETRY_AFTER_SECONDS",
    "Accepted",
    "Later",
    "Refused",
    "RemoteWriteClient",
    "Verdict",
    "compress",
    "secrets_of",
    "split_batch",
    "write_request",
]
