"""Shards: which of several workers collects which zone or account, each with a ledger and a token of its own.

Promises that every tag belongs to exactly one shard, on every machine and in every version alike, and that one shard
more takes over its part of the tags and moves no other. Pure.
"""

import hashlib
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shard:
    """One of several workers.

    number: from 1 to count.
    count:  how many there are.
    """

    number: int
    count: int

    def holds(self, tag: str) -> bool:
        """Whether the zone or account with this tag is this worker's."""
        return shard_of(tag, self.count) == self.number

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


def shard_of(tag: str, count: int) -> int:
    """The number of the shard, from 1 to `count`, that a zone or account belongs to.

    The shard whose hash with the tag is the largest, so that a tag changes its shard for a new one only.
    """

    def weight(number: int) -> bytes:
        return hashlib.blake2b(f"{number}/{tag}".encode(), digest_size=8).digest()

    return max(range(1, count + 1), key=weight)
