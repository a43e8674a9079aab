import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.clocks import ManualClock
from tests.unit.cloudflare.datasets import HTTP_REQUESTS
from tests.unit.cloudflare.fake import (
    NOW,
    Asked,
    FakeCloudflare,
    answer,
    error,
    instant,
    refusal,
    requests_in,
    row,
    small_quota,
    tag,
    zone,
)
from worker.cloudflare import (
    WINDOWS_PER_QUERY,
    ZONES_PER_QUERY,
    Answered,
    Api,
    CloudflareApi,
    ErrorKind,
    Failed,
    Priority,
    Samples,
    ScopeAnswer,
    Zone,
)
from worker.cloudflare.fetch import RETRIES_PER_GROUP
from worker.series import parse_label_block

FIRST = NOW - NOW % 60 - 6000


def starts_of(count: int, width_seconds: int = 60) -> range:
    return range(FIRST, FIRST + count * width_seconds, width_seconds)


def zones_of(count: int) -> list[Zone]:
    return [zone(number) for number in range(1, count + 1)]


@dataclass(frozen=True)
class Outcome:
    """What came of every window, checked to be exactly one thing."""

    answered: Mapping[tuple[str, int], Samples]
    failed: Mapping[tuple[str, int], ErrorKind]
    answers: Sequence[ScopeAnswer]

    @property
    def kinds(self) -> dict[str, set[ErrorKind]]:
        """The kinds of failure of each zone that has any."""
        found: dict[str, set[ErrorKind]] = {}
        for (zone_tag, _), kind in self.failed.items():
            found.setdefault(zone_tag, set()).add(kind)
        return found

    def failure(self, number: int) -> Failed:
        return next(each for each in self.answers if isinstance(each, Failed) and each.scope.tag == tag(number))


async def fetched(api: CloudflareApi, zones: Sequence[Zone], starts: range) -> Outcome:
    answers = await api.fetch([HTTP_REQUESTS], starts.step, zones, starts)
    answered: dict[tuple[str, int], Samples] = {}
    failed: dict[tuple[str, int], ErrorKind] = {}
    for each in answers:
        match each:
            case Answered(scope=of, windows=windows):
                assert list(windows) == sorted(windows)
                for start, samples in windows.items():
                    assert (of.tag, start) not in answered
                    answered[of.tag, start] = samples
                    assert requests(samples) == requests_in(of.tag, start)
            case Failed(scope=of, starts=runs, failure=failure):
                for start in runs:
                    assert (of.tag, start) not in failed
                    failed[of.tag, start] = failure.kind
    assert not answered.keys() & failed.keys()
    assert answered.keys() | failed.keys() == {(each.tag, start) for each in zones for start in starts}
    return Outcome(answered, failed, answers)


def requests(samples: Samples) -> float:
    for block, value in zip(samples.series, samples.values, strict=True):
        if parse_label_block(block)["__name__"] == "cloudflare_zone_requests":
            return value
    pytest.fail("no cloudflare_zone_requests")


Refuse = Callable[[Asked], httpx.Response | None]


def naming(bad: Iterable[int], message: str, *, code: str = "authz") -> Refuse:
    """Refuses as long as one of these zones is asked for; the message names the first of them."""
    tags = [tag(number) for number in bad]

    def refuse(asked: Asked) -> httpx.Response | None:
        guilty = [each for each in asked.zones if each in tags]
        return refusal(error(message.format(zone=guilty[0]), code=code)) if guilty else None

    return refuse


# --- what is asked ---------------------------------------------------------------------------------------------------


async def test_ten_zones_and_sixty_windows_are_one_query() -> None:
    fake = FakeCloudflare()
    outcome = await fetched(fake.api(), zones_of(10), starts_of(60))
    assert len(outcome.answered) == 600
    (asked,) = fake.asked
    assert (asked.since_seconds, asked.until_seconds, asked.limit) == (FIRST, FIRST + 3600, 61)


