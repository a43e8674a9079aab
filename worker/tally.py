"""Which samples of the buckets that are on their way are not decided on yet.

A bucket may go out in several requests, be halved, and be refused in part: it is decided on when each of its samples
is. What is refused is told by the series that the bucket has, whatever they are called on their way. Pure: writes
nothing down.
"""

from array import array
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import assert_never

from worker.buckets import Batch, StoredBucket
from worker.isolate import Decision, Declined, Taken
from worker.ledger import Refusal


class Tally:
    """Which samples of a turn's buckets are not decided on yet."""

    def __init__(self, batch: Batch, captured_as: Mapping[int, Mapping[int, int]] = MappingProxyType({})) -> None:
        """`captured_as` is that of `worker.remote_write.Outgoing`."""
        self._captured_as = captured_as
        self._undecided = {bucket.bucket_id: bucket.sample_count for bucket in batch.buckets}
        self.parts = {bucket.bucket_id: bucket.sample_count for bucket in batch.buckets if bucket.is_part}
        """How many samples are sent of the buckets of which the destination has the rest."""
        self._refusals: dict[int, list[Refusal]] = {}
        self._partly: set[int] = set()

    def count(self, decision: Decision, *, sent: bool) -> tuple[list[int], list[Refusal], set[int]]:
        """Take a decision in; return the buckets that are decided on as a whole by it.

        Those that are acknowledged; what was refused of the others, and of which of these a part is acknowledged.

        sent: whether a receiver decided, on what it was sent, and not a rule.
        """
        acknowledged: list[int] = []
        refusals: list[Refusal] = []
        partly: set[int] = set()
        match decision:
            case Taken(batch):
                if sent:
                    self._partly.update([bucket.bucket_id for bucket in batch.buckets])
            case Declined(batch, status, text):
                for bucket in batch.buckets:
                    series_ids = self._captured_ids(bucket) if sent else bucket.series_ids
                    refusal = Refusal(bucket.bucket_id, series_ids, status, text)
                    self._refusals.setdefault(bucket.bucket_id, []).append(refusal)
            case _:
                assert_never(decision)
        for bucket in batch.buckets:
            number = bucket.bucket_id
            left = self._undecided.pop(number) - bucket.sample_count
            if left > 0:
                self._undecided[number] = left
            elif number in self._refusals:
                refusals += self._refusals.pop(number)
                partly |= self._partly & {number}
            else:
                acknowledged.append(number)
        return acknowledged, refusals, partly

    def _captured_ids(self, sent: StoredBucket) -> bytes:
        """The ids that the samples of a part have in their bucket."""
        captured = self._captured_as.get(sent.bucket_id)
        if captured is None:
            return sent.series_ids
        return array("I", map(captured.__getitem__, array("I", sent.series_ids))).tobytes()

    def undecided(self, bucket_ids: Sequence[int]) -> list[int]:
        """Those of these buckets that are not decided on as a whole."""
        return [bucket_id for bucket_id in bucket_ids if bucket_id in self._undecided]
