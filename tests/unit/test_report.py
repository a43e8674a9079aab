from array import array
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from pydantic import SecretStr

from tests.unit.ledger.fleet import (
    DATASET,
    HOUR,
    T0,
    acknowledge_all,
    ask_for_resend,
    bucket,
    carry_out_next,
    pending_ids,
    refuse_whole,
    scope,
    tag,
)
from worker import __version__
from worker.buckets import Bucket
from worker.cloudflare import FACT_SETS, Dataset, FactSet, shipped
from worker.config import CloudflareSettings, DestinationSettings, LedgerSettings, Settings, TokenSettings
from worker.health import Problem, TokenState, Verdict
from worker.ledger import (
    Ledger,
    Refusal,
    Resend,
    Scope,
    capture,
    log_requests,
    outstanding_windows,
    record_denials,
    record_scopes,
    refuse,
    register_destinations,
    set_aside,
)
from worker.ledger.session import Session
from worker.report import Running, RunningDestination, report_status
from worker.series import label_block
from worker.status import (
    ApiBudget,
    CloudflareStatus,
    DeniedScope,
    DeniedStatus,
    GivenUp,
    RefusedStatus,
    StatusReport,
    TokenStatus,
)

NOW = T0 + 10.0 * HOUR
READINESS = Verdict(ok=False, problems=(Problem("token", NOW, "Cloudflare refuses the API token"),))
CLOUDFLARE = CloudflareStatus(
    TokenState.REFUSED,
    {"default": TokenState.REFUSED},
    (ApiBudget("default", "graphql", 280, 300), ApiBudget("default", "rest", 1100, 1200)),
)


@dataclass
class Scene:
    """A ledger of two zones, of which one has all and one has some of the windows of six hours."""

    ledger: Ledger
    settings: Settings
    destinations: Mapping[str, RunningDestination] = field(default_factory=dict)
    datasets: tuple[Dataset, ...] = (shipped()[DATASET],)
    fact_sets: tuple[FactSet, ...] = (FACT_SETS["certificates"],)

    async def report(self, now: float = NOW, *, due_at: float | None = None) -> StatusReport:
        running = Running(READINESS, CLOUDFLARE, self.destinations)
        return await report_status(
            self.ledger, self.settings, now, running, datasets=self.datasets, fact_sets=self.fact_sets, due_at=due_at
        )


def forget_series(session: Session) -> None:
    """What damage to their rows does."""
    session._connection.execute("DELETE FROM series")
    session.series.forget()


@pytest.fixture
async def scene(tmp_path: Path) -> AsyncIterator[Scene]:
    ledger = Ledger.open(tmp_path / "ledger.db")
    await ledger.write(record_scopes, [scope(1), scope(2)], NOW)
    await ledger.write(register_destinations, {"prod": False, "lab": False}, replay_since=0, now=NOW)
    await ledger.write(
        outstanding_windows,
        dataset=DATASET,
        width_seconds=HOUR,
        tags=[tag(1), tag(2)],
        starts=range(T0 + 3 * HOUR, T0 + 9 * HOUR, HOUR),
    )
    await ledger.write(capture, [bucket(1, hour) for hour in range(3, 9)] + [bucket(2, 3), bucket(2, 4)], NOW)
    settings = Settings(
        cloudflare=CloudflareSettings(api_token=SecretStr("canary"), delay_seconds=600, replay_hours=24),
        destinations=(
            DestinationSettings(name="prod", url="https://mimir.example.com/api/v1/push?key=canary"),
            DestinationSettings(name="lab", url="https://user-info.example.com/api/v1/write"),
            DestinationSettings(name="new", url="https://new.example.com/api/v1/write"),
        ),
        ledger=LedgerSettings(path=tmp_path / "ledger.db", max_bytes=2**30),
    )
    yield Scene(ledger, settings)
    await ledger.close()


