from array import array
from collections.abc import Mapping
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.remote_write.batches import METADATA, START_MS, batch, batches, bucket, occurrences
from worker.buckets import Batch
from worker.config import Message
from worker.remote_write.encode import write_request
from worker.remote_write.split import split_batch
from worker.series import MetricMetadata, label_block

LIMITS = {"max_samples": st.integers(1, 40), "max_bytes": st.integers(1, 3_000)}
MESSAGES = st.sampled_from(Message)

# A part's size is reckoned with the longest length prefix that fits the limit: of 3,000 bytes two, where one may do.
SLACK_BYTES_PER_SERIES = 1

# time says nothing on a busy machine
without_deadline = settings(deadline=None)


@without_deadline
@given(batches(distinct_timestamps=False), LIMITS["max_samples"], LIMITS["max_bytes"], MESSAGES, METADATA)
def test_the_parts_hold_every_sample_once_in_its_order(
    given_batch: Batch, max_samples: int, max_bytes: int, message: Message, metadata: Mapping[str, MetricMetadata]
) -> None:
    parts = split_batch(given_batch, max_samples, max_bytes, message, metadata)
    assert occurrences(given_batch) == [sample for part in parts for sample in occurrences(part)]


@without_deadline
@given(batches(distinct_timestamps=False), LIMITS["max_samples"], LIMITS["max_bytes"], METADATA)
def test_no_part_is_larger_than_allowed_in_either_version_unless_it_is_one_sample(
    given_batch: Batch, max_samples: int, max_bytes: int, metadata: Mapping[str, MetricMetadata]
) -> None:
    for part in split_batch(given_batch, max_samples, max_bytes, metadata=metadata):
        assert part.sample_count <= max_samples
        for message in Message:
            assert len(write_request(part, message, metadata)) <= max_bytes or part.sample_count <= 1


@without_deadline
@given(batches(distinct_timestamps=False), LIMITS["max_samples"], LIMITS["max_bytes"], METADATA)
def test_no_part_for_version_1_is_larger_than_allowed_unless_it_is_one_sample(
    given_batch: Batch, max_samples: int, max_bytes: int, metadata: Mapping[str, MetricMetadata]
) -> None:
    for part in split_batch(given_batch, max_samples, max_bytes, Message.V1, metadata):
        assert part.sample_count <= max_samples
        assert len(write_request(part, Message.V1, metadata)) <= max_bytes or part.sample_count == 1


@without_deadline
@given(batches(distinct_timestamps=False), LIMITS["max_samples"], LIMITS["max_bytes"], METADATA)
def test_no_cut_for_version_1_is_made_without_need(
    given_batch: Batch, max_samples: int, max_bytes: int, metadata: Mapping[str, MetricMetadata]
) -> None:
    sizes = {stored.bucket_id: stored.sample_count for stored in given_batch.buckets}
    for part, following in pairwise(split_batch(given_batch, max_samples, max_bytes, Message.V1, metadata)):
        together = Batch((*part.buckets, following.buckets[0]), given_batch.series)
        if any(stored.sample_count != sizes[stored.bucket_id] for stored in together.buckets):
            continue  # a bucket that is too large alone
        samples = [(timestamp_ms, series_id) for _, timestamp_ms, series_id, _ in occurrences(together)]
        assert (
            len(set(samples)) < len(samples)
            or len(samples) > max_samples
            or len(write_request(together, Message.V1, metadata)) + SLACK_BYTES_PER_SERIES * len(samples) > max_bytes
        )


@pytest.mark.parametrize("message", Message)
@pytest.mark.parametrize(("series_count", "label_count"), [(10_000, 1), (500, 40)])
@pytest.mark.parametrize("max_bytes", [700, 15_000, 300_000])
def test_the_limit_holds_for_series_that_have_no_string_in_common(
    message: Message, series_count: int, label_count: int, max_bytes: int
) -> None:
    # Not even `__name__`, as after relabelling: what a symbol takes is never saved by another series.
    series = {number: nameless_block(number, label_count) for number in range(series_count)}
    large = Batch((bucket(1, START_MS, range(series_count), [1.0] * series_count),), series)
    metadata = {"": MetricMetadata("helpful", "unit")}
    for part in split_batch(large, 10_000, max_bytes, message, metadata):
        assert len(write_request(part, message, metadata)) <= max_bytes or part.sample_count == 1
    assert len(write_request(large, Message.V2, metadata)) > len(write_request(large, Message.V1, metadata))


def nameless_block(number: int, label_count: int) -> bytes:
    first = 10_000_000 + number * 2 * label_count
    named = label_block("x", {f"l{first + index}": f"v{first + index}" for index in range(label_count)})
    return named.removeprefix(label_block("x", {}))


