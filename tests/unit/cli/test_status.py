import io
import json
from dataclasses import replace
from typing import Any

import pytest
from msgspec import structs
from rich.console import Console

from tests.reports import DATASET, DENIED, DESTINATION, NOW, REFUSAL, REPORT, SCOPE
from tests.unit.cli.scene import REPLAY_HOURS, Scene
from worker.cli.status import is_complete, print_status
from worker.cloudflare import shipped
from worker.status import GivenUp


def test_status_without_a_ledger_says_what_makes_one(scene: Scene) -> None:
    for option in ([], ["--json"]):
        result = scene.cfrw("status", *option)
        assert result.exit_code == 5
        assert "there is no ledger" in result.stderr
        assert "`cfrw run` makes it" in result.stderr
    assert not scene.ledger.exists()


def test_status_shows_zones_and_destinations_and_its_json_parses(scene: Scene) -> None:
    scene.collected()
    result = scene.cfrw("status")
    assert result.exit_code == 0
    for zone in scene.world.fleet.zones:
        assert zone.name in result.stdout
    report = json.loads(scene.cfrw("status", "--json").stdout)
    assert {scope["scope"] for scope in report["scopes"]} == {zone.tag for zone in scene.world.fleet.zones}
    assert all(scope["captured"] == scope["expected"] >= REPLAY_HOURS - 1 for scope in report["scopes"])
    (destination,) = report["destinations"]
    assert destination["pending_samples"] == 0
    assert not {"message", "parked"} & destination.keys(), "only a running worker knows"
    assert destination["acknowledged_buckets"] == sum(scope["captured"] for scope in report["scopes"])


def test_a_status_of_many_zones_shows_the_worst_and_says_how_many_more_there_are() -> None:
    scopes = tuple(structs.replace(SCOPE, scope=f"{number}", name=f"zone-{number:03}.example") for number in range(60))
    console = Console(file=io.StringIO(), width=200, markup=False)
    print_status(replace(REPORT, scope_count=60, scopes=scopes), console)
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert "zone-049.example" in shown
    assert "zone-050.example" not in shown
    assert "10 more are not shown: --json has all" in shown


def test_a_status_has_a_row_for_each_of_several_tokens() -> None:
    (one,) = REPORT.tokens
    console = Console(file=io.StringIO(), width=80, markup=False)
    for tokens in ((one,), (replace(one, name="agency"), replace(one, name="shops", zones=12_345, accounts=2))):
        print_status(replace(REPORT, tokens=tokens), console)
    assert isinstance(console.file, io.StringIO)
    shown = [" ".join(line.split()) for line in console.file.getvalue().splitlines()]
    assert not any(line.startswith("default") for line in shown)
    assert "agency 1 0 20/300 100/1,200" in shown
    assert "shops 12,345 2 20/300 100/1,200" in shown


def test_a_status_names_the_token_that_cloudflare_refuses() -> None:
    (one,) = REPORT.tokens
    since = "Cloudflare has refused it since 2026-01-06T03:00:00Z"
    refused = replace(one, refused_since=NOW, refusal="Authentication error")
    for tokens, told in (
        ((refused,), f"the API token: {since}; check CF_API_TOKEN."),
        (
            (replace(refused, name="agency"), replace(one, name="shops")),
            f"token agency: {since}; check its api_token under `cloudflare`.",
        ),
    ):
        console = Console(file=io.StringIO(), width=80, markup=False)
        print_status(replace(REPORT, tokens=tokens), console)
        assert isinstance(console.file, io.StringIO)
        (line,) = [line for line in console.file.getvalue().splitlines() if "refused it" in line]
        assert line == f"{told} It said: Authentication error"


def test_a_status_of_many_datasets_sums_them_up_and_shows_what_is_missing_and_denied() -> None:
    lacking = structs.replace(SCOPE, scope="1", name="lacking.example", missing=7, reason="7 failed: HTTP 503")
    firewall = replace(
        DENIED,
        dataset="firewall_events",
        scope_count=9_000,
        scopes=tuple(structs.replace(DENIED.scopes[0], name=f"{letter}.example") for letter in "abcd"),
    )
    longest = max(shipped(), key=len)
    report = replace(
        REPORT,
        datasets=(
            replace(DATASET, scope_count=10_000, captured=1_233, expected=1_240, missing=7),
            *(replace(DATASET, dataset=longest, kind="account") for _ in range(128)),
        ),
        denied=(firewall, DENIED),
        scope_count=2,
        scopes=(lacking, structs.replace(SCOPE, name="fine.example")),
    )
    report = replace(report, datasets=(*report.datasets, replace(DATASET, dataset="firewall_events")))
    console = Console(file=io.StringIO(), width=80, markup=False)
    print_status(report, console)
    assert isinstance(console.file, io.StringIO)
    shown = [" ".join(line.split()) for line in console.file.getvalue().splitlines()]
    assert "http_requests 10,000 2026-01-06T02:45:00Z 7 0" in shown
    assert f"{longest} 1 2026-01-06T02:45:00Z 0 0" in shown
    assert "80 more are not shown: --json has all" in shown
    assert "lacking.example http_requests: 7 failed: HTTP 503" in shown
    assert "fine.example" not in console.file.getvalue()
    where = shown.index("not collected, as it is denied:")
    assert shown[where + 1 : where + 3] == [
        f"firewall_events: 9,000 zones (a.example, b.example, c.example, ...): {DENIED.reason}",
        f"http_requests: 1 zone (free.example): {DENIED.reason}",
    ]