async def test_of_each_token_it_is_told_what_is_asked_with_it_and_what_was_sent_in_five_minutes(scene: Scene) -> None:
    account = Scope("a" * 32, "Example", "a" * 32, "Example", "", "b")
    await scene.ledger.write(record_scopes, [scope(1), scope(2), replace(scope(3), token="b"), account], NOW)
    await scene.ledger.write(log_requests, "b", {"graphql": [NOW - 301, NOW - 299, NOW], "rest": [NOW - 1]})
    token = TokenSettings(name="b", api_token=SecretStr("canary-b"), graphql_requests_per_5_minutes=100)
    cloudflare = scene.settings.cloudflare.model_copy(update={"further_tokens": (token,)})
    scene.settings = scene.settings.model_copy(update={"cloudflare": cloudflare})

    assert (await scene.report()).tokens == (
        TokenStatus("default", 2, 0, 0, 300, 0, 1200),
        TokenStatus("b", 1, 1, 2, 100, 1, 1200),
    )


async def test_windows_that_became_final_after_the_moment_asked_about_are_not_missing_yet(scene: Scene) -> None:
    two_more = NOW + 2 * HOUR
    assert [each.missing for each in (await scene.report(two_more, due_at=NOW)).scopes] == [0, 4]
    assert [each.missing for each in (await scene.report(two_more)).scopes] == [2, 6]


async def test_what_became_of_the_buckets_is_told_per_destination(scene: Scene) -> None:
    waiting = await pending_ids(scene.ledger, "prod")
    await acknowledge_all(scene.ledger, "prod", waiting[:3])
    await scene.ledger.write(refuse_whole, "prod", waiting[3:5], reason="out of bounds", now=NOW)
    await scene.ledger.write(set_aside, "prod", waiting[5:6], now=NOW)
    prod, lab, new = (await scene.report()).destinations
    assert (prod.name, prod.url) == ("prod", "https://mimir.example.com/api/v1/push?***")
    assert (prod.acknowledged_buckets, prod.refused_buckets, prod.damaged_buckets, prod.expired_buckets) == (3, 2, 1, 0)
    assert (prod.pending_buckets, prod.pending_samples) == (2, 6)
    assert (lab.pending_buckets, lab.acknowledged_buckets, lab.oldest_pending_end) == (8, 0, T0 + 4 * HOUR)
    assert (new.pending_buckets, new.oldest_pending_end, new.last_failure) == (0, None, None)


async def test_what_was_refused_is_told_with_its_series_its_timestamp_and_the_receivers_words(scene: Scene) -> None:
    first, other, second, *_ = await pending_ids(scene.ledger, "prod")  # the other one is of the second zone
    await scene.ledger.write(refuse_whole, "prod", [other], reason="before", now=NOW - 90)
    await scene.ledger.write(refuse_whole, "prod", [first], status=422, reason="too long", now=NOW - 60)
    told = [Refusal(second, b"\2\0\0\0", None, "five times 500")]
    await scene.ledger.write(refuse, "prod", told, partly={second}, now=NOW)

    prod, lab, new = (await scene.report()).destinations

    assert (prod.partial_buckets, prod.refused_buckets, prod.refused_samples) == (1, 2, 7)
    assert (lab.refused_samples, lab.refusals, lab.given_up) == (new.refused_samples, new.refusals, new.given_up)
    assert (lab.refused_samples, lab.refusals, lab.given_up) == (0, (), ())
    assert prod.given_up == (
        GivenUp("partial", 1, NOW, None, "five times 500"),
        GivenUp("refused", 2, NOW - 60, 422, "too long"),
    )
    series = [f'cloudflare_zone_requests{{country="C{number}", zone_id="{tag(1)}"}}' for number in range(3)]
    newest, oldest, _ = prod.refusals
    assert newest == RefusedStatus(NOW, T0 + 4 * HOUR, 1, (series[1],), None, "five times 500")
    assert oldest == RefusedStatus(NOW - 60, T0 + 3 * HOUR, 3, tuple(series), 422, "too long")


