from hypothesis import given
from hypothesis import strategies as st

from worker.size import RequestSize

MOST = 6_000_000


def requests_until_larger(size: RequestSize) -> int:
    """How many requests are taken before a larger one is tried."""
    before = size.max_bytes
    for requests in range(1, 10_000):
        size.taken(min(before, 100))
        if size.max_bytes > before:
            return requests
    return 10_000


def test_nothing_is_learnt_where_nothing_is_refused() -> None:
    size = RequestSize(MOST)
    for _ in range(100):
        size.taken(MOST)
    assert size.max_bytes == MOST


def test_the_largest_part_that_was_taken_is_kept_to() -> None:
    size = RequestSize(MOST)
    assert size.refused(4_000_000, 1_000_000, said_so=True)
    assert size.max_bytes == 1_000_000


def test_after_a_while_twice_the_size_is_tried_up_to_what_is_set() -> None:
    size = RequestSize(MOST)
    size.refused(4_000_000, 1_000_000, said_so=True)
    requests_until_larger(size)
    assert size.max_bytes == 2_000_000
    requests_until_larger(size)
    requests_until_larger(size)
    assert size.max_bytes == MOST


def test_what_is_refused_again_and_again_is_tried_ever_more_seldom() -> None:
    size = RequestSize(MOST)
    waits = []
    for _ in range(12):
        size.refused(size.max_bytes, 1_000_000, said_so=True)
        waits.append(requests_until_larger(size))
    assert waits[:4] == [8, 16, 32, 64]
    assert max(waits) == 1024


def test_a_receiver_that_takes_what_is_set_again_begins_anew() -> None:
    size = RequestSize(MOST)
    for _ in range(5):
        size.refused(size.max_bytes, 3_000_000, said_so=True)
        requests_until_larger(size)
    size.taken(MOST)
    size.refused(MOST, 3_000_000, said_so=True)
    assert requests_until_larger(size) == 8


def test_a_refusal_that_does_not_tell_of_the_size_is_not_about_it_where_as_much_was_taken_before() -> None:
    size = RequestSize(MOST)
    size.taken(4_000_000)
    assert not size.refused(4_000_000, 100, said_so=False)
    assert not size.refused(300, 100, said_so=False)
    assert size.max_bytes == MOST
    assert size.refused(4_000_001, 100, said_so=False)
    assert size.max_bytes == 4_000_000, "which was taken before"


def test_one_that_does_is_believed() -> None:
    size = RequestSize(MOST)
    size.taken(4_000_000)
    assert size.refused(3_000_000, 700_000, said_so=True)
    assert size.max_bytes == 700_000


def test_a_part_that_is_no_smaller_than_what_is_allowed_teaches_nothing() -> None:
    size = RequestSize(1_000)
    assert not size.refused(1_000, 1_000, said_so=True)
    assert size.max_bytes == 1_000


@given(
    st.lists(
        st.tuples(st.integers(1, MOST), st.none() | st.tuples(st.floats(0.01, 1.0), st.booleans())),
        max_size=60,
    )
)
def test_there_is_always_room_for_something_and_never_for_more_than_is_set(
    requests: list[tuple[int, tuple[float, bool] | None]],
) -> None:
    size = RequestSize(MOST)
    for size_bytes, refusal in requests:
        if refusal is None:
            size.taken(size_bytes)
        else:
            share, said_so = refusal
            size.refused(size_bytes, max(1, int(size_bytes * share)), said_so=said_so)
        assert 1 <= size.max_bytes <= MOST