async def test_more_are_asked_in_groups_oldest_windows_first() -> None:
    fake = FakeCloudflare()
    outcome = await fetched(fake.api(), zones_of(23), starts_of(130))
    assert not outcome.failed
    assert len(fake.asked) == 3 * 3
    assert [asked.since_seconds for asked in fake.asked] == sorted(asked.since_seconds for asked in fake.asked)
    assert max(len(asked.zones) for asked in fake.asked) == ZONES_PER_QUERY
    assert max(asked.limit for asked in fake.asked) == WINDOWS_PER_QUERY + 1


@pytest.mark.parametrize("width", HTTP_REQUESTS.widths_seconds)
async def test_every_width_can_be_fetched(width: int) -> None:
    fake = FakeCloudflare(width_seconds=width)
    first = NOW - NOW % width - 3 * width
    outcome = await fetched(fake.api(), zones_of(2), range(first, first + 3 * width, width))
    assert len(outcome.answered) == 6
    assert fake.asked[0].node == HTTP_REQUESTS.grain(width).node


async def test_answers_come_in_the_order_of_the_zones_asked() -> None:
    zones = [zone(3), zone(1), zone(2)]
    outcome = await fetched(FakeCloudflare().api(), zones, starts_of(2))
    assert [each.scope for each in outcome.answers] == zones


async def test_nothing_asked_is_nothing_sent() -> None:
    fake = FakeCloudflare()
    assert await fake.api().fetch([HTTP_REQUESTS], 60, [], starts_of(1)) == []
    assert await fake.api().fetch([HTTP_REQUESTS], 60, [zone(1)], []) == []
    assert fake.asked == []


@pytest.mark.parametrize("starts", [[FIRST + 1], [FIRST, FIRST + 120], [FIRST + 60, FIRST], [FIRST, FIRST]])
async def test_starts_that_are_no_run_of_windows_are_a_programming_error(starts: list[int]) -> None:
    with pytest.raises(ValueError, match="aligned, ascending and without a gap"):
        await FakeCloudflare().api().fetch([HTTP_REQUESTS], 60, [zone(1)], starts)


# --- one zone's mistake ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "kind"),
    [
        ("zone '{zone}' does not have access to the path", ErrorKind.PLAN_DATASET),
        ("zones [{zone}] are not authorized", ErrorKind.AUTH_SCOPE),
        ("zone '{zone}' does not have access to the field 'clientasn'", ErrorKind.PLAN_FIELD),
        ("Zone {zone} has exceeded its rate limit", ErrorKind.RATE),
        ("zone {zone}: internal server error", ErrorKind.SERVER),
    ],
)
async def test_a_zone_that_the_error_names_fails_alone_and_the_others_are_asked_again(
    message: str, kind: ErrorKind
) -> None:
    fake = FakeCloudflare(refuse=naming([4], message))
    outcome = await fetched(fake.api(), zones_of(10), starts_of(3))
    assert outcome.kinds == {tag(4): {kind}}
    assert len(fake.asked) == 2


async def test_several_errors_settle_several_zones_at_once() -> None:
    def refuse(asked: Asked) -> httpx.Response | None:
        denied = [each for each in asked.zones if int(each, 16) % 3 == 0]
        return (
            refusal(*(error(f"zone '{each}' does not have access to the path") for each in denied)) if denied else None
        )

    fake = FakeCloudflare(refuse=refuse)
    outcome = await fetched(fake.api(), zones_of(10), starts_of(1))
    assert set(outcome.kinds) == {tag(3), tag(6), tag(9)}
    assert len(fake.asked) == 2


@pytest.mark.parametrize("reversed_order", [False, True])
async def test_a_zone_that_the_path_points_to_is_asked_alone_before_it_is_blamed(*, reversed_order: bool) -> None:
    # The position is only certain if both sides count the same order.
    def refuse(asked: Asked) -> httpx.Response | None:
        if tag(7) not in asked.zones:
            return None
        order = asked.zones[::-1] if reversed_order else asked.zones
        path = ["viewer", "zones", str(order.index(tag(7))), asked.node]
        return refusal(error("unable to execute query", path=path))

    fake = FakeCloudflare(refuse=refuse)
    outcome = await fetched(fake.api(), zones_of(10), starts_of(2))
    assert outcome.kinds == {tag(7): {ErrorKind.SERVER}}
    assert len(fake.asked) <= (3 if not reversed_order else 1 + RETRIES_PER_GROUP)


