"""Several datasets in one request: one of them never costs another its windows."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.clocks import ManualClock
from tests.unit.cloudflare.datasets import (
    ACCOUNT_DATASETS,
    D1_QUERIES,
    HTTP_CACHE,
    HTTP_OVERVIEW,
    HTTP_REQUESTS,
    HTTP_STATUS,
    KV_STORED,
    WORKERS,
    ZONE_DATASETS,
    grains,
)
from tests.unit.cloudflare.fake import (
    NOW,
    Asked,
    FakeCloudflare,
    answer_of,
    error,
    refusal,
    requests_in,
    small_quota,
    tag,
    zone,
)
from worker.cloudflare import Account, Answered, Api, CloudflareApi, Dataset, ErrorKind, Failed, Samples, Scope
from worker.cloudflare.catalogue import ScopeKind
from worker.cloudflare.fetch import RETRIES_PER_GROUP
from worker.cloudflare.query import NODES_PER_QUERY
from worker.cloudflare.quota import Lease, Paused, Priority, Quota

FIRST = NOW - NOW % 60 - 6000
FIREWALL = replace(HTTP_OVERVIEW, name="firewall", grains=grains("firewallEventsAdaptiveGroups"), where=())
FIVE = (HTTP_REQUESTS, *ZONE_DATASETS, FIREWALL)
BY_NAME = {dataset.name: dataset for dataset in FIVE}
NODE_OF = {dataset.name: dataset.grain(60).node for dataset in (*FIVE, *ACCOUNT_DATASETS)}

Key = tuple[str, str, int]
Refuse = Callable[[Asked], httpx.Response | None]


def starts_of(count: int) -> range:
    return range(FIRST, FIRST + count * 60, 60)


def zones_of(count: int) -> list[Scope]:
    return [zone(number) for number in range(1, count + 1)]


@dataclass(frozen=True)
class Outcome:
    """What came of every window, by dataset, scope and start."""

    answered: Mapping[Key, Samples]
    failed: Mapping[Key, Failed]

    @property
    def kinds(self) -> dict[tuple[str, str], set[ErrorKind]]:
        found: dict[tuple[str, str], set[ErrorKind]] = {}
        for (dataset, scope, _), failed in self.failed.items():
            found.setdefault((dataset, scope), set()).add(failed.failure.kind)
        return found


async def fetched(api: CloudflareApi, datasets: Sequence[Dataset], scopes: Sequence[Scope], starts: range) -> Outcome:
    answers = await api.fetch(datasets, 60, scopes, starts)
    answered: dict[Key, Samples] = {}
    failed: dict[Key, Failed] = {}
    for each in answers:
        match each:
            case Answered(dataset, scope, windows):
                for start, samples in windows.items():
                    assert (dataset.name, scope.tag, start) not in answered
                    answered[dataset.name, scope.tag, start] = samples
                    assert (samples.values[:1] or [0])[0] == requests_in(scope.tag, start)
            case Failed(dataset, scope, run):
                for start in run:
                    assert (dataset.name, scope.tag, start) not in failed
                    failed[dataset.name, scope.tag, start] = each
    assert not answered.keys() & failed.keys()
    everything = {(dataset.name, scope.tag, start) for dataset in datasets for scope in scopes for start in starts}
    assert answered.keys() | failed.keys() == everything
    order = [(scope.tag, dataset.name) for scope in scopes for dataset in datasets]
    assert list(dict.fromkeys((each.scope.tag, each.dataset.name) for each in answers)) == order
    return Outcome(answered, failed)


def refusing(bad: Callable[[Asked], dict[str, Any] | None], status: int = 200) -> Refuse:
    def refuse(asked: Asked) -> httpx.Response | None:
        found = bad(asked)
        return refusal(found, status=status) if found else None

    return refuse


def alias_of(asked: Asked, dataset: Dataset) -> int | None:
    """The position of a dataset in a query, told by a field that only it has."""
    for number in range(len(asked.nodes)):
        if marks(dataset) in asked.text.split(f"r{number}: ", 1)[1].split(f"r{number + 1}: ", 1)[0]:
            return number
    return None


def marks(dataset: Dataset) -> str:
    return {
        "http_requests": "httpRequests1mGroups",
        "http_cache": "cacheStatus",
        "http_status": "clientRequestHTTPHost",
        "http_overview": 'eye\\"ball',
        "firewall": "firewallEventsAdaptiveGroups",
    }.get(dataset.name, NODE_OF[dataset.name])


# --- what is asked ---------------------------------------------------------------------------------------------------


async def test_five_datasets_of_ten_zones_are_one_query() -> None:
    fake = FakeCloudflare()
    outcome = await fetched(fake.api(), FIVE, zones_of(10), starts_of(1))
    assert len(outcome.answered) == 50
    (asked,) = fake.asked
    assert asked.nodes == tuple(NODE_OF[dataset.name] for dataset in FIVE)
    assert asked.limits == (2, 10_000, 10_000, 2, 2)


async def test_more_datasets_are_asked_in_further_queries() -> None:
    fake = FakeCloudflare()
    datasets = [replace(HTTP_OVERVIEW, name=f"overview{number}") for number in range(12)]
    await fetched(fake.api(), datasets, zones_of(20), starts_of(1))
    assert sorted(len(asked.nodes) for asked in fake.asked) == [2, 2, 10, 10]
    assert max(len(asked.nodes) for asked in fake.asked) == NODES_PER_QUERY


async def test_accounts_are_asked_one_by_one() -> None:
    fake = FakeCloudflare()
    accounts = [Account(tag(number), f"Account {number}") for number in (2, 1)]
    outcome = await fetched(fake.api(), (KV_STORED, D1_QUERIES), accounts, starts_of(3))
    assert not outcome.failed
    assert [asked.zones for asked in fake.asked] == [(tag(1),), (tag(2),)]


async def test_a_node_without_a_time_dimension_is_asked_window_by_window_and_does_not_hold_others_up() -> None:
    fake = FakeCloudflare()
    outcome = await fetched(fake.api(), (KV_STORED, WORKERS, D1_QUERIES), [Account(tag(1))], starts_of(4))
    assert not outcome.failed
    assert sorted((asked.nodes, asked.since_seconds - FIRST) for asked in fake.asked) == [
        ((NODE_OF["kv_stored"], NODE_OF["d1_queries"]), 0),
        *(((NODE_OF["workers"],), window * 60) for window in range(4)),
    ]
    fake.asked.clear()
    await fetched(fake.api(), (KV_STORED, WORKERS, D1_QUERIES), [Account(tag(1))], starts_of(1))
    assert len(fake.asked) == 1


@pytest.mark.parametrize(
    ("datasets", "scopes"),
    [
        ((HTTP_CACHE, KV_STORED), [zone(1)]),
        ((KV_STORED,), [zone(1)]),
        ((HTTP_CACHE,), [zone(1), Account(tag(1))]),
        ((HTTP_CACHE, HTTP_CACHE), [zone(1)]),
    ],
)
async def test_what_cannot_be_asked_together_is_a_programming_error(
    datasets: Sequence[Dataset], scopes: Sequence[Scope]
) -> None:
    with pytest.raises(ValueError, match="same kind of scope"):
        await FakeCloudflare().api().fetch(datasets, 60, scopes, starts_of(1))


async def test_queries_stay_small_enough_for_the_rows_that_were_seen() -> None:
    fake = FakeCloudflare()
    api = fake.api()
    await fetched(api, (HTTP_REQUESTS, HTTP_CACHE), zones_of(10), starts_of(60))
    # 115 rows a window and zone are expected at first: 52 windows; then 102.
    assert [len(range(asked.since_seconds, asked.until_seconds, 60)) for asked in fake.asked] == [52, 8]
    fake.asked.clear()
    await fetched(api, (HTTP_REQUESTS, HTTP_CACHE), zones_of(10), starts_of(60))
    assert [len(range(asked.since_seconds, asked.until_seconds, 60)) for asked in fake.asked] == [58, 2]


# --- one dataset's mistake -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("last", ["alias", "node"])
async def test_a_dataset_of_a_zone_that_the_path_points_to_is_dealt_with_alone(last: str) -> None:
    def bad(asked: Asked) -> dict[str, Any] | None:
        number = alias_of(asked, FIREWALL)
        if number is None or tag(3) not in asked.zones:
            return None
        end = f"r{number}" if last == "alias" else asked.nodes[number]
        path = ["viewer", "zones", str(asked.zones.index(tag(3))), end]
        return error(f"zone '{tag(3)}' does not have access to the path", path=path)

    fake = FakeCloudflare(refuse=refusing(bad))
    outcome = await fetched(fake.api(), FIVE, zones_of(10), starts_of(1))
    assert outcome.kinds == {("firewall", tag(3)): {ErrorKind.PLAN_DATASET}}
    assert [(len(asked.nodes), len(asked.zones)) for asked in fake.asked] == [(5, 10), (5, 9), (4, 1)]


async def test_a_node_that_a_plan_lacks_is_lacking_for_all_datasets_that_are_made_of_it() -> None:
    node = NODE_OF["http_cache"]

    def bad(asked: Asked) -> dict[str, Any] | None:
        if node not in asked.nodes or tag(1) not in asked.zones:
            return None
        path = ["viewer", "zones", "0", f"r{asked.nodes.index(node)}"]
        return error(f"zone '{tag(1)}' does not have access to the path", path=path)

    fake = FakeCloudflare(refuse=refusing(bad))
    outcome = await fetched(fake.api(), FIVE, zones_of(2), starts_of(1))
    assert set(outcome.kinds) == {(dataset.name, tag(1)) for dataset in ZONE_DATASETS}
    assert len(fake.asked) == 3


async def test_a_zone_that_the_error_names_without_a_dataset_is_traced_to_it() -> None:
    def bad(asked: Asked) -> dict[str, Any] | None:
        guilty = alias_of(asked, HTTP_STATUS) is not None and tag(3) in asked.zones
        return error(f"zone '{tag(3)}': who knows") if guilty else None

    fake = FakeCloudflare(refuse=refusing(bad))
    outcome = await fetched(fake.api(), FIVE, zones_of(10), starts_of(1))
    assert outcome.kinds == {("http_status", tag(3)): {ErrorKind.REFUSED}}
    # The other zones together, then five datasets of the zone in halves.
    assert [len(asked.zones) for asked in fake.asked] == [10, 9, *[1] * (len(fake.asked) - 2)]
    assert len(fake.asked) <= 2 + 1 + 8


@pytest.mark.parametrize("by", ["path", "text", "field"])
async def test_a_node_or_field_that_several_datasets_ask_for_blames_none_of_them_before_it_is_alone(by: str) -> None:
    node = NODE_OF["http_status"]

    def bad(asked: Asked) -> dict[str, Any] | None:
        if alias_of(asked, HTTP_STATUS) is None or tag(3) not in asked.zones:
            return None
        match by:
            case "path":
                path = ["viewer", "zones", str(asked.zones.index(tag(3))), node]
                return error(f"zone '{tag(3)}': who knows", path=path)
            case "text":
                return error(f"zone '{tag(3)}': who knows why {node} fails")
            case _:
                return error(f"zone '{tag(3)}' does not have access to the field 'count'")

    fake = FakeCloudflare(refuse=refusing(bad))
    outcome = await fetched(fake.api(), FIVE, zones_of(10), starts_of(1))
    assert set(outcome.kinds) == {("http_status", tag(3))}
    # The rest, and the three or four datasets of the zone; then those in halves.
    assert len(fake.asked) <= 3 + 6


@pytest.mark.parametrize("message", ["Zone {zone} has exceeded its rate limit", "zones [{zone}] are not authorized"])
async def test_what_is_wrong_with_a_zone_as_a_whole_fails_all_its_datasets_at_once(message: str) -> None:
    text = message.format(zone=tag(3))
    fake = FakeCloudflare(refuse=refusing(lambda asked: error(text) if tag(3) in asked.zones else None))
    outcome = await fetched(fake.api(), FIVE, zones_of(10), starts_of(1))
    assert set(outcome.kinds) == {(dataset.name, tag(3)) for dataset in FIVE}
    assert len(fake.asked) == 2


async def test_a_zone_whose_quota_is_used_up_is_not_asked_for_with_other_datasets_either() -> None:
    text = f"Zone {tag(3)} has exceeded its rate limit"
    fake = FakeCloudflare(refuse=refusing(lambda asked: error(text, code="budget") if tag(3) in asked.zones else None))
    api = fake.api()
    await fetched(api, (HTTP_CACHE,), zones_of(5), starts_of(1))
    fake.asked.clear()
    outcome = await fetched(api, (FIREWALL,), zones_of(5), starts_of(1))
    assert outcome.kinds == {("firewall", tag(3)): {ErrorKind.RATE}}
    assert [len(asked.zones) for asked in fake.asked] == [4]


async def test_queries_wait_for_the_quota_by_their_priority() -> None:
    seen: list[Priority] = []

    class Watched(Quota):
        async def acquire(
            self, api: Api, priority: Priority = Priority.LIVE, scopes: Iterable[str] = (), *, account: str = ""
        ) -> Lease | Paused:
            seen.append(priority)
            return await super().acquire(api, priority, scopes, account=account)

    clock = ManualClock(NOW)
    api = FakeCloudflare().api(clock, quota=Watched(clock))
    await api.fetch((HTTP_CACHE,), 60, zones_of(1), starts_of(1), priority=Priority.BACKFILL)
    await api.fetch((HTTP_CACHE,), 60, zones_of(1), starts_of(1))
    assert seen == [Priority.BACKFILL, Priority.LIVE]


async def test_an_account_that_the_error_names_fails_alone() -> None:
    text = f"Account {tag(1)} has exceeded its rate limit"
    fake = FakeCloudflare(refuse=refusing(lambda asked: error(text, code="budget") if tag(1) in asked.zones else None))
    answers = await fake.api().fetch((KV_STORED, D1_QUERIES), 60, [Account(tag(1))], starts_of(1))
    assert [each.failure.kind for each in answers if isinstance(each, Failed)] == [ErrorKind.RATE] * 2
    assert len(fake.asked) == 1


@pytest.mark.parametrize(
    ("response", "kind"),
    [
        (refusal(error("who knows")), ErrorKind.REFUSED),
        (refusal(error("unable to execute query")), ErrorKind.SERVER),
        (httpx.Response(504, content=b"<html>"), ErrorKind.SERVER),
        (refusal(error("number of fields can't be more than 70")), ErrorKind.FIELDS),
        (refusal(error("query consumed excessive resources"), status=429), ErrorKind.COST),
        (httpx.Response(200, content=b'{"data": {"viewer": {"zones": [NaN]}}}'), ErrorKind.MALFORMED),
    ],
)
async def test_a_dataset_that_makes_every_query_fail_costs_no_other_its_windows(
    response: httpx.Response, kind: ErrorKind
) -> None:
    fake = FakeCloudflare(refuse=lambda asked: response if alias_of(asked, HTTP_CACHE) is not None else None)
    outcome = await fetched(fake.api(), FIVE, zones_of(2), starts_of(1))
    assert outcome.kinds == {("http_cache", each.tag): {kind} for each in zones_of(2)}
    assert len(fake.asked) <= 1 + RETRIES_PER_GROUP


async def test_a_dataset_that_had_no_answer_is_asked_alone_and_last_until_it_has_one() -> None:
    fake = FakeCloudflare(refuse=lambda asked: httpx.Response(504) if alias_of(asked, HTTP_REQUESTS) == 0 else None)
    api = fake.api()
    await fetched(api, FIVE, zones_of(2), starts_of(1))
    fake.asked.clear()
    outcome = await fetched(api, FIVE, zones_of(2), starts_of(1))
    assert [len(asked.nodes) for asked in fake.asked] == [4, 1]
    assert {dataset for dataset, _ in outcome.kinds} == {"http_requests"}
    fake.refuse = lambda _: None
    await fetched(api, FIVE, zones_of(2), starts_of(1))
    fake.asked.clear()
    await fetched(api, FIVE, zones_of(2), starts_of(1))
    assert [len(asked.nodes) for asked in fake.asked] == [5]


async def test_an_outage_is_told_from_a_bad_dataset_within_six_queries() -> None:
    fake = FakeCloudflare(refuse=lambda _: httpx.Response(502))
    api = fake.api()
    outcome = await fetched(api, FIVE, zones_of(100), starts_of(1))
    assert {kind for kinds in outcome.kinds.values() for kind in kinds} == {ErrorKind.SERVER}
    assert len(fake.asked) == 6
    await fetched(api, FIVE, zones_of(100), starts_of(1))
    fake.refuse = lambda _: None
    assert not (await fetched(api, FIVE, zones_of(100), starts_of(1))).failed


async def test_even_three_bad_datasets_do_not_keep_the_others_from_their_windows_for_long() -> None:
    bad = FIVE[:3]
    fake = FakeCloudflare(
        refuse=lambda asked: httpx.Response(504) if any(alias_of(asked, each) is not None for each in bad) else None
    )
    api = fake.api()
    await fetched(api, FIVE, zones_of(2), starts_of(1))
    fake.asked.clear()
    outcome = await fetched(api, FIVE, zones_of(2), starts_of(1))
    assert {dataset for dataset, _ in outcome.kinds} == {dataset.name for dataset in bad}
    assert [len(asked.nodes) for asked in fake.asked] == [2, 1, 1, 1]


async def test_a_field_that_a_plan_denies_is_dropped_for_that_dataset_and_zone_only() -> None:
    def bad(asked: Asked) -> dict[str, Any] | None:
        if tag(2) in asked.zones and "edgeResponseBytes" in asked.text:
            return error(f"zone '{tag(2)}' does not have access to the field 'edgeresponsebytes'")
        return None

    # The condition of HTTP_CACHE does not matter here, but its name contains the field's.
    fake = FakeCloudflare(refuse=refusing(bad))
    api = fake.api()
    answers = await api.fetch(FIVE, 60, zones_of(4), starts_of(1))
    dropped = {(each.dataset.name, each.scope.tag): each.dropped for each in answers if isinstance(each, Answered)}
    assert {pair: fields for pair, fields in dropped.items() if fields} == {
        ("http_cache", tag(2)): {"sum_edgeResponseBytes"}
    }
    assert len(dropped) == 20
    fake.asked.clear()
    await fetched(api, FIVE, zones_of(4), starts_of(1))
    assert [asked.zones for asked in fake.asked] == [(tag(1), tag(3), tag(4)), (tag(2),)]


async def test_a_label_that_a_plan_denies_is_the_end_of_the_dataset_not_of_the_node() -> None:
    def bad(asked: Asked) -> dict[str, Any] | None:
        if tag(2) in asked.zones and "cacheStatus" in asked.text:
            return error(f"zone '{tag(2)}' does not have access to the field 'cachestatus'")
        return None

    fake = FakeCloudflare(refuse=refusing(bad))
    outcome = await fetched(fake.api(), FIVE, zones_of(3), starts_of(1))
    assert outcome.kinds == {("http_cache", tag(2)): {ErrorKind.PLAN_FIELD}}


# --- size ------------------------------------------------------------------------------------------------------------


async def test_too_many_nodes_are_halved_and_the_ceiling_is_remembered() -> None:
    text = "in combination, your request queries too many nodes, zones and accounts"
    fake = FakeCloudflare(
        refuse=refusing(lambda asked: error(text) if len(asked.nodes) * len(asked.zones) > 20 else None, status=429)
    )
    api = fake.api()
    assert not (await fetched(api, FIVE, zones_of(10), starts_of(1))).failed
    assert [len(asked.nodes) * len(asked.zones) for asked in fake.asked] == [50, 25, 10, 10, 5, 10, 10, 5]
    fake.asked.clear()
    assert not (await fetched(api, FIVE, zones_of(10), starts_of(1))).failed
    assert [(len(asked.nodes), len(asked.zones)) for asked in fake.asked] == [(5, 2)] * 5


async def test_a_span_that_is_too_wide_for_one_node_does_not_narrow_the_others() -> None:
    def bad(asked: Asked) -> dict[str, Any] | None:
        number = alias_of(asked, FIREWALL)
        if number is None or asked.until_seconds - asked.since_seconds <= 600:
            return None
        path = ["viewer", "zones", "0", f"r{number}"]
        return error("cannot request a time range wider than 10m, but your query time range spans 1h", path=path)

    fake = FakeCloudflare(refuse=refusing(bad))
    api = fake.api()
    datasets = (HTTP_OVERVIEW, FIREWALL, replace(HTTP_OVERVIEW, name="another"))
    assert not (await fetched(api, datasets, zones_of(3), starts_of(60))).failed
    assert [len(asked.nodes) for asked in fake.asked] == [3, 2, *[1] * 7]
    fake.asked.clear()
    assert not (await fetched(api, datasets, zones_of(3), starts_of(60))).failed
    assert sorted(len(range(asked.since_seconds, asked.until_seconds, 60)) for asked in fake.asked) == [10] * 6 + [60]


async def test_a_smaller_page_is_asked_for_from_then_on() -> None:
    def bad(asked: Asked) -> dict[str, Any] | None:
        return error("limit must be positive number and not greater than 500") if max(asked.limits) > 500 else None

    fake = FakeCloudflare(refuse=refusing(bad, status=400))
    api = fake.api()
    datasets = (HTTP_OVERVIEW, HTTP_CACHE)
    assert not (await fetched(api, datasets, zones_of(3), starts_of(4))).failed
    fake.asked.clear()
    assert not (await fetched(api, datasets, zones_of(3), starts_of(4))).failed
    assert [asked.limits for asked in fake.asked] == [(5, 500)]


def cache_rows(asked: Asked, per_window: int) -> list[dict[str, Any]]:
    """As many rows of HTTP_CACHE as there are in the windows asked, cut at the limit."""
    rows = [
        {
            "dimensions": {
                "start": f"2025-06-15T{start // 3600 % 24:02}:{start // 60 % 60:02}:00Z",
                "cacheStatus": f"{n}",
            },
            "count": 1,
            "sum": {"edgeResponseBytes": 1, "originResponseDurationMs": 1},
            "avg": {"sampleInterval": 1},
        }
        for start in range(asked.since_seconds, asked.until_seconds, 60)
        for n in range(per_window)
    ]
    return rows[: asked.limits[0]]


async def test_a_full_page_is_asked_for_in_less_time_and_remembered() -> None:
    def refuse(asked: Asked) -> httpx.Response:
        per_window = {tag(1): 2, tag(2): 900}
        return httpx.Response(
            200, content=answer_of({each: [cache_rows(asked, per_window[each])] for each in asked.zones})
        )

    fake = FakeCloudflare(refuse=refuse)
    api = fake.api()
    spans: list[tuple[int, int]] = []
    for _ in range(2):
        answers = await api.fetch((HTTP_CACHE,), 60, zones_of(2), starts_of(24))
        assert all(isinstance(each, Answered) for each in answers)
        (full,) = (each for each in answers if isinstance(each, Answered) and each.scope.tag == tag(2))
        assert {samples.rows for samples in full.windows.values()} == {900}
        assert {samples.folded for samples in full.windows.values()} == {897}
        spans = [(len(range(asked.since_seconds, asked.until_seconds, 60)), len(asked.zones)) for asked in fake.asked]
        fake.asked.clear()
    assert spans == [(4, 2)] * 6


async def test_a_single_window_that_does_not_fit_a_page_says_what_to_do() -> None:
    def refuse(asked: Asked) -> httpx.Response:
        rows = {tag(1): 2, tag(2): 10_000}
        return httpx.Response(200, content=answer_of({each: [cache_rows(asked, rows[each])] for each in asked.zones}))

    fake = FakeCloudflare(refuse=refuse)
    answers = await fake.api().fetch((HTTP_CACHE,), 60, zones_of(2), starts_of(2))
    failed = [each for each in answers if isinstance(each, Failed)]
    assert [(each.scope.tag, each.failure.kind) for each in failed] == [(tag(2), ErrorKind.TRUNCATED)] * 2
    assert "set a smaller CF_BUCKET_SECONDS, or leave http_cache out of CF_DATASETS" in failed[0].failure.message
    assert len(fake.asked) == 1 + 2


# --- everything at once ----------------------------------------------------------------------------------------------

MESSAGES = {
    ErrorKind.PLAN_DATASET: "zone '{zone}' does not have access to the path",
    ErrorKind.AUTH_SCOPE: "requested zone is not authorized",
    ErrorKind.SERVER: "unable to execute query",
    ErrorKind.REFUSED: "who knows",
    ErrorKind.COST: "query consumed excessive resources",
}


@dataclass(frozen=True)
class Script:
    """How Cloudflare fails: which datasets of which zones, how it says so, and what is too large for it."""

    bad: Mapping[tuple[str, int], ErrorKind]
    named: str
    says_all: bool
    ceiling: int
    widest: int

    def refuse(self, asked: Asked) -> httpx.Response | None:
        if len(asked.nodes) * len(asked.zones) > self.ceiling:
            return refusal(error("in combination, your request queries too many nodes"), status=429)
        if asked.until_seconds - asked.since_seconds > self.widest:
            return refusal(error(f"cannot request a time range wider than {self.widest}s"))
        errors = [
            found for (name, number), kind in self.bad.items() if (found := self._error(asked, name, number, kind))
        ]
        return refusal(*(errors if self.says_all else errors[:1])) if errors else None

    def _error(self, asked: Asked, name: str, number: int, kind: ErrorKind) -> dict[str, Any] | None:
        position = alias_of(asked, BY_NAME[name])
        if position is None or tag(number) not in asked.zones:
            return None
        end = {"alias": [f"r{position}"], "node": [asked.nodes[position]]}.get(self.named, [])
        path = ["viewer", "zones", str(asked.zones.index(tag(number))), *end]
        text = MESSAGES[kind].format(zone=tag(number)) + (f" zone {tag(number)}" if self.named == "message" else "")
        return error(text, path=path if self.named in ("index", "alias", "node") else None)

    def lost(self, count: int) -> set[tuple[str, str]]:
        """What may go without its windows: what is bad, and what nobody could tell from it."""
        found = set()
        for (name, number), kind in self.bad.items():
            if number > count:
                continue
            found.add((name, tag(number)))
            if kind is ErrorKind.PLAN_DATASET:  # is about the node
                found |= {(each.name, tag(number)) for each in FIVE if NODE_OF[each.name] == NODE_OF[name]}
            if kind is ErrorKind.AUTH_SCOPE and self.named == "message":  # is about the zone
                found |= {(each.name, tag(number)) for each in FIVE}
            if (
                kind is ErrorKind.SERVER and self.named == "nothing"
            ):  # is about Cloudflare; the collector asks zones alone
                found |= {(name, tag(other)) for other in range(1, count + 1)}
        return found


SCRIPTS = st.builds(
    Script,
    bad=st.dictionaries(
        st.tuples(st.sampled_from(list(BY_NAME)), st.integers(1, 12)), st.sampled_from(sorted(MESSAGES)), max_size=4
    ),
    named=st.sampled_from(["message", "index", "alias", "node", "nothing"]),
    says_all=st.booleans(),
    ceiling=st.sampled_from([50, 50, 7]),
    widest=st.sampled_from([3600, 3600, 300]),
)


@settings(max_examples=40, deadline=None)
@given(script=SCRIPTS, count=st.integers(1, 12), windows=st.integers(1, 12))
async def test_every_window_has_one_answer_and_innocent_datasets_soon_have_theirs(
    script: Script, count: int, windows: int
) -> None:
    fake = FakeCloudflare(refuse=script.refuse)
    clock = ManualClock(NOW)
    api = fake.api(clock, quota=small_quota(clock, graphql=1_000_000, total=1_000_000))  # nobody advances the clock
    groups = 5 * count * windows if script.ceiling < 50 or script.widest < 3600 else 2
    lost = script.lost(count)
    kinds: Mapping[tuple[str, str], set[ErrorKind]] = {}
    for _ in range(6):
        fake.asked.clear()
        kinds = (await fetched(api, FIVE, zones_of(count), starts_of(windows))).kinds
        assert len(fake.asked) <= groups * (1 + RETRIES_PER_GROUP)
        if kinds.keys() <= lost:
            break
        await clock.advance(60)
    assert kinds.keys() <= lost
    assert {(name, tag(number)) for name, number in script.bad if number <= count} <= kinds.keys()


@settings(max_examples=20, deadline=None)
@given(
    answers=st.lists(
        st.sampled_from(["ok", "server", "rate", "garbage", "refused", "missing"]), min_size=1, max_size=9
    ),
    kind=st.sampled_from(list(ScopeKind)),
    windows=st.integers(1, 70),
)
async def test_whatever_cloudflare_answers_in_turn_every_window_has_one_answer(
    answers: list[str], kind: ScopeKind, windows: int
) -> None:
    responses = {
        "server": httpx.Response(502),
        "rate": refusal(error(f"Zone {tag(1)} has exceeded its rate limit", code="budget")),
        "garbage": httpx.Response(200, content=b'{"data": {"viewer": {"zones": [{"zoneTag": "'),
        "refused": refusal(error("who knows")),
        "missing": httpx.Response(200, content=answer_of({}, kind)),
    }
    fake = FakeCloudflare()
    fake.refuse = lambda _: responses.get(answers[len(fake.asked) % len(answers)])
    zones = kind is ScopeKind.ZONE
    scopes: list[Scope] = zones_of(11) if zones else [Account(tag(1)), Account(tag(2))]
    datasets = FIVE if zones else ACCOUNT_DATASETS
    clock = ManualClock(NOW)
    api = fake.api(clock, quota=small_quota(clock, graphql=1_000_000, total=1_000_000))  # nobody advances the clock
    await fetched(api, datasets, scopes, starts_of(windows))
    assert len(fake.asked) <= (4 + 2 * windows) * (1 + RETRIES_PER_GROUP)