async def test_of_many_refusals_and_of_many_series_the_first_few_are_told(scene: Scene) -> None:
    await scene.ledger.write(capture, [bucket(1, hour, samples=50) for hour in range(10, 18)], NOW)
    waiting = await pending_ids(scene.ledger, "prod")
    await scene.ledger.write(refuse_whole, "prod", waiting)

    prod = (await scene.report()).destinations[0]

    assert (prod.refused_buckets, prod.refused_samples) == (16, 8 * 3 + 8 * 50)
    assert len(prod.refusals) == 5
    assert {(refusal.samples, len(refusal.series)) for refusal in prod.refusals} == {(50, 3)}


async def test_a_series_is_written_as_a_query_would_and_within_bounds(scene: Scene) -> None:
    window = bucket(1, 9).window
    labels = ({"path": 'a"b\\c\nd\x1b[2Jé'}, {"path": "x" * 5000})
    blocks = tuple(label_block("cloudflare_zone_requests", each) for each in labels)
    given = Bucket(DATASET, tag(1), window, window.start * 1000, blocks, array("d", [1.0, 2.0]))
    await scene.ledger.write(capture, [given], NOW)
    await scene.ledger.write(refuse_whole, "prod", (await pending_ids(scene.ledger, "prod"))[-1:])

    (refusal,) = (await scene.report()).destinations[0].refusals

    escaped, long = refusal.series
    assert escaped == r'cloudflare_zone_requests{path="a\"b\\c\nd\x1b[2Jé"}'
    assert len(long) == 1000
    assert long.endswith("x…")


async def test_a_series_that_cannot_be_read_is_told_as_that(scene: Scene) -> None:
    await scene.ledger.write(refuse_whole, "prod", (await pending_ids(scene.ledger, "prod"))[:1])
    await scene.ledger.write(forget_series)

    (refusal,) = (await scene.report()).destinations[0].refusals

    assert refusal.series == ("(a series that cannot be read)",) * 3


async def test_how_a_destination_is_spoken_to_is_told_by_the_worker_only(scene: Scene) -> None:
    scene.destinations = {
        "prod": RunningDestination(message="2.0"),
        "lab": RunningDestination(message="1.0 (fell back: 415)", parked="HTTP 401 since noon"),
    }
    prod, lab, new = (await scene.report()).destinations
    assert (prod.message, prod.parked) == ("2.0", None)
    assert (lab.message, lab.parked) == ("1.0 (fell back: 415)", "HTTP 401 since noon")
    assert (new.message, new.parked) == (None, None)


async def test_expected_captured_and_missing_windows_are_told_per_zone(scene: Scene) -> None:
    report = await scene.report()
    first, second = report.scopes
    assert report.scope_count == 2
    assert (first.name, first.scope, first.dataset) == ("zone-1.example", tag(1), DATASET)
    assert (first.expected, first.captured, first.missing, first.reason) == (6, 6, 0, None)
    assert first.newest_window_end == T0 + 9 * HOUR
    assert (second.expected, second.captured, second.missing) == (6, 2, 4)
    assert second.newest_window_end == T0 + 5 * HOUR


async def test_a_window_is_expected_when_it_is_final_and_until_it_is_past_the_replay_bound(scene: Scene) -> None:
    assert (await scene.report(T0 + 10 * HOUR + 599)).scopes[0].expected == 6
    assert (await scene.report(T0 + 10 * HOUR + 600)).scopes[0].expected == 7
    assert (await scene.report(T0 + 30 * HOUR)).scopes[0].expected == 23


async def test_a_dataset_that_takes_longer_to_be_final_is_expected_later(scene: Scene) -> None:
    slow = shipped()["ai_gateway_requests"]
    starts = range(T0 + 3 * HOUR, T0 + 9 * HOUR, HOUR)
    await scene.ledger.write(outstanding_windows, dataset=slow.name, width_seconds=HOUR, tags=[tag(1)], starts=starts)
    scene.datasets = (*scene.datasets, slow)
    (found,) = [each for each in (await scene.report()).scopes if each.dataset == slow.name]
    assert found.expected == 6, "the window that ended an hour ago is final in this moment, the next one is not"
    (earlier,) = [each for each in (await scene.report(NOW - 1)).scopes if each.dataset == slow.name]
    assert earlier.expected == 5
    http, ai = (await scene.report()).datasets
    assert (http.delay_seconds, ai.delay_seconds) == (600, 3600)
    assert (http.kind, http.scope_count, http.scopes_missing, http.missing) == ("zone", 2, 1, 4)
    assert (ai.kind, ai.expected, ai.captured, ai.newest_window_end) == ("account", 6, 0, None)