@pytest.mark.parametrize("message", ["requested zone is not authorized", "something nobody has heard of"])
async def test_an_error_that_names_nothing_is_traced_by_halving_the_zones(message: str) -> None:
    bad = {tag(2), tag(9)}

    def refuse(asked: Asked) -> httpx.Response | None:
        return refusal(error(message)) if bad & set(asked.zones) else None

    fake = FakeCloudflare(refuse=refuse)
    outcome = await fetched(fake.api(), zones_of(10), starts_of(5))
    assert set(outcome.kinds) == bad
    assert len(outcome.answered) == 8 * 5
    assert len(fake.asked) <= 1 + RETRIES_PER_GROUP


async def test_even_ten_bad_zones_are_traced_within_the_allowance() -> None:
    fake = FakeCloudflare(refuse=lambda _: refusal(error("requested zone is not authorized")))
    outcome = await fetched(fake.api(), zones_of(10), starts_of(60))
    assert set(outcome.failed.values()) == {ErrorKind.AUTH_SCOPE}
    assert len(fake.asked) == 1 + 18


async def test_a_zone_that_is_left_out_without_an_error_is_missing() -> None:
    def refuse(asked: Asked) -> httpx.Response | None:
        return httpx.Response(200, content=answer({each: [] for each in asked.zones if each != tag(2)}))

    answers = await FakeCloudflare(refuse=refuse).api().fetch([HTTP_REQUESTS], 60, zones_of(3), [FIRST])
    assert [type(each) for each in answers] == [Answered, Failed, Answered]
    failed = answers[1]
    assert isinstance(failed, Failed)
    assert failed.failure.kind is ErrorKind.MISSING_ZONE


async def test_a_zone_with_a_bad_row_or_a_full_page_fails_alone() -> None:
    def refuse(asked: Asked) -> httpx.Response | None:
        good = [row(instant(FIRST), 1)]
        rows = {tag(1): good, tag(2): [row(instant(FIRST), -1)], tag(3): good * 2}
        return httpx.Response(200, content=answer({each: rows[each] for each in asked.zones}))

    fake = FakeCloudflare(refuse=refuse)
    answers = await fake.api().fetch([HTTP_REQUESTS], 60, zones_of(3), [FIRST])
    kinds = [each.failure.kind if isinstance(each, Failed) else "answered" for each in answers]
    assert kinds == ["answered", ErrorKind.MALFORMED, ErrorKind.TRUNCATED]
    assert len(fake.asked) == 1


async def test_partial_data_beside_an_error_is_never_taken() -> None:
    def refuse(asked: Asked) -> httpx.Response | None:
        rows = {each: [row(instant(FIRST), 99)] for each in asked.zones}
        whole = httpx.Response(200, content=answer(rows)).json()
        return httpx.Response(200, json=whole | {"errors": [error("unable to execute query")]})

    outcome = await fetched(FakeCloudflare(refuse=refuse).api(), zones_of(2), starts_of(1))
    assert set(outcome.failed.values()) == {ErrorKind.SERVER}


# --- plans -----------------------------------------------------------------------------------------------------------


def plan_without(fields: Mapping[int, str]) -> Refuse:
    def refuse(asked: Asked) -> httpx.Response | None:
        for number, field in fields.items():
            if tag(number) in asked.zones and field in asked.text:
                return refusal(error(f"zone '{tag(number)}' does not have access to the field '{field.lower()}'"))
        return None

    return refuse


async def test_a_field_that_a_plan_denies_is_dropped_for_that_zone_only_and_for_a_day() -> None:
    clock = ManualClock(NOW)
    fake = FakeCloudflare(refuse=plan_without({2: "browserMap"}))
    api = fake.api(clock)
    outcome = await fetched(api, zones_of(3), starts_of(2))
    assert not outcome.failed
    dropped = {each.scope.tag: each.dropped for each in outcome.answers if isinstance(each, Answered)}
    assert dropped == {tag(1): frozenset(), tag(2): {"sum_browserMap"}, tag(3): frozenset()}
    assert [("browserMap" in asked.text, asked.zones) for asked in fake.asked] == [
        (True, (tag(1), tag(2), tag(3))),
        (True, (tag(1), tag(3))),
        (False, (tag(2),)),
    ]
    fake.asked.clear()
    await fetched(api, zones_of(3), starts_of(2))
    assert sorted("browserMap" in asked.text for asked in fake.asked) == [False, True]
    await clock.advance(86_400)
    fake.asked.clear()
    await fetched(api, zones_of(3), starts_of(2))
    assert len(fake.asked) == 3


