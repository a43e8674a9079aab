"""Which samples of the buckets that are on their way are not decided on yet.

A bucket may go out in several requests, be halved, and be refused in part: it is decided on when each of its samples
is. Pure: writes nothing down.
"""

from collections.abc import Sequence
from typing import assert_never

from worker.buckets import Batch
from worker.isolate import Decision, Declined, Taken
from worker.ledger import Refusal


class Tally:
    """Which samples of a turn's buckets are not decided on yet."""

    def __init__(self, batch: Batch) -> None:
        self._undecided = {bucket.bucket_id: bucket.sample_count for bucket in batch.buckets}
        self.parts = {bucket.bucket_id: bucket.sample_count for bucket in batch.buckets if bucket.is_part}
        """How many samples are sent of the buckets of which the destination has the rest."""
        self._refusals: dict[int, list[Refusal]] = {}
        self._partly: set[int] = set()

    def count(self, decision: Decision, *, sent: bool) -> tuple[list[int], list[Refusal], set[int]]:
        """Take a decision in; return the buckets that are decided on as a whole by it.

        Those that are acknowledged; what was refused of the others, and of which of these a part is acknowledged.

        sent: whether a receiver took it, and not a rule that drops it.
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
                    refusal = Refusal(bucket.bucket_id, bucket.series_ids, status, text)
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

    def undecided(self, bucket_ids: Sequence[int]) -> list[int]:
        """Those of these buckets that are not decided on as a whole."""
        return [bucket_id for bucket_id in bucket_ids if bucket_id in self._undecided]
