"""The body of a remote write 1.0 request, `prometheus.WriteRequest`, by concatenation.

Label blocks (`worker.series`) are serialized already, just as this message carries them. Metadata is outside the
specification, but whoever reads it finds it in field 3.
"""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from operator import add

from worker.remote_write.fields import Prefixes, field
from worker.remote_write.labels import LABELS_OF
from worker.series import MetricMetadata

_TIME_SERIES = b"\x0a"  # WriteRequest.timeseries = 1
_METADATA = b"\x1a"  # WriteRequest.metadata = 3
_TYPE_GAUGE = b"\x08\x02"  # MetricMetadata.type = 1, a varint: GAUGE
_METRIC_NAME = b"\x12"  # MetricMetadata.metric_family_name = 2
_HELP = b"\x22"  # MetricMetadata.help = 4
_UNIT = b"\x2a"  # MetricMetadata.unit = 5


def write_request_v1(
    blocks: Sequence[bytes], samples: Sequence[bytes], metadata: Mapping[str, MetricMetadata]
) -> bytes:
    """The message of these series, given as their label blocks and their serialized samples.

    Metadata follows for the metrics among them that it is given for.
    """
    prefixes = Prefixes(_TIME_SERIES)
    pieces = [b""] * (3 * len(blocks))
    pieces[0::3] = map(prefixes.__getitem__, map(add, map(len, blocks), map(len, samples)))
    pieces[1::3] = blocks
    pieces[2::3] = samples
    if metadata:
        metrics = dict.fromkeys(labels.metric for labels in map(LABELS_OF.__getitem__, blocks))
        pieces += [metadata_v1(metric, metadata[metric]) for metric in metrics if metric in metadata]
    return b"".join(pieces)


# All that is collected has some 300 metrics (docs/datasets.md), and whoever cuts a batch asks for each of them.
@lru_cache(maxsize=1024)
def metadata_v1(metric: str, metadata: MetricMetadata) -> bytes:
    """What the request says about one metric."""
    named = _TYPE_GAUGE + field(_METRIC_NAME, metric.encode())
    return field(_METADATA, named + field(_HELP, metadata.help.encode()) + field(_UNIT, metadata.unit.encode()))