async def test_a_denied_total_is_absent_and_not_zero() -> None:
    fake = FakeCloudflare(refuse=plan_without({1: "encryptedBytes"}))
    (answered,) = await fake.api().fetch([HTTP_REQUESTS], 60, zones_of(1), starts_of(2))
    assert isinstance(answered, Answered)
    for samples in answered.windows.values():
        names = {parse_label_block(block)["__name__"] for block in samples.series}
        assert "cloudflare_zone_encrypted_response_bytes" not in names
        assert "cloudflare_zone_encrypted_requests" in names


async def test_several_fields_are_dropped_one_after_the_other() -> None:
    # `threats` stands in two places: first the total goes, then the part of the map.
    fake = FakeCloudflare(refuse=plan_without({1: "threats"}))
    (answered,) = await fake.api().fetch([HTTP_REQUESTS], 60, zones_of(1), starts_of(2))
    assert isinstance(answered, Answered)
    assert answered.dropped == {"sum_threats", "sum_countryMap_threats"}


async def test_zones_with_different_fields_are_never_asked_together() -> None:
    fake = FakeCloudflare(refuse=plan_without({1: "browserMap", 2: "contentTypeMap", 3: "browserMap"}))
    api = fake.api()
    await fetched(api, zones_of(4), starts_of(1))
    fake.asked.clear()
    outcome = await fetched(api, zones_of(4), starts_of(1))
    assert not outcome.failed
    assert sorted(asked.zones for asked in fake.asked) == [(tag(1), tag(3)), (tag(2),), (tag(4),)]


async def test_what_one_window_teaches_about_fields_holds_for_the_next_ones_of_the_same_run() -> None:
    # Two spans of windows with the same zones: the second one must not ask the zones together any more.
    fake = FakeCloudflare(refuse=plan_without({2: "browserMap"}))
    outcome = await fetched(fake.api(), zones_of(3), starts_of(WINDOWS_PER_QUERY + 5))
    assert not outcome.failed
    assert len(fake.asked) == 3 + 2
    for asked in fake.asked[1:]:
        assert ("browserMap" in asked.text) == (tag(2) not in asked.zones)


async def test_a_dataset_that_a_plan_denies_is_probed_again_after_an_hour() -> None:
    clock = ManualClock(NOW)
    fake = FakeCloudflare(refuse=naming([2], "zone '{zone}' does not have access to the path"))
    api = fake.api(clock)
    await fetched(api, zones_of(2), starts_of(1))
    assert len(fake.asked) == 2
    await clock.advance(3000)
    outcome = await fetched(api, zones_of(2), starts_of(1))
    assert len(fake.asked) == 3
    assert outcome.failure(2).failure.retry_after_seconds == pytest.approx(600)
    await clock.advance(600)
    fake.refuse = lambda _: None
    assert not (await fetched(api, zones_of(2), starts_of(1))).failed


async def test_zones_that_are_denied_leave_no_empty_places_in_the_groups() -> None:
    denied = [number for number in range(1, 31) if number % 3]
    fake = FakeCloudflare(refuse=naming(denied, "zone '{zone}' does not have access to the path"))
    api = fake.api()
    await fetched(api, zones_of(30), starts_of(1))
    fake.asked.clear()
    outcome = await fetched(api, zones_of(30), starts_of(1))
    assert [len(asked.zones) for asked in fake.asked] == [10]
    assert set(outcome.kinds) == {tag(number) for number in denied}


