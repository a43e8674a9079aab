from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from worker.shards import Shard, shard_of

TAGS = [f"{number:032x}" for number in range(2000)]


@given(st.text(), st.integers(1, 12))
def test_every_tag_belongs_to_exactly_one_shard(tag: str, count: int) -> None:
    holders = [number for number in range(1, count + 1) if Shard(number, count).holds(tag)]
    assert holders == [shard_of(tag, count)]


def test_shards_are_about_equally_large() -> None:
    sizes = Counter(shard_of(tag, 8) for tag in TAGS)
    assert sizes.keys() == set(range(1, 9))
    assert max(sizes.values()) <= 1.25 * len(TAGS) / 8


def test_a_new_shard_takes_its_part_and_moves_nothing_else() -> None:
    moved = [tag for tag in TAGS if shard_of(tag, 4) != shard_of(tag, 5)]
    assert {shard_of(tag, 5) for tag in moved} == {5}
    assert 0.15 < len(moved) / len(TAGS) < 0.25


def test_a_tag_stays_in_its_shard_from_version_to_version() -> None:
    assert [shard_of(tag, 4) for tag in TAGS[:8]] == [3, 4, 4, 1, 3, 3, 3, 1]
