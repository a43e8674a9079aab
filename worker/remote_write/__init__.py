"""Prometheus remote write: from stored buckets to a receiver's verdict.

Owns the protocol: how a request is cut, encoded and compressed, how it is sent and with which credentials, and what an
answer means; and how what a receiver has stored is read back. Keeps no state about what was delivered: that is the
ledger's, of which it knows nothing.
"""

from worker.remote_write.auth import secrets_of
from worker.remote_write.client import RemoteWriteClient
from worker.remote_write.encode import compress, write_request
from worker.remote_write.halve import alone, halves, newest, spread
from worker.remote_write.outgoing import Outbox, Outgoing
from worker.remote_write.protocol import Protocol
from worker.remote_write.read_back import Found, Labels, ReadBack, Selector, query_url
from worker.remote_write.relabel import Relabelled, Unsendable
from worker.remote_write.split import split_batch
from worker.remote_write.verdict import Accepted, Fate, Later, Refused, Verdict

__all__ = [
    "Accepted",
    "Fate",
    "Found",
    "Labels",
    "Later",
    "Outbox",
    "Outgoing",
    "Protocol",
    "ReadBack",
    "Refused",
    "Relabelled",
    "RemoteWriteClient",
    "Selector",
    "Unsendable",
    "Verdict",
    "alone",
    "compress",
    "halves",
    "newest",
    "query_url",
    "secrets_of",
    "split_batch",
    "spread",
    "write_request",
]