async def test_a_zone_without_permission_is_asked_again_after_five_minutes() -> None:
    clock = ManualClock(NOW)
    fake = FakeCloudflare(refuse=naming([2], "zones [{zone}] are not authorized"))
    api = fake.api(clock)
    await fetched(api, zones_of(2), starts_of(1))
    await clock.advance(299)
    await fetched(api, zones_of(2), starts_of(1))
    assert len(fake.asked) == 3
    await clock.advance(1)
    await fetched(api, zones_of(2), starts_of(1))
    assert len(fake.asked) == 5


async def test_a_denial_at_one_width_says_nothing_about_another_node() -> None:
    fake = FakeCloudflare(refuse=lambda asked: refusal(error("no access to the path")) if "1m" in asked.node else None)
    api = fake.api()
    await fetched(api, zones_of(1), starts_of(1))
    fake.width_seconds = 3600
    outcome = await fetched(api, zones_of(1), range(NOW - NOW % 3600 - 3600, NOW - NOW % 3600, 3600))
    assert not outcome.failed


# --- time ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spelling", ["cannot request data older than {0}s", "cannot request data older than {0}s, but"]
)
async def test_windows_that_are_kept_no_longer_fail_with_the_bound_and_the_newer_ones_are_fetched(
    spelling: str,
) -> None:
    reach = 4000

    def refuse(asked: Asked) -> httpx.Response | None:
        old = asked.since_seconds < NOW - reach
        return (
            refusal(error(spelling.format(reach), code="quota"), status=400) if old and tag(2) in asked.zones else None
        )

    fake = FakeCloudflare(refuse=refuse)
    outcome = await fetched(fake.api(), zones_of(3), starts_of(60))
    assert outcome.kinds == {tag(2): {ErrorKind.RETENTION}}
    assert outcome.failure(2).failure.bound_seconds == reach
    for start in starts_of(60):
        assert ((tag(2), start) in outcome.failed) == (start < NOW - reach)


async def test_windows_that_a_scope_was_refused_for_their_age_are_not_asked_for_again_within_the_hour() -> None:
    def refuse(asked: Asked) -> httpx.Response | None:
        old = asked.since_seconds < NOW - 4000 and tag(2) in asked.zones
        return refusal(error("cannot request data older than 4000s", code="quota"), status=400) if old else None

    clock = ManualClock(NOW)
    fake = FakeCloudflare(refuse=refuse)
    api = fake.api(clock)
    before = await fetched(api, zones_of(3), starts_of(60))
    asked = len(fake.asked)
    outcome = await fetched(api, zones_of(3), starts_of(60))

    assert outcome.failed == before.failed
    assert outcome.failure(2).failure == before.failure(2).failure
    assert len(fake.asked) == asked + 2, "all of the others at once, and what is left of this one"
    assert not [each for each in fake.asked[asked:] if tag(2) in each.zones and each.since_seconds < NOW - 4000]

    clock.set(NOW + 3600)
    fake.refuse = lambda _: None
    assert not (await fetched(api, zones_of(3), starts_of(60))).failed


async def test_a_retention_that_reaches_no_window_fails_them_all_and_asks_no_more() -> None:
    fake = FakeCloudflare(refuse=lambda _: refusal(error("cannot request data older than 60s")))
    outcome = await fetched(fake.api(), zones_of(1), starts_of(60))
    assert set(outcome.failed.values()) == {ErrorKind.RETENTION}
    assert len(fake.asked) == 1


@pytest.mark.parametrize(
    "message",
    [
        "query time range is too large for zone {zone}. Time range can't be wider than 600s, but it's 3600s",
        "cannot request a time range wider than 10m, but your query time range spans 1h",
    ],
)
async def test_a_span_that_is_too_wide_is_split_in_time_and_remembered_for_the_node(message: str) -> None:
    def refuse(asked: Asked) -> httpx.Response | None:
        wide = asked.until_seconds - asked.since_seconds > 600
        return refusal(error(message.format(zone=asked.zones[0]), code="quota")) if wide else None

    clock = ManualClock(NOW)
    fake = FakeCloudflare(refuse=refuse)
    api = fake.api(clock)
    assert not (await fetched(api, zones_of(10), starts_of(60))).failed
    assert len(fake.asked) == 1 + 6
    fake.asked.clear()
    assert not (await fetched(api, zones_of(10), starts_of(60))).failed
    assert len(fake.asked) == 6
    await clock.advance(86_400)
    fake.asked.clear()
    await fetched(api, zones_of(10), starts_of(60))
    assert len(fake.asked) == 7


