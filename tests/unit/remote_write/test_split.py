from array import array
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.remote_write.batches import START_MS, batch, batches, bucket, occurrences
from worker.buckets import Batch
from worker.remote_write.encode import write_request
from worker.remote_write.split import split_batch

LIMITS = {"max_samples": st.integers(1, 40), "max_bytes": st.integers(1, 3_000)}

# A part's size is reckoned with the longest length prefix that fits the limit: of 3,000 bytes two, where one may do.
SLACK_BYTES_PER_SERIES = 1


@settings(deadline=None)  # time says nothing on a busy machine
@given(batches(distinct_timestamps=False), LIMITS["max_samples"], LIMITS["max_bytes"])
def test_the_parts_hold_every_sample_once_in_its_order(given_batch: Batch, max_samples: int, max_bytes: int) -> None:
    parts = split_batch(given_batch, max_samples, max_bytes)
    assert occurrences(given_batch) == [sample for part in parts for sample in occurrences(part)]


@settings(deadline=None)  # time says nothing on a busy machine
@given(batches(distinct_timestamps=False), LIMITS["max_samples"], LIMITS["max_bytes"])
def test_no_part_is_larger_than_allowed_unless_it_is_one_sample(
    given_batch: Batch, max_samples: int, max_bytes: int
) -> None:
    for part in split_batch(given_batch, max_samples, max_bytes):
        assert part.sample_count <= max_samples
        assert len(write_request(part)) <= max_bytes or part.sample_count == 1


@settings(deadline=None)  # time says nothing on a busy machine
@given(batches(distinct_timestamps=False), LIMITS["max_samples"], LIMITS["max_bytes"])
def test_no_cut_is_made_without_need(given_batch: Batch, max_samples: int, max_bytes: int) -> None:
    sizes = {stored.bucket_id: stored.sample_count for stored in given_batch.buckets}
    for part, following in pairwise(split_batch(given_batch, max_samples, max_bytes)):
        together = Batch((*part.buckets, following.buckets[0]), given_batch.series)
        if any(stored.sample_count != sizes[stored.bucket_id] for stored in together.buckets):
            continue  # a bucket that is too large alone
        samples = [(timestamp_ms, series_id) for _, timestamp_ms, series_id, _ in occurrences(together)]
        assert (
            len(set(samples)) < len(samples)
            or len(samples) > max_samples
            or len(write_request(together)) + SLACK_BYTES_PER_SERIES * len(samples) > max_bytes
        )


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
        assert [part.sample_count for part in split_batch(whole, 100, max_bytes)] == cut


def test_a_bucket_is_cut_as_rarely_as_its_bytes_allow() -> None:
    large = batch(bucket(1, START_MS, range(10, 18), [1.0] * 8))
    three = len(write_request(batch(bucket(1, START_MS, [10, 11, 12], [1.0] * 3)))) + 3 * SLACK_BYTES_PER_SERIES
    assert [part.sample_count for part in split_batch(large, 100, three)] == [3, 3, 2]
    assert [part.sample_count for part in split_batch(large, 100, three - 1)] == [2, 2, 2, 2]


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