async def test_what_is_denied_is_told_by_dataset_and_reason_with_everybody_it_concerns(scene: Scene) -> None:
    methods = shipped()["http_methods"]
    reason = "the plan does not include httpRequestsAdaptiveGroups"
    changes = {(methods.name, tag(1)): reason, (methods.name, tag(2)): reason, (DATASET, tag(2)): "other"}
    await scene.ledger.write(record_denials, changes, T0 + 9.0 * HOUR)

    await scene.ledger.write(record_denials, {("certificates", tag(1)): "not authorized"}, T0 + 9.0 * HOUR)
    scene.datasets = (*scene.datasets, methods)
    report = await scene.report()

    by_zone = [DeniedScope(tag(number), f"zone-{number}.example", T0 + 9 * HOUR) for number in (1, 2)]
    assert report.denied == (
        DeniedStatus("certificates", "zone", "not authorized", 1, (by_zone[0],)),
        DeniedStatus(methods.name, "zone", reason, 2, tuple(by_zone)),
        DeniedStatus(DATASET, "zone", "other", 1, (by_zone[1],)),
    )
    assert [(each.dataset, each.scope_count, each.scopes_denied) for each in report.datasets] == [
        (DATASET, 2, 1),
        (methods.name, 0, 2),
    ]
    # The window that ended at 9:00 was not final when it was denied; what was due by then will not come.
    _, second = report.scopes
    assert (second.expected, second.missing) == (5, 3)
    assert second.reason == "3 not asked for any more, as they are denied: other"


async def test_of_datasets_that_are_not_collected_any_more_nothing_is_expected_or_told(scene: Scene) -> None:
    await scene.ledger.write(record_denials, {(DATASET, tag(2)): "other"}, NOW)
    scene.datasets = (shipped()["http_methods"],)
    report = await scene.report()
    assert (report.scopes, report.scope_count, report.denied) == ((), 0, ())
    assert report.ledger.buckets == 8


async def test_the_ledger_is_told_with_its_size(scene: Scene) -> None:
    report = await scene.report()
    assert report.ledger.path == str(scene.ledger.path)
    assert report.ledger.max_bytes == 2**30
    assert report.ledger.buckets == 8
    assert 0 < scene.ledger.path.stat().st_size <= report.ledger.size_bytes < 2**21


async def test_what_only_the_running_worker_knows_is_passed_on(scene: Scene) -> None:
    report = await scene.report()
    assert report.readiness == READINESS
    assert report.cloudflare == CLOUDFLARE
    assert (report.version, report.now) == (__version__, NOW)


async def test_the_newest_repairs_are_told_with_what_came_of_them(scene: Scene) -> None:
    wanted = Resend(T0 + 3 * HOUR, T0 + 5 * HOUR)
    for number in range(12):
        await scene.ledger.write(ask_for_resend, wanted, reason=f"disk {number}", asked_by="ops@bastion", now=NOW)
    for _ in range(11):
        await scene.ledger.write(carry_out_next, NOW)
    journal = (await scene.report()).journal
    assert [entry.reason for entry in journal] == [f"disk {number}" for number in range(11, 1, -1)]
    # Two windows of two zones at two destinations.
    assert [entry.outcome for entry in journal[:2]] == ["asked", "8 buckets queued again"]
    assert {(entry.at, entry.by) for entry in journal} == {(NOW, "ops@bastion")}
    assert journal[0].asked == "resend 2025-06-15T03:00:00Z to 2025-06-15T05:00:00Z"