async def test_a_span_that_is_too_wide_by_an_unknown_measure_is_halved() -> None:
    def refuse(asked: Asked) -> httpx.Response | None:
        return refusal(error("query time range is too large")) if asked.limit > 16 else None

    fake = FakeCloudflare(refuse=refuse)
    assert not (await fetched(fake.api(), zones_of(3), starts_of(60))).failed
    assert len(fake.asked) == 1 + 2 + 4


async def test_a_single_window_that_is_too_wide_fails() -> None:
    fake = FakeCloudflare(refuse=lambda _: refusal(error("cannot request a time range wider than 1s")))
    outcome = await fetched(fake.api(), zones_of(2), starts_of(2))
    assert set(outcome.failed.values()) == {ErrorKind.WINDOW}
    assert len(fake.asked) == 1 + 2


# --- size ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "message", ["in combination, your request queries too many nodes, zones and accounts", "too many zones requested"]
)
async def test_too_many_zones_make_smaller_groups_and_are_remembered(message: str) -> None:
    fake = FakeCloudflare(refuse=lambda asked: refusal(error(message), status=429) if len(asked.zones) > 3 else None)
    clock = ManualClock(NOW)
    api = fake.api(clock)
    assert not (await fetched(api, zones_of(20), starts_of(3))).failed
    assert [len(asked.zones) for asked in fake.asked[:3]] == [10, 5, 2]
    fake.asked.clear()
    assert not (await fetched(api, zones_of(20), starts_of(3))).failed
    assert [len(asked.zones) for asked in fake.asked] == [2] * 10
    await clock.advance(86_400)
    fake.asked.clear()
    await fetched(api, zones_of(10), starts_of(3))
    assert len(fake.asked[0].zones) == 10


@pytest.mark.parametrize("kind", ["cost", "too_large"])
async def test_a_query_that_is_too_expensive_or_too_large_is_halved_in_zones_then_in_time(kind: str) -> None:
    def refuse(asked: Asked) -> httpx.Response | None:
        if len(asked.zones) * (asked.limit - 1) <= 15:
            return None
        if kind == "cost":
            return refusal(error("query consumed excessive resources"), status=429)
        return httpx.Response(200, stream=httpx.ByteStream(b" " * (64 * 1024 * 1024 + 1)))

    fake = FakeCloudflare(refuse=refuse)
    outcome = await fetched(fake.api(), zones_of(2), starts_of(30))
    assert not outcome.failed
    assert [(len(asked.zones), asked.limit - 1) for asked in fake.asked] == [
        (2, 30),
        (1, 30),
        (1, 30),
        (1, 15),
        (1, 15),
        (1, 15),
        (1, 15),
    ]


async def test_what_is_too_expensive_even_alone_fails_within_the_allowance() -> None:
    fake = FakeCloudflare(refuse=lambda _: refusal(error("query consumed excessive resources")))
    outcome = await fetched(fake.api(), zones_of(10), starts_of(60))
    assert set(outcome.failed.values()) == {ErrorKind.COST, ErrorKind.REFUSED}
    assert len(fake.asked) == 1 + RETRIES_PER_GROUP


# --- Cloudflare as a whole -------------------------------------------------------------------------------------------


async def test_a_refused_token_fails_everything_and_is_readable() -> None:
    envelope = {"success": False, "errors": [{"code": 10000, "message": "Authentication error"}]}
    fake = FakeCloudflare(refuse=lambda _: httpx.Response(403, json=envelope))
    api = fake.api()
    outcome = await fetched(api, zones_of(30), starts_of(70))
    assert set(outcome.failed.values()) == {ErrorKind.TOKEN}
    assert len(fake.asked) == 1
    assert api.last_token_ok is False
    fake.refuse = lambda _: None
    await fetched(api, zones_of(1), starts_of(1))
    assert api.last_token_ok is True


