import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.simulator.asking import ask_windows, rows_of, told
from tests.unit.simulator.entries import (
    ACCOUNT_HTTP,
    ENTRIES,
    FIREWALL,
    HTTP,
    HTTP_CACHE,
    HTTP_ERRORS,
    HTTP_REQUESTS,
    KV_STORAGE,
    WORKERS,
)
from tests.unit.simulator.worlds import NOW, changed, enterprise, world_of
from worker.cloudflare.catalogue import Dataset, ScopeKind
from worker.simulator.groups import Sampling
from worker.simulator.nodes import shipped_datasets
from worker.simulator.settling import AT_ONCE, HoldUp, Settling

FLEET = enterprise(zones=10)
WORLD = world_of(FLEET, datasets=ENTRIES)
EVENTS = WORLD.events
ZONES = [zone.tag for zone in FLEET.zones]
ACCOUNTS = [account.tag for account in FLEET.accounts]
DAY = NOW - NOW % 86_400
WIDTHS = (60, 300, 900, 3_600, 86_400)


def scopes(dataset: Dataset) -> list[str]:
    return ZONES if dataset.scope is ScopeKind.ZONE else ACCOUNTS


def truths(dataset: Dataset, width: int, tag: str, since: int, until: int) -> dict[int, Any]:
    """The windows in which anything happened."""
    found = {start: EVENTS.truth(tag, dataset, start, width) for start in range(since, until, width)}
    return {start: truth for start, truth in found.items() if truth}


@settings(max_examples=60, deadline=None)
@given(
    dataset=st.sampled_from(ENTRIES),
    width=st.sampled_from(WIDTHS),
    place=st.integers(0, 9),
    windows=st.integers(1, 5),
    back=st.integers(0, 300),
)
def test_an_answer_is_the_truth(dataset: Dataset, width: int, place: int, windows: int, back: int) -> None:
    tag = scopes(dataset)[place % len(scopes(dataset))]
    until = max(DAY - back * width, DAY - 6 * 86_400)
    until -= until % width
    if dataset.grain(width).dimension is None:
        windows = 1
    since = until - windows * width
    answer = ask_windows(WORLD, dataset, width, [tag], since, until)
    assert told(dataset, width, rows_of(answer)[tag], since) == truths(dataset, width, tag, since, until)


def digest() -> str:
    seen = [
        sorted(EVENTS.truth(tag, dataset, DAY, 3_600).items(), key=repr)
        for dataset in ENTRIES
        for tag in scopes(dataset)
    ]
    return hashlib.blake2b(repr(seen).encode(), digest_size=8).hexdigest()


def test_the_truth_is_the_same_in_every_process_and_version_of_python() -> None:
    program = "from tests.unit.simulator.test_events import digest; print(digest())"
    printed = subprocess.run(
        [sys.executable, "-c", program],
        check=True,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[3],
        env={**os.environ, "PYTHONHASHSEED": "7"},
    ).stdout.strip()
    assert printed == digest() == "7a147502b5602f98"


@pytest.mark.parametrize("dataset", [HTTP_CACHE, WORKERS])
def test_the_minutes_of_a_day_add_up_to_it_and_so_do_the_labels(dataset: Dataset) -> None:
    tag = scopes(dataset)[0]
    summed: dict[Any, dict[Any, Any]] = {}
    for truth in truths(dataset, 60, tag, DAY, DAY + 86_400).values():
        for labels, numbers in truth.items():
            of_labels = summed.setdefault(labels, dict.fromkeys(numbers, 0))
            for path, amount in numbers.items():
                of_labels[path] += amount
    assert summed == EVENTS.truth(tag, dataset, DAY, 86_400)


def test_a_dataset_with_labels_and_one_without_tell_of_the_same_events() -> None:
    for tag in ZONES:
        by_labels = EVENTS.truth(tag, HTTP_CACHE, DAY, 3_600)
        whole = EVENTS.truth(tag, HTTP, DAY, 3_600)
        for total in HTTP.totals:
            assert sum(numbers[total.path] for numbers in by_labels.values()) == sum(
                numbers[total.path] for numbers in whole.values()
            )


def requests(truth: dict[Any, dict[Any, Any]]) -> int:
    return sum(numbers["count",] for numbers in truth.values())


def test_an_account_shows_what_its_zones_show() -> None:
    for account in FLEET.accounts:
        of_account = EVENTS.truth(account.tag, ACCOUNT_HTTP, DAY, 3_600)
        for zone in FLEET.zones:
            shown = {labels: numbers for labels, numbers in of_account.items() if labels[0] == zone.tag}
            expected = EVENTS.truth(zone.tag, HTTP, DAY, 3_600) if zone.account == account else {}
            assert requests(shown) == requests(expected)


def test_conditions_let_some_through_and_not_all() -> None:
    for tag in ZONES[:3]:
        whole = requests(EVENTS.truth(tag, HTTP, DAY, 86_400))
        assert 0 < requests(EVENTS.truth(tag, HTTP_ERRORS, DAY, 86_400)) < whole


def test_no_dataset_is_empty_in_a_day_of_a_fleet() -> None:
    for dataset in ENTRIES:
        assert any(EVENTS.truth(tag, dataset, DAY, 86_400) for tag in scopes(dataset)), dataset.name


