"""What it costs to make requests of stored buckets, beside protobuf's own encoder (upb); a process of its own.

    python -m benchmarks.encoding

Both versions, of one window of many series and of many windows of few: the two shapes that a request has. Protobuf gets
the labels taken apart and the samples as numbers beforehand, so that its figures are those of building and serializing
its messages alone.
"""

import time
import tracemalloc
from collections.abc import Callable, Iterator
from functools import partial
from operator import itemgetter
from struct import Struct

from benchmarks.load import DATASET, WIDTH_SECONDS, Load
from worker.buckets import Batch
from worker.config import Message
from worker.remote_write import compress, write_request
from worker.remote_write.labels import MAX_REMEMBERED_BYTES, LabelMemory
from worker.remote_write.proto import remote_write_v1_pb2 as v1
from worker.remote_write.proto import remote_write_v2_pb2 as v2
from worker.remote_write.samples import samples_by_series
from worker.series import MetricMetadata, parse_label_block

LOADS = {
    "10,000 series x 1 sample": Load(zones=100, series_per_zone=100, minutes=1, first_start=1_760_000_040),
    "200 series x 50 samples": Load(zones=2, series_per_zone=100, minutes=50, first_start=1_760_000_040),
}

METADATA = {
    metric.name: MetricMetadata(metric.help, metric.unit)
    for metric in (
        *(total.metric for total in DATASET.totals),
        *(metric for breakdown in DATASET.breakdowns for _, metric in breakdown.values),
    )
}

# One takes 0.3 to 50 ms: the fastest of so many is one that nothing else disturbed.
_REPETITIONS = 30

# A sample as `worker.remote_write.samples` writes it: value, then the timestamp's varint.
_SAMPLE = Struct("<3xdx6x")

Series = list[tuple[dict[str, str], list[tuple[int, float]]]]


def series_of(batch: Batch) -> Series:
    """The labels and samples of a batch for protobuf, in the order in which the worker sends them."""
    moments = sorted({bucket.timestamp_ms for bucket in batch.buckets})
    return [
        (parse_label_block(block), list(zip(moments, map(itemgetter(0), _SAMPLE.iter_unpack(samples)), strict=True)))
        for block, samples in zip(*samples_by_series(batch), strict=True)
    ]


def by_protobuf_v1(series: Series) -> bytes:
    """The request that `write_request` makes, without metadata, by message objects."""
    request = v1.WriteRequest()
    for labels, samples in series:
        one = request.timeseries.add()
        for name, value in labels.items():
            one.labels.add(name=name, value=value)
        for timestamp_ms, number in samples:
            one.samples.add(value=number, timestamp=timestamp_ms)
    return request.SerializeToString()


def by_protobuf_v2(series: Series) -> bytes:
    """The request that `write_request` makes, with metadata, by message objects; its symbols are in another order."""
    request = v2.Request()
    symbols = {"": 0}

    def reference(text: str) -> int:
        return symbols.setdefault(text, len(symbols))

    for labels, samples in series:
        one = request.timeseries.add()
        one.labels_refs.extend([reference(text) for label in labels.items() for text in label])
        for timestamp_ms, number in samples:
            one.samples.add(value=number, timestamp=timestamp_ms)
        known = METADATA[labels["__name__"]]
        one.metadata.type = v2.Metadata.METRIC_TYPE_GAUGE
        one.metadata.help_ref = reference(known.help)
        one.metadata.unit_ref = reference(known.unit)
    request.symbols.extend(symbols)
    return request.SerializeToString()


def measure(load: Load) -> Iterator[str]:
    """One line for each way to make the request of a load."""
    batch = load.batch(range(load.zones), range(load.minutes))
    series = series_of(batch)
    ways: dict[str, Callable[[], bytes]] = {
        "1.0": lambda: write_request(batch, Message.V1),
        "1.0 with metadata": lambda: write_request(batch, Message.V1, METADATA),
        "1.0 by protobuf": lambda: by_protobuf_v1(series),
        "2.0": lambda: write_request(batch, Message.V2, METADATA),
        "2.0 by protobuf": lambda: by_protobuf_v2(series),
    }
    for name, encode in ways.items():
        body = encode()
        seconds, packing_seconds = _fastest(encode), _fastest(partial(compress, body))
        yield (
            f"  {name:<20}{seconds * 1e3:>8.2f} ms{batch.sample_count / seconds:>14,.0f} samples/s"
            f"{len(body):>12,} bytes{len(compress(body)):>10,} packed in {packing_seconds * 1e3:.2f} ms"
        )


def remembering(series_count: int) -> str:
    """What taking label blocks apart for the first time costs, and what is kept of it."""
    load = Load(zones=series_count // 100, series_per_zone=100, minutes=1, first_start=WIDTH_SECONDS)
    blocks = [block for zone in load.series for block in zone]
    started = time.perf_counter()
    memory = LabelMemory(MAX_REMEMBERED_BYTES)
    for block in blocks:
        memory[block]
    seconds = time.perf_counter() - started
    tracemalloc.start()
    memory = LabelMemory(MAX_REMEMBERED_BYTES)
    for block in blocks:
        memory[block]
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return (
        f"{len(blocks):,} label blocks of {sum(map(len, blocks)) // len(blocks)} bytes taken apart for the first time, "
        f"{seconds / len(blocks) * 1e6:.1f} us each; {len(memory):,} remembered in {kept / 1e6:.1f} MB more"
    )


def _fastest(action: Callable[[], object]) -> float:
    """Seconds."""
    taken = []
    for _ in range(_REPETITIONS):
        started = time.perf_counter()
        action()
        taken.append(time.perf_counter() - started)
    return min(taken)


def main() -> None:
    for name, load in LOADS.items():
        print(f"{name}, the fastest of {_REPETITIONS}")
        print(*measure(load), sep="\n")
    # As many as are remembered at once.
    print(remembering(45_000))


if __name__ == "__main__":
    main()
