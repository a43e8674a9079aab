from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from tests.unit.remote_write.batches import START_MS, batch, bucket, occurrences
from worker.buckets import Batch, StoredBucket
from worker.isolate import Decision, Declined, Taken
from worker.ledger import Refusal
from worker.remote_write import halves
from worker.tally import Tally


def whole_batch() -> Batch:
    return batch(*(bucket(n, START_MS + n, range(1, size + 1), [1.0] * size) for n, size in ((7, 4), (8, 1), (9, 2))))


def of(*buckets: StoredBucket) -> Batch:
    return Batch(buckets, {})


def part(number: int, *series_ids: int) -> StoredBucket:
    return bucket(number, START_MS + number, series_ids, [1.0] * len(series_ids))


def test_a_bucket_is_acknowledged_when_all_of_its_samples_are_taken() -> None:
    tally = Tally(whole_batch())
    assert tally.count(Taken(of(part(7, 1, 2), part(8, 1))), sent=True) == ([8], [], set())
    assert tally.undecided([7, 8, 9]) == [7, 9]
    assert tally.count(Taken(of(part(7, 4, 3))), sent=True) == ([7], [], set())
    assert tally.undecided([7, 8]) == []


def test_what_is_refused_of_a_bucket_is_told_when_all_of_it_is_decided_on() -> None:
    tally = Tally(whole_batch())
    assert tally.count(Declined(of(part(7, 2)), 400, "no"), sent=True) == ([], [], set())
    assert tally.count(Taken(of(part(7, 1, 3))), sent=True) == ([], [], set())
    acknowledged, refusals, partly = tally.count(Declined(of(part(7, 4)), 422, "never"), sent=True)
    assert acknowledged == []
    assert refusals == [Refusal(7, part(7, 2).series_ids, 400, "no"), Refusal(7, part(7, 4).series_ids, 422, "never")]
    assert partly == {7}


def test_a_bucket_of_which_nothing_is_taken_is_not_delivered_in_part() -> None:
    tally = Tally(whole_batch())
    acknowledged, refusals, partly = tally.count(Declined(of(part(9, 1, 2)), 400, "no"), sent=True)
    assert (acknowledged, [refusal.bucket_id for refusal in refusals], partly) == ([], [9], set())


def test_what_a_rule_drops_is_decided_on_and_is_no_delivery() -> None:
    tally = Tally(whole_batch())
    assert tally.count(Taken(of(part(9, 1), part(8, 1))), sent=False) == ([8], [], set())
    acknowledged, refusals, partly = tally.count(Declined(of(part(9, 2)), 400, "no"), sent=True)
    assert (acknowledged, len(refusals), partly) == ([], 1, set())


def test_what_is_refused_is_told_by_the_ids_that_it_was_captured_under_whatever_it_was_sent_as() -> None:
    tally = Tally(of(part(7, 5, 6, 3)), {7: {3: 5, 6: 6}})
    # What no receiver was asked about is told by its own id, though another series is sent under that.
    assert tally.count(Declined(of(part(7, 3)), None, "it has the labels of another"), sent=False) == ([], [], set())
    _, refusals, _ = tally.count(Declined(of(part(7, 6, 3)), 400, "no"), sent=True)
    assert [refusal.series_ids for refusal in refusals] == [part(7, 3).series_ids, part(7, 6, 5).series_ids]


@given(st.data())
def test_in_whatever_parts_and_order_each_bucket_is_decided_on_once_and_every_refused_sample_told(
    data: st.DataObject,
) -> None:
    whole = whole_batch()
    parts: list[Batch] = []
    left = [whole]
    while left:
        one = left.pop()
        both = halves(one)
        if both is None or data.draw(st.booleans()):
            parts.append(one)
        else:
            left += both
    tally = Tally(whole)
    told: list[int] = []
    refused: Counter[tuple[int, int]] = Counter()
    declined: Counter[tuple[int, int]] = Counter()
    for one in data.draw(st.permutations(parts)):
        bad = data.draw(st.booleans())
        decision: Decision = Declined(one, 400, "no") if bad else Taken(one)
        if bad:
            declined.update((bucket_id, series_id) for bucket_id, _, series_id, _ in occurrences(one))
        acknowledged, refusals, partly = tally.count(decision, sent=True)
        told += acknowledged
        told += {refusal.bucket_id for refusal in refusals}
        for refusal in refusals:
            assert (refusal.reason, refusal.status) == ("no", 400)
            assert refusal.sample_count * 4 == len(refusal.series_ids)
            numbers = memoryview(refusal.series_ids).cast("I")
            refused.update((refusal.bucket_id, number) for number in numbers)
        sizes = {stored.bucket_id: stored.sample_count for stored in whole.buckets}
        for number in {refusal.bucket_id for refusal in refusals}:
            of_bucket = sum(declined[key] for key in declined if key[0] == number)
            assert (number in partly) is (of_bucket < sizes[number])
    assert sorted(told) == [7, 8, 9]
    assert refused == declined
    assert tally.undecided([7, 8, 9]) == []