def test_a_status_in_which_everything_is_denied_does_not_say_that_there_are_no_zones() -> None:
    console = Console(file=io.StringIO(), width=80, markup=False)
    print_status(replace(REPORT, scopes=(), scope_count=0, denied=(DENIED,)), console)
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue()
    assert f"http_requests: 1 zone (free.example): {DENIED.reason}" in shown
    assert "listed" not in shown


def test_a_status_names_the_samples_that_were_refused_in_full_and_what_the_receiver_said() -> None:
    series = f'cloudflare_zone_requests{{zone="{"z" * 250}.example"}}'
    words = "user=anonymous: the label value is too long " + "x" * 300
    destination = replace(
        DESTINATION,
        partial_buckets=3,
        refused_samples=1_070,
        last_failure="HTTP 503: busy",
        given_up=(
            GivenUp("expired", 2, NOW, None, "older than CF_REPLAY_HOURS"),
            GivenUp("partial", 3, NOW, 422, words),
        ),
        refusals=(
            replace(REFUSAL, samples=66, series=(series, "second"), status=422, reason=words),
            replace(REFUSAL, status=None, reason="five times\n500"),
        ),
    )
    console = Console(file=io.StringIO(), width=80, markup=False)
    print_status(replace(REPORT, destinations=(destination,)), console)
    assert isinstance(console.file, io.StringIO)
    shown = console.file.getvalue().splitlines()
    assert [line.rstrip() for line in shown if line.startswith(("prod: ", "  "))][-10:] == [
        "prod: HTTP 503: busy",
        "prod: 2 expired: older than CF_REPLAY_HOURS (2026-01-06T03:00:00Z)",
        f"prod: 3 partial: HTTP 422: {words} (2026-01-06T03:00:00Z)",
        "prod: refused samples: 1,070; the newest:",
        f"  {series}",
        "  second",
        "  and 64 more",
        f"    stamped 2026-01-06T00:00:00Z, refused 2026-01-06T02:58:00Z: HTTP 422: {words}",
        '  cloudflare_zone_requests{zone="example.com"}',
        "    stamped 2026-01-06T00:00:00Z, refused 2026-01-06T02:58:00Z: five times 500",
    ]


def test_the_table_of_destinations_fits_a_terminal() -> None:
    console = Console(file=io.StringIO(), width=80, markup=False)
    destination = replace(DESTINATION, name="prometheus", acknowledged_buckets=123_456_789, partial_buckets=1_234)
    print_status(replace(REPORT, destinations=(destination,)), console)
    assert isinstance(console.file, io.StringIO)
    (row,) = [line for line in console.file.getvalue().splitlines() if line.startswith("prometheus")]
    assert row.split() == ["prometheus", "0", "-", "123,456,789", "1,234", "0", "0", "0"]


@pytest.mark.parametrize(
    ("scope", "destination", "complete"),
    [
        ({}, {}, True),
        ({"missing": 1}, {}, False),
        ({}, {"pending_buckets": 1}, False),
        ({}, {"partial_buckets": 1}, False),
        ({}, {"refused_buckets": 1}, False),
        ({}, {"expired_buckets": 1}, False),
        ({}, {"damaged_buckets": 1}, False),
    ],
)
def test_a_report_is_complete_when_nothing_is_missing_pending_refused_expired_or_damaged(
    scope: dict[str, Any], destination: dict[str, Any], complete: object
) -> None:
    report = replace(
        REPORT, scopes=(structs.replace(SCOPE, **scope),), destinations=(replace(DESTINATION, **destination),)
    )
    assert is_complete(report) == complete


def test_a_report_with_a_token_that_is_refused_is_not_complete() -> None:
    (one,) = REPORT.tokens
    assert is_complete(REPORT)
    assert not is_complete(replace(REPORT, tokens=(one, replace(one, refused_since=NOW, refusal="no"))))


def test_a_report_without_zones_is_not_complete() -> None:
    assert not is_complete(replace(REPORT, scopes=(), scope_count=0))