@pytest.mark.parametrize("message", Message)
def test_metadata_counts_once_for_all_series_of_a_metric(message: Message) -> None:
    whole = batch(*(bucket(w, START_MS + w, [10 * w + n for n in range(10)], [1.0] * 10) for w in range(10)))
    metadata = {"requests": MetricMetadata("h" * 1_000, "u"), "elsewhere": MetricMetadata("h" * 100_000, "u")}
    assert split_batch(whole, 1_000, 12_000, message, metadata) == [whole]
    parts = split_batch(whole, 1_000, 5_000, message, metadata)
    assert len(parts) > 1
    assert max(len(write_request(part, message, metadata)) for part in parts) <= 5_000


@pytest.mark.parametrize("message", Message)
def test_metadata_counts_in_every_piece_of_a_bucket(message: Message) -> None:
    large = batch(bucket(1, START_MS, range(10, 30), [1.0] * 20))
    metadata = {"requests": MetricMetadata("h" * 1_000, "u")}
    parts = split_batch(large, 100, 1_500, message, metadata)
    assert sum(part.sample_count for part in parts) == 20
    assert len(parts) < 10
    assert max(len(write_request(part, message, metadata)) for part in parts) <= 1_500


def test_what_fits_is_one_part() -> None:
    whole = batch(*(bucket(w, START_MS + w, [1, 2, 3], [1.0, 2.0, 3.0]) for w in range(10)))
    assert [whole] == split_batch(whole, 30, 10_000)


def test_a_part_ends_with_the_last_bucket_that_fits_whole() -> None:
    whole = batch(*(bucket(w, START_MS + w, [1, 2, 3], [1.0, 2.0, 3.0]) for w in range(5)))
    parts = split_batch(whole, 7, 10_000)
    assert [[stored.bucket_id for stored in part.buckets] for part in parts] == [[0, 1], [2, 3], [4]]


def test_labels_count_once_for_all_windows_of_a_series() -> None:
    whole = batch(*(bucket(w, START_MS + w, [1], [1.0]) for w in range(40)))
    size = len(write_request(whole))
    size_of_39 = len(write_request(Batch(whole.buckets[:39], whole.series)))
    for max_bytes, cut in ((size, [40]), (size - 1, [39, 1]), (size_of_39, [39, 1]), (size_of_39 - 1, [38, 2])):
        assert [part.sample_count for part in split_batch(whole, 100, max_bytes, Message.V1)] == cut


def test_a_bucket_is_cut_as_rarely_as_its_bytes_allow() -> None:
    large = batch(bucket(1, START_MS, range(10, 18), [1.0] * 8))
    three = len(write_request(batch(bucket(1, START_MS, [10, 11, 12], [1.0] * 3)))) + 3 * SLACK_BYTES_PER_SERIES
    assert [part.sample_count for part in split_batch(large, 100, three, Message.V1)] == [3, 3, 2]
    assert [part.sample_count for part in split_batch(large, 100, three - 1, Message.V1)] == [2, 2, 2, 2]


def test_a_bucket_that_is_too_large_is_cut_by_series_and_shares_no_part() -> None:
    small = bucket(1, START_MS, [1], [1.0])
    large = bucket(2, START_MS + 1, [1, 2, 3, 4, 5], [1.0, 2.0, 3.0, 4.0, 5.0])
    behind = bucket(3, START_MS + 2, [1], [1.0])
    parts = split_batch(batch(small, large, behind), 2, 10_000)
    assert [(stored.bucket_id, list(array("I", stored.series_ids))) for part in parts for stored in part.buckets] == [
        (1, [1]),
        (2, [1, 2]),
        (2, [3, 4]),
        (2, [5]),
        (3, [1]),
    ]
    assert [value for part in parts[1:4] for stored in part.buckets for value in array("d", stored.values)] == [
        1.0,
        2.0,
        3.0,
        4.0,
        5.0,
    ]
    assert all(len(part.buckets) == 1 for part in parts)


def test_a_sample_that_is_too_large_alone_is_a_part_of_its_own() -> None:
    parts = split_batch(batch(bucket(1, START_MS, [1, 2], [1.0, 2.0])), 100, 1)
    assert [part.sample_count for part in parts] == [1, 1]


def test_two_samples_of_one_series_and_timestamp_never_share_a_part() -> None:
    minute = bucket(1, START_MS, [1, 2], [1.0, 2.0])
    hour = bucket(2, START_MS, [2, 3], [120.0, 180.0])
    later = bucket(3, START_MS + 60_000, [2], [3.0])
    parts = split_batch(batch(minute, hour, later), 100, 10_000)
    assert [[stored.bucket_id for stored in part.buckets] for part in parts] == [[1], [2, 3]]


def test_nothing_to_send_makes_no_part() -> None:
    assert split_batch(Batch((), {}), 10, 10) == []


def test_a_bucket_without_samples_is_kept() -> None:
    empty = batch(bucket(1, START_MS, [], []))
    assert split_batch(empty, 10, 10) == [empty]
