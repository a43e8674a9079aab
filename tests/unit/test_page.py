import base64
import hashlib
import re
from dataclasses import fields, is_dataclass, replace
from html.parser import HTMLParser
from typing import Any

import msgspec
import pytest
from msgspec import structs

from tests.reports import DATASET, DENIED, DESTINATION, NOW, REFUSAL, REPORT, SCOPE
from worker import page
from worker.health import Problem, TokenState, Verdict
from worker.status import ApiBudget, CloudflareStatus, GivenUp, LedgerStatus, StatusReport

VOID = {"meta"}


class Document(HTMLParser):
    """Collects the elements and the text, and fails where an element is not closed in its turn."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.text += data if "td" in self._open else f"{data} "


def document(report: StatusReport) -> Document:
    return Document(page.render(report).decode())


def with_every_text(value: Any, text: str) -> Any:
    """The value with each string in it, however deep, replaced by `text`."""
    if isinstance(value, str):
        return text
    if isinstance(value, tuple):
        return tuple(with_every_text(member, text) for member in value)
    if is_dataclass(value) and not isinstance(value, type):
        members = {field.name: with_every_text(getattr(value, field.name), text) for field in fields(value)}
        return replace(value, **members)
    if isinstance(value, msgspec.Struct):
        members = {name: with_every_text(getattr(value, name), text) for name in value.__struct_fields__}
        return structs.replace(value, **members)
    return value


EVERYTHING = replace(
    REPORT,
    readiness=Verdict(ok=False, problems=(Problem("token", NOW, "refused"),)),
    destinations=(
        replace(
            DESTINATION,
            message="1.0 (fell back)",
            parked="401",
            last_failure="500",
            last_failure_at=NOW,
            given_up=(GivenUp("refused", 1, NOW, 400, "out of bounds"),),
            refusals=(REFUSAL,),
        ),
    ),
    datasets=(DATASET, replace(DATASET, missing=1, scopes_missing=1)),
    denied=(DENIED,),
    scopes=(structs.replace(SCOPE, missing=1, reason="not answered"),),
)


@pytest.mark.parametrize(
    "hostile",
    ["<script>alert(1)</script>", "\"'><img src=x onerror=alert(1)>", "</table></style><!--", "&lt;b&gt;", "\ud800"],
)
def test_no_text_is_ever_taken_for_markup(hostile: str) -> None:
    harmless = document(with_every_text(EVERYTHING, "harmless"))

    shown = document(with_every_text(EVERYTHING, hostile))

    assert shown.tags == harmless.tags
    assert shown.text.count(hostile.replace("\ud800", "?")) == harmless.text.count("harmless") > 15


def test_the_page_needs_nothing_from_elsewhere() -> None:
    html = page.render(EVERYTHING).decode()

    assert not re.search(r"<script|<link|<img|\ssrc=|\shref=|url\(|@import|\sstyle=|\son\w+=", html)


def test_the_page_may_use_its_own_style_and_nothing_else() -> None:
    style = re.search(r"<style>(.*?)</style>", page.render(REPORT).decode(), re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()

    assert f"style-src 'sha256-{digest}'" in page.CONTENT_SECURITY_POLICY
    assert page.CONTENT_SECURITY_POLICY.startswith("default-src 'none';")


def test_the_page_renews_itself() -> None:
    assert ("meta", {"http-equiv": "refresh", "content": "15"}) in document(REPORT).tags


def test_a_worker_without_trouble_says_so_in_three_sentences() -> None:
    text = document(REPORT).text

    assert "Ready.  Every loop does its work." in text
    assert "Captured: every window that is due." in text
    assert "Delivered: everything that was captured." in text
    assert "ready - cloudflare-remote-write" in text


def test_of_several_tokens_each_has_its_state_and_budget_and_what_is_wrong_with_one_stands_at_the_top() -> None:
    report = replace(
        REPORT,
        readiness=Verdict(ok=True, problems=(Problem("token b", NOW - 60, "Cloudflare refuses the API token"),)),
        cloudflare=CloudflareStatus(
            TokenState.ACCEPTED,
            {"a": TokenState.ACCEPTED, "b": TokenState.REFUSED},
            (ApiBudget("a", "graphql", 280, 300), ApiBudget("b", "graphql", 90, 100)),
        ),
    )

    text = document(report).text

    assert "Every loop does its work. token b: Cloudflare refuses the API token (since 2026-01-06T02:59:00Z)" in text
    budgets = text.partition("Token a:")[2].split("Token b:")
    assert [" ".join(budget.split())[:70] for budget in budgets] == [
        "accepted. graphql: 280 of 300 requests per 5 minutes are left.",
        "refused. graphql: 90 of 100 requests per 5 minutes are left. Repairs W",
    ]


def test_trouble_stands_at_the_top_in_sentences() -> None:
    report = replace(
        REPORT,
        readiness=Verdict(ok=False, problems=(Problem("token", NOW - 60, "Cloudflare refuses the API token"),)),
        destinations=(
            replace(DESTINATION, pending_samples=12_345, pending_buckets=1, oldest_pending_end=NOW - 11_520),
            replace(DESTINATION, name="backup", pending_samples=5, pending_buckets=2, oldest_pending_end=NOW - 60),
        ),
        scope_count=2,
        scopes=(structs.replace(SCOPE, missing=3, captured=21), SCOPE),
    )

    text = document(report).text

    assert "NOT READY - cloudflare-remote-write" in text
    assert "Not ready: token: Cloudflare refuses the API token (since 2026-01-06T02:59:00Z)" in text
    assert "Missing:  3 of 48 windows, in 1 of 2 pairs of zone and dataset." in text
    assert "Waiting for delivery: 12,350 samples, the oldest for 3h 12m." in text
    assert "12,345 samples1 bucket3h 12m" in text


def test_a_worker_that_has_nothing_yet_still_has_a_page() -> None:
    empty = replace(REPORT, destinations=(), journal=(), scopes=(), scope_count=0, ledger=LedgerStatus("x", 0, 0, 0))

    text = document(empty).text

    assert "No zone has been listed yet." in text
    assert "None on record." in text


def test_what_never_happened_is_called_never() -> None:
    scopes = (structs.replace(SCOPE, newest_window_end=None),)
    destinations = (replace(DESTINATION, last_success_at=None),)

    text = document(replace(REPORT, scopes=scopes, destinations=destinations)).text

    assert text.count("never") == 2


def test_a_failure_is_shown_bounded_and_with_its_time() -> None:
    destination = replace(DESTINATION, last_failure="x" * 100_000, last_failure_at=NOW - 120)

    text = document(replace(REPORT, destinations=(destination,))).text

    assert "prod, 2m ago at 2026-01-06T02:58:00Z: xxx" in text
    assert text.count("x") < 500


def test_what_was_refused_is_shown_sample_by_sample_with_the_receivers_words() -> None:
    destination = replace(
        DESTINATION,
        partial_buckets=2,
        refused_buckets=1,
        refused_samples=1_070,
        given_up=(
            GivenUp("partial", 2, NOW - 60, 400, "out of bounds"),
            GivenUp("expired", 3, NOW - 120, None, "older than CF_REPLAY_HOURS"),
        ),
        refusals=(REFUSAL, replace(REFUSAL, samples=66, status=None, reason="five times\n500")),
    )

    text = document(replace(REPORT, destinations=(destination,))).text

    assert "1,070 samples1 bucket wholly, 2 partly" in text
    assert "Given up:  5 buckets, in part or as a whole. Nothing waits." in text
    assert "Delivered: everything" not in text
    assert "prod: 2 buckets partial, the newest 1m ago at 2026-01-06T02:59:00Z: HTTP 400: out of bounds" in text
    assert "prod: 3 buckets expired, the newest 2m ago at 2026-01-06T02:58:00Z: older than CF_REPLAY_HOURS" in text
    assert "prod, 2m ago at 2026-01-06T02:58:00Z: 1 sample of 2026-01-06T00:00:00Z: HTTP 400: out of bounds" in text
    assert text.count('cloudflare_zone_requests{zone="example.com"}') == 2
    assert "66 samples of 2026-01-06T00:00:00Z: five times 500" in text
    assert "and 65 more" in text


def test_what_waits_is_told_beside_what_was_given_up() -> None:
    destination = replace(
        DESTINATION,
        pending_samples=5,
        oldest_pending_end=NOW - 60,
        given_up=(GivenUp("expired", 1, NOW, None, "older"),),
    )

    text = document(replace(REPORT, destinations=(destination,))).text

    assert "Given up:  1 bucket, in part or as a whole. Waiting for delivery: 5 samples, the oldest for 1m." in text


def test_a_receivers_words_to_a_sample_are_shown_bounded() -> None:
    given_up = (GivenUp("refused", 1, NOW, 400, "x" * 9000),)
    destination = replace(DESTINATION, given_up=given_up, refusals=(replace(REFUSAL, reason="x" * 9000),))

    assert document(replace(REPORT, destinations=(destination,))).text.count("x") < 700


def test_how_a_destination_is_spoken_to_and_why_it_is_parked_stand_beside_its_name() -> None:
    destination = replace(DESTINATION, message="1.0 (fell back: HTTP 415)", parked="HTTP 401 since 02:00")

    shown = document(replace(REPORT, destinations=(destination,)))

    assert "remote write 1.0 (fell back: HTTP 415)parked: HTTP 401 since 02:00" in shown.text
    assert "parked" not in document(REPORT).text
    assert "remote write" not in document(REPORT).text.replace("cloudflare-remote-write", "")


def test_of_ten_thousand_zones_the_worst_are_shown_and_the_rest_is_counted() -> None:
    scopes = tuple(structs.replace(SCOPE, name=f"zone{number}.example") for number in range(10_000))
    report = replace(REPORT, scopes=scopes, scope_count=10_000)

    html = page.render(report)

    assert html.count(b"</tr>") < 250
    assert b"zone199.example" in html
    assert b"zone200.example" not in html
    assert b"9,800 more are not shown; /api/v1/status has all of them." in html


def test_of_many_datasets_each_has_a_row_and_a_zone_only_where_something_is_missing() -> None:
    datasets = tuple(
        replace(DATASET, dataset=f"dataset_{number}", kind="account", delay_seconds=3600) for number in range(129)
    )
    lacking = replace(DATASET, dataset="lacking", scope_count=10_000, scopes_missing=2, missing=7, scopes_denied=30)
    scopes = (
        structs.replace(SCOPE, name="lacking.example", missing=7),
        *[structs.replace(SCOPE, name="fine.example")] * 129,
    )
    report = replace(REPORT, datasets=(lacking, *datasets), scopes=scopes, scope_count=130)

    text = document(report).text

    assert "lacking10,000 zones2 with missing windows15m ago2026-01-06T02:45:00Z24 of 24" in text
    assert "dataset_128" in text
    assert "lacking.example" in text
    assert "fine.example" not in text
    assert "Name" not in document(replace(report, scopes=scopes[1:])).text


def test_what_is_denied_is_shown_with_the_number_of_zones_the_first_of_them_and_the_reason() -> None:
    scopes = tuple(structs.replace(DENIED.scopes[0], name=f"zone{number}.example") for number in range(10_000))
    many = replace(DENIED, dataset="firewall_events", scope_count=10_000, scopes=scopes)

    html = page.render(replace(REPORT, denied=(many, *[DENIED] * 250)))
    text = Document(html.decode()).text

    row = "firewall_events10,000 zoneszone0.example, zone1.example, zone2.example, zone3.example, zone4.example, ..."
    assert row + DENIED.reason in text
    assert "http_requests1 zonefree.example" + DENIED.reason in text
    assert html.count(b"</tr>") < 250
    assert "51 more are not shown" in text
    assert "denied" not in document(REPORT).text
    everything = document(replace(REPORT, scopes=(), scope_count=0, denied=(DENIED,))).text
    assert "Everything is denied." in everything
    assert "listed" not in everything


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (5 * 2**20, "5.0 MiB"), (3 * 2**40, "3.0 TiB")],
)
def test_sizes_are_written_in_binary_units(size_bytes: int, text: str) -> None:
    ledger = replace(REPORT.ledger, size_bytes=size_bytes)

    assert f" {text} of 10.0 GiB," in document(replace(REPORT, ledger=ledger)).text
