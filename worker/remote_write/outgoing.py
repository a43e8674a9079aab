"""What of a batch goes to one destination, and under which labels.

Applies external labels and relabelling (`worker.remote_write.relabel`) to stored buckets. Promises that every sample of
the batch is sent, dropped by a rule, or named as one that cannot be sent. Pure.
"""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from worker.buckets import Batch, StoredBucket
from worker.config import DestinationSettings
from worker.remote_write.relabel import Relabeler, Relabelled, SeriesMap, Unsendable

_TWICE = "write_relabel_configs and external_labels give it the same labels as another series of the same time has"


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A batch as a destination gets it.

    batch:       what is to be sent; a bucket may have fewer samples than it had, or none and be left out.
    dropped:     parts of buckets that a rule drops.
    unsendable:  parts of buckets that cannot be sent under the labels that they got, each with the reason.
    captured_as: of the buckets with series that are sent under the id of another: by that, the series' own id.
    """

    batch: Batch
    dropped: tuple[StoredBucket, ...] = ()
    unsendable: tuple[tuple[StoredBucket, str], ...] = ()
    captured_as: Mapping[int, Mapping[int, int]] = field(default_factory=dict)


class Outbox:
    """The labels of one destination, applied to one batch after the other."""

    def __init__(self, destination: DestinationSettings) -> None:
        rewrites = destination.external_labels or destination.write_relabel_configs
        relabeler = Relabeler(destination.external_labels, destination.write_relabel_configs)
        self._names = SeriesMap(relabeler) if rewrites else None

    def names(self, series: Mapping[int, bytes]) -> Mapping[int, Relabelled]:
        """What becomes of these series, given as label blocks by series id."""
        return series if self._names is None else self._names.look_up(series)

    def outgoing(self, batch: Batch) -> Outgoing:
        """What is to be sent of a batch."""
        if self._names is None:
            return Outgoing(batch)
        named = self._names.look_up(batch.series)
        sent_as = {
            series_id: self._names.first_named(block) for series_id, block in named.items() if isinstance(block, bytes)
        }
        series = {first: block for series_id, first in sent_as.items() if isinstance(block := named[series_id], bytes)}
        if len(series) == len(named) and series.keys() == named.keys():
            return Outgoing(Batch(batch.buckets, series))

        kept: list[StoredBucket] = []
        dropped: list[StoredBucket] = []
        unsendable: list[tuple[StoredBucket, str]] = []
        captured_as: dict[int, dict[int, int]] = {}
        seen: set[tuple[int, int]] = set()
        for bucket in batch.buckets:
            series_ids = array("I", bucket.series_ids)
            places: dict[str | None, list[int]] = {}
            for place, series_id in enumerate(series_ids):
                places.setdefault(self._obstacle(bucket, named[series_id], sent_as.get(series_id), seen), []).append(
                    place
                )
            for obstacle, chosen in places.items():
                match obstacle:
                    case "":
                        captured = {sent_as[series_ids[place]]: series_ids[place] for place in chosen}
                        kept.append(_part(bucket, chosen, list(captured)))
                        if captured.keys() != set(captured.values()):
                            captured_as[bucket.bucket_id] = captured
                    case None:
                        dropped.append(_part(bucket, chosen, [series_ids[place] for place in chosen]))
                    case reason:
                        unsendable.append((_part(bucket, chosen, [series_ids[place] for place in chosen]), reason))
        return Outgoing(Batch(tuple(kept), series), tuple(dropped), tuple(unsendable), captured_as)

    @staticmethod
    def _obstacle(
        bucket: StoredBucket, named: bytes | Unsendable | None, sent_as: int | None, seen: set[tuple[int, int]]
    ) -> str | None:
        """Why a sample cannot be sent; None where it is not to be, and nothing where it is."""
        if isinstance(named, Unsendable):
            return named.reason
        if named is None or sent_as is None:
            return None
        key = (bucket.timestamp_ms, sent_as)
        if key in seen:
            return _TWICE
        seen.add(key)
        return ""


def _part(bucket: StoredBucket, places: Sequence[int], series_ids: Sequence[int]) -> StoredBucket:
    # Bytes and not floats are moved: a NaN keeps its payload.
    values = b"".join(bucket.values[8 * place : 8 * place + 8] for place in places)
    return StoredBucket(bucket.bucket_id, bucket.timestamp_ms, array("I", series_ids).tobytes(), values)