def test_there_are_quiet_minutes_and_quiet_scopes() -> None:
    minutes = truths(HTTP, 60, ZONES[0], DAY, DAY + 3_600)
    assert 0 < len(minutes) < 60
    pairs = [(dataset, tag) for dataset in (HTTP, FIREWALL) for tag in ZONES]
    quiet = [pair for pair in pairs if not EVENTS.truth(pair[1], pair[0], DAY, 86_400)]
    assert 0 < len(quiet) < len(pairs) / 2


@pytest.mark.parametrize("dataset", [FIREWALL, WORKERS])
def test_the_first_scope_has_more_combinations_of_labels_than_a_dataset_keeps(dataset: Dataset) -> None:
    assert dataset.top is not None
    assert len(EVENTS.truth(scopes(dataset)[0], dataset, DAY, 3_600)) > 4 * dataset.top.keep


def test_a_state_is_no_sum_and_moves_slowly() -> None:
    hours = truths(KV_STORAGE, 3_600, ACCOUNTS[0], DAY, DAY + 86_400)
    labels = next(iter(hours[DAY]))
    states = [truth[labels]["max", "byteCount"] for truth in hours.values() if labels in truth]
    day = EVENTS.truth(ACCOUNTS[0], KV_STORAGE, DAY, 86_400)[labels]["max", "byteCount"]
    assert day == max(states) < sum(states)
    assert len(set(states)) > 1


def test_the_truth_of_a_rollup_is_the_fleets() -> None:
    bucket = FLEET.bucket(ZONES[0], DAY, 3_600)
    assert bucket is not None
    truth = EVENTS.truth(ZONES[0], HTTP_REQUESTS, DAY, 3_600)
    assert truth[()]["sum", "requests"] == bucket.requests
    assert truth[()]["uniq", "uniques"] == bucket.unique_visitors


def test_a_scope_that_is_not_in_the_fleet_is_refused() -> None:
    with pytest.raises(KeyError):
        EVENTS.truth("0" * 32, HTTP, DAY, 60)


def amount(settling: Settling, age: float) -> int:
    """How many requests of the hour before now are visible when it is `age` seconds old."""
    stream = EVENTS.stream(ZONES[0], EVENTS.nodes[ScopeKind.ZONE, "httpRequestsAdaptiveGroups"])
    visible = EVENTS.visible(stream, DAY, DAY + 3_600, now=DAY + 3_600 + age, settling=settling)
    return sum(amount for _, amount, _ in visible)


def test_what_is_visible_grows_until_it_is_the_truth() -> None:
    seen = [amount(Settling(), age) for age in (-3_600, -1_800, 0, 60, 240, 300, 9_000)]
    assert seen[0] == 0
    assert seen == sorted(seen)
    assert len(set(seen)) == 6
    assert seen[-1] == amount(AT_ONCE, 0)


def test_a_window_ends_just_before_its_end() -> None:
    stream = EVENTS.stream(ZONES[0], EVENTS.nodes[ScopeKind.ZONE, "httpRequestsAdaptiveGroups"])
    everything = EVENTS.visible(stream, DAY, DAY + 3_600, now=NOW, settling=AT_ONCE)
    for _, _, second in everything[:9]:
        halves = [
            EVENTS.visible(stream, start, end, now=NOW, settling=AT_ONCE)
            for start, end in ((DAY, second), (second, DAY + 3_600))
        ]
        assert sorted(halves[0] + halves[1]) == sorted(everything)


def test_what_is_held_up_comes_later() -> None:
    held = Settling(hold_ups=(HoldUp(ZONES[0], DAY, DAY + 3_600, 7_200, 100),))
    assert amount(held, 3_600) == 0
    assert amount(held, 7_200) == amount(AT_ONCE, 0)


def test_a_sample_is_counted_in_multiples_and_right_on_average() -> None:
    world = changed(WORLD, sampling=Sampling(most_counted=4_000))
    expected = EVENTS.truth(ZONES[0], HTTP, DAY, 3_600)[()]["count",]
    estimates = []
    for salt in map(str, range(40)):
        answer = ask_windows(changed(world, salt=salt), HTTP, 3_600, [ZONES[0]], DAY, DAY + 3_600)
        (row,) = rows_of(answer)[ZONES[0]]
        assert row["avg"]["sampleInterval"] == 10.0
        assert row["count"] % 10 == 0
        estimates.append(row["count"])
    # One of ten is kept, so the estimate's standard deviation is the square root of 9 times the count.
    deviation = (9 * expected) ** 0.5
    assert len(set(estimates)) > 1
    assert all(abs(each - expected) < 5 * deviation for each in estimates)
    assert abs(sum(estimates) / len(estimates) - expected) < 5 * deviation / len(estimates) ** 0.5


def test_little_traffic_is_not_sampled() -> None:
    steady = ZONES[1]
    rows = rows_of(ask_windows(changed(WORLD, sampling=Sampling()), HTTP, 60, [steady], DAY, DAY + 3_600))[steady]
    assert told(HTTP, 60, rows, DAY) == truths(HTTP, 60, steady, DAY, DAY + 3_600) != {}
    assert {row["avg"]["sampleInterval"] for row in rows} == {1.0}


def test_every_shipped_dataset_is_answered_with_its_truth_and_none_is_empty() -> None:
    shipped = shipped_datasets()
    world = world_of(FLEET, datasets=shipped)
    for dataset in shipped:
        tag = scopes(dataset)[0]
        rows = rows_of(ask_windows(world, dataset, 3_600, [tag], DAY, DAY + 3_600))[tag]
        truth = world.events.truth(tag, dataset, DAY, 3_600)
        assert truth, dataset.name
        assert told(dataset, 3_600, rows, DAY) == {DAY: truth}, dataset.name