async def test_an_outage_says_nothing_about_the_token() -> None:
    fake = FakeCloudflare()
    api = fake.api()
    await fetched(api, zones_of(1), starts_of(1))
    fake.refuse = lambda _: httpx.Response(503)
    await fetched(api, zones_of(1), starts_of(1))
    assert api.last_token_ok is True


@pytest.mark.parametrize("after", [0, 2])
async def test_a_used_up_quota_keeps_what_was_answered_and_fails_the_rest_with_the_time_to_wait(after: int) -> None:
    fake = FakeCloudflare()
    fake.refuse = lambda _: (
        refusal(error("rate limiter budget depleted, please try again later", code="budget"))
        if len(fake.asked) > after
        else None
    )
    api = fake.api()
    outcome = await fetched(api, zones_of(40), starts_of(1))
    assert len(outcome.answered) == 10 * after
    assert set(outcome.failed.values()) == {ErrorKind.RATE}
    assert len(fake.asked) == after + 1
    assert api.quota.paused_seconds(Api.GRAPHQL) == 300
    again = await fetched(api, zones_of(1), starts_of(1))
    assert again.failure(1).failure.retry_after_seconds == 300
    assert len(fake.asked) == after + 1


@pytest.mark.parametrize(
    ("response", "kind"),
    [
        (httpx.Response(502, content=b"<html>"), ErrorKind.SERVER),
        (refusal(error("unable to execute query")), ErrorKind.SERVER),
        (refusal(error("number of fields can't be more than 70")), ErrorKind.FIELDS),
        (httpx.Response(302, headers={"Location": "https://elsewhere.test"}), ErrorKind.ENDPOINT),
    ],
)
async def test_a_failure_of_cloudflare_is_not_asked_again(response: httpx.Response, kind: ErrorKind) -> None:
    fake = FakeCloudflare(refuse=lambda _: response)
    outcome = await fetched(fake.api(), zones_of(10), starts_of(60))
    assert set(outcome.failed.values()) == {kind}
    assert len(fake.asked) == 1


@pytest.mark.parametrize("body", [b'{"data": null}', b'{"data"', b'{"data": {"viewer": {"zones": [{"r0": [NaN]}]}}}'])
async def test_an_answer_that_cannot_be_read_is_traced_to_its_zone(body: bytes) -> None:
    fake = FakeCloudflare(refuse=lambda asked: httpx.Response(200, content=body) if tag(7) in asked.zones else None)
    outcome = await fetched(fake.api(), zones_of(10), starts_of(60))
    assert outcome.kinds == {tag(7): {ErrorKind.MALFORMED}}
    assert len(fake.asked) == 1 + 8


async def test_a_failure_costs_its_own_group_only() -> None:
    fake = FakeCloudflare(refuse=lambda asked: httpx.Response(502) if tag(15) in asked.zones else None)
    outcome = await fetched(fake.api(), zones_of(30), starts_of(1))
    assert set(outcome.kinds) == {tag(number) for number in range(11, 21)}
    assert len(fake.asked) == 3


async def test_an_outage_is_believed_after_three_groups() -> None:
    fake = FakeCloudflare(refuse=lambda _: httpx.Response(502))
    outcome = await fetched(fake.api(), zones_of(100), starts_of(1))
    assert set(outcome.failed.values()) == {ErrorKind.SERVER}
    assert len(fake.asked) == 3


async def test_failures_with_answers_in_between_are_no_outage() -> None:
    fake = FakeCloudflare()
    fake.refuse = lambda _: httpx.Response(502) if len(fake.asked) % 3 else None
    outcome = await fetched(fake.api(), zones_of(120), starts_of(1))
    assert len(fake.asked) == 12
    assert len(outcome.answered) == 40


async def test_every_query_is_drawn_from_the_quota() -> None:
    clock = ManualClock(NOW)
    fake = FakeCloudflare()
    api = fake.api(clock, quota=small_quota(clock, graphql=2))
    await fetched(api, zones_of(20), starts_of(1))
    assert api.quota.remaining(Api.GRAPHQL) == 0
    waiting = asyncio.create_task(fetched(api, zones_of(1), starts_of(1)))
    await clock.advance(299)
    assert len(fake.asked) == 2
    await clock.advance(2)
    await waiting
    assert len(fake.asked) == 3


