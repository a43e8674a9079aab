from collections import Counter
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.remote_write.batches import batch, batches, bucket, occurrences
from worker.buckets import Batch
from worker.remote_write.halve import halves, piece, spread

MINUTE_MS = 60_000

ANY_BATCH = batches() | batches(distinct_timestamps=False)


def timestamps(part: Batch) -> set[int]:
    return {stored.timestamp_ms for stored in part.buckets}


@given(ANY_BATCH)
def test_every_sample_is_in_exactly_one_half_and_none_of_them_is_empty(whole: Batch) -> None:
    both = halves(whole)
    if both is None:
        assert whole.sample_count <= 1
        return
    older, newer = both
    assert Counter(occurrences(older)) + Counter(occurrences(newer)) == Counter(occurrences(whole))
    assert older.sample_count > 0
    assert newer.sample_count > 0
    assert older.series == newer.series == whole.series


@given(ANY_BATCH)
def test_it_is_cut_between_two_timestamps_where_it_has_several(whole: Batch) -> None:
    stamps = timestamps(Batch(tuple(stored for stored in whole.buckets if stored.sample_count), {}))
    both = halves(whole)
    if both is None:
        return
    older, newer = both
    if len(stamps) > 1:
        assert max(timestamps(older)) < min(timestamps(newer))
        at_each = Counter[int]()
        for stored in whole.buckets:
            at_each[stored.timestamp_ms] += stored.sample_count
        difference = abs(older.sample_count - newer.sample_count)
        assert difference <= max(at_each.values()), "and no other timestamp would be nearer to the middle"
    else:
        assert max(timestamps(older)) == min(timestamps(newer))


@given(ANY_BATCH)
def test_buckets_of_one_timestamp_are_cut_between_two_of_them_before_one_is_cut_by_series(whole: Batch) -> None:
    both = halves(whole)
    if both is None:
        return
    older, newer = both
    ids = [{stored.bucket_id for stored in half.buckets} for half in both]
    filled = [stored for stored in whole.buckets if stored.sample_count]
    if len(filled) > 1:
        assert not ids[0] & ids[1]
        assert set(older.buckets) | set(newer.buckets) == set(filled), "whole buckets"
    else:
        assert ids[0] == ids[1]
        assert abs(older.sample_count - newer.sample_count) <= 1


@given(ANY_BATCH)
def test_halving_on_and_on_comes_down_to_every_sample_once_and_in_the_order_of_time(whole: Batch) -> None:
    left = [whole]
    singles: list[Batch] = []
    while left:
        part = left.pop()
        both = halves(part)
        if both is None:
            singles.append(part)
        else:
            left += reversed(both)
    found = [sample for single in singles for sample in occurrences(single)]
    assert Counter(found) == Counter(occurrences(whole))
    assert all(earlier[1] <= later[1] for earlier, later in pairwise(found))


def test_what_has_one_sample_or_none_has_no_halves() -> None:
    assert halves(batch()) is None
    assert halves(batch(bucket(1, MINUTE_MS, [], []))) is None
    assert halves(batch(bucket(1, MINUTE_MS, [], []), bucket(2, MINUTE_MS, [7], [1.0]))) is None


def test_halves_are_about_equal_in_samples() -> None:
    whole = batch(*(bucket(n, MINUTE_MS * n, range(count), [1.0] * count) for n, count in enumerate([1, 1, 1, 9, 10])))
    both = halves(whole)
    assert both is not None
    assert [half.sample_count for half in both] == [12, 10]


def test_a_bucket_is_cut_in_the_middle() -> None:
    both = halves(batch(bucket(1, MINUTE_MS, range(9), [1.0] * 9)))
    assert both is not None
    assert [half.sample_count for half in both] == [4, 5]


def test_a_piece_keeps_the_number_and_the_time_of_its_bucket_and_the_bits_of_its_values() -> None:
    whole = bucket(5, MINUTE_MS, [1, 2, 3], [-0.0, float("nan"), 3.0])
    assert piece(whole, 0, 3) == whole
    assert occurrences(Batch((piece(whole, 1, 3),), {})) == occurrences(Batch((whole,), {}))[1:]


@given(st.data())
def test_single_samples_from_all_over_a_batch_and_the_rest_are_together_all_of_it(data: st.DataObject) -> None:
    whole = data.draw(ANY_BATCH.filter(lambda drawn: drawn.sample_count > 1))
    count = data.draw(st.integers(1, whole.sample_count - 1))
    singles, rest = spread(whole, count)
    assert [single.sample_count for single in singles] == [1] * count
    assert rest.sample_count == whole.sample_count - count
    assert all(stored.sample_count for stored in rest.buckets)
    found = sum((Counter(occurrences(part)) for part in (*singles, rest)), Counter[tuple[int, int, int, bytes]]())
    assert found == Counter(occurrences(whole))


def test_they_are_chosen_by_chance_and_the_same_batch_gives_the_same_ones() -> None:
    def chosen(first_id: int, count: int) -> list[int]:
        whole = batch(*(bucket(first_id + n, MINUTE_MS * n, range(50), [1.0] * 50) for n in range(2)))
        place = {sample: index for index, sample in enumerate(occurrences(whole))}
        return [place[occurrences(single)[0]] for single in spread(whole, count)[0]]

    assert chosen(0, 16) == chosen(0, 16)
    seen = Counter(place for first_id in range(200) for place in chosen(first_id, 16))
    assert len(seen) == 100, "every sample has its chance"
    # 32 times each on average, give or take six (the root of 200 * 0.16 * 0.84 is 5.2).
    assert 32 - 6 * 5.2 < min(seen.values()) <= max(seen.values()) < 32 + 6 * 5.2