async def test_requests_are_observed_by_outcome() -> None:
    seen: list[tuple[str, str]] = []

    def on_request(api: Api, _priority: Priority, outcome: str, _seconds: float) -> None:
        seen.append((api, outcome))

    fake = FakeCloudflare(refuse=naming([1], "zone '{zone}' does not have access to the path"))
    await fetched(fake.api(on_request=on_request), zones_of(2), starts_of(1))
    assert seen == [("graphql", "plan_dataset"), ("graphql", "ok")]


@pytest.mark.parametrize("priority", [None, Priority.DRIFT])
async def test_every_query_of_a_fetch_draws_from_the_quota_with_its_priority(priority: Priority | None) -> None:
    seen: list[tuple[Priority, str]] = []
    fake = FakeCloudflare(refuse=naming([1], "zone '{zone}' does not have access to the path"))
    api = fake.api(on_request=lambda _api, sent, outcome, _seconds: seen.append((sent, outcome)))
    starts = starts_of(1)
    if priority is None:
        await api.fetch([HTTP_REQUESTS], starts.step, zones_of(2), starts)
    else:
        await api.fetch([HTTP_REQUESTS], starts.step, zones_of(2), starts, priority=priority)
    wanted = priority or Priority.LIVE
    assert seen == [(wanted, "plan_dataset"), (wanted, "ok")]


async def test_closing_closes_the_connections() -> None:
    fake = FakeCloudflare()
    api = fake.api()
    await fetched(api, zones_of(1), starts_of(1))
    await api.aclose()
    with pytest.raises(RuntimeError):
        await fetched(api, zones_of(1), starts_of(1))


async def test_several_fetches_at_once_do_not_disturb_each_other() -> None:
    fake = FakeCloudflare(refuse=plan_without({3: "browserMap", 12: "contentTypeMap"}))
    api = fake.api()
    zones = zones_of(30)
    outcomes = await asyncio.gather(*(fetched(api, zones[first : first + 15], starts_of(70)) for first in (0, 5, 15)))
    assert all(not outcome.failed for outcome in outcomes)


# --- everything at once ----------------------------------------------------------------------------------------------

MESSAGES = {
    ErrorKind.PLAN_DATASET: "zone '{zone}' does not have access to the path",
    ErrorKind.AUTH_SCOPE: "requested zone is not authorized",
    ErrorKind.SERVER: "unable to execute query",
    ErrorKind.REFUSED: "who knows",
}


@settings(max_examples=60, deadline=None)
@given(
    bad=st.dictionaries(st.integers(1, 23), st.sampled_from(sorted(MESSAGES)), max_size=6),
    named=st.sampled_from(["message", "path", "nothing"]),
    count=st.integers(1, 23),
    windows=st.integers(1, 70),
)
async def test_every_window_has_one_answer_good_zones_have_theirs_and_the_queries_are_bounded(
    bad: dict[int, ErrorKind], named: str, count: int, windows: int
) -> None:
    def refuse(asked: Asked) -> httpx.Response | None:
        errors: list[dict[str, Any]] = []
        for position, each in enumerate(asked.zones):
            if kind := bad.get(int(each, 16)):
                path = ["viewer", "zones", str(position), asked.node] if named == "path" else None
                zone_name = f" zone {each}" if named == "message" else ""
                errors.append(error(MESSAGES[kind].format(zone=each) + zone_name, path=path))
        return refusal(*errors) if errors else None

    fake = FakeCloudflare(refuse=refuse)
    zones = zones_of(count)
    outcome = await fetched(fake.api(), zones, starts_of(windows))
    groups = -(-count // ZONES_PER_QUERY) * -(-windows // WINDOWS_PER_QUERY)
    assert len(fake.asked) <= groups * (1 + RETRIES_PER_GROUP)
    assert {tag(number) for number in bad if number <= count} <= set(outcome.kinds)
    if ErrorKind.SERVER not in bad.values() or named != "nothing":
        assert set(outcome.kinds) == {tag(number) for number in bad if number <= count}
