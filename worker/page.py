"""The status page: one self-contained HTML document for the person who is on call.

Owns how a `StatusReport` looks. Promises that it stays readable with 10,000 zones, in light and in dark, without
scripts and without anything fetched from elsewhere, and that no text in the report is ever taken for markup: every
string is escaped where it becomes HTML, and only this module makes HTML.
"""

import base64
import hashlib
from collections.abc import Iterable
from html import escape

from worker.health import quote
from worker.status import (
    ApiBudget,
    CloudflareStatus,
    DatasetStatus,
    DeniedStatus,
    DestinationStatus,
    JournalEntry,
    LedgerStatus,
    RefusedStatus,
    StatusReport,
    worth_a_row,
)
from worker.times import instant, span

# As many rows as a person scrolls through; the worst come first, and /api/v1/status has the rest.
MAX_ROWS = 200

# Names that show whom a row with many is about.
_FIRST_NAMES = 5

# Long enough to read a table before it moves, short enough to watch a backlog drain.
REFRESH_SECONDS = 15

_STYLE = """
:root { color-scheme: light dark; --line: #8885; --quiet: #6b7280; --good: #15803d; --bad: #c81e1e; }
@media (prefers-color-scheme: dark) { :root { --quiet: #9aa3b2; --good: #4ade80; --bad: #ff8a80; } }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 80rem; margin: 1.5rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0; }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
p, ul { margin: .25rem 0; }
.good { color: var(--good); }
.bad { color: var(--bad); font-weight: 600; }
.quiet { color: var(--quiet); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: .3rem 1.2rem .3rem 0; border-bottom: 1px solid var(--line); }
th { font-weight: 600; white-space: nowrap; }
td, li { unicode-bidi: isolate; }
td:first-child, td:last-child, li { overflow-wrap: anywhere; }
td:first-child { min-width: 15rem; }
td:last-child { min-width: 4rem; }
.number { text-align: right; white-space: nowrap; }
.verdict { font-size: 1.15rem; margin-top: .75rem; }
small { display: block; color: var(--quiet); }
.instant { white-space: nowrap; }
.series { display: block; }
meter { width: 12rem; vertical-align: middle; }
"""

# The page allows itself its own style, by its hash, and nothing else.
CONTENT_SECURITY_POLICY = (
    "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    f"style-src 'sha256-{base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode()}'"
)


class Html(str):
    """Text that is markup already."""

    __slots__ = ()


def tag(name: str, *content: str, css: str = "") -> Html:
    """An element. Content that is not `Html` is escaped."""
    attribute = f' class="{escape(css)}"' if css else ""
    return Html(f"<{name}{attribute}>{_joined(content)}</{name}>")


def render(report: StatusReport) -> bytes:
    """The page as UTF-8. The scopes have to be in the order in which they matter (`worker.status.worst_first`)."""
    body = _joined(
        [
            tag("h1", "cloudflare-remote-write"),
            tag("p", f"version {report.version}, {instant(report.now)}", css="quiet"),
            *_headline(report),
            tag("h2", "Destinations"),
            *_destinations(report.destinations, report.now),
            tag("h2", "Zones and accounts"),
            *_datasets(report),
            *_scopes(report),
            *_denials(report.denied),
            tag("h2", "Ledger"),
            *_ledger(report.ledger),
            tag("h2", "Cloudflare API"),
            *_cloudflare(report.cloudflare),
            tag("h2", "Repairs"),
            _journal(report.journal),
        ]
    )
    document = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<meta http-equiv="refresh" content="{REFRESH_SECONDS}">'
        f"<title>{_title(report)}</title><style>{_STYLE}</style></head><body>{body}</body></html>\n"
    )
    # A name with half a surrogate pair must not cost the page.
    return document.encode(errors="replace")


def _joined(content: Iterable[str]) -> Html:
    return Html("".join(piece if isinstance(piece, Html) else escape(piece) for piece in content))


def _title(report: StatusReport) -> Html:
    return _joined([f"{'ready' if report.readiness.ok else 'NOT READY'} - cloudflare-remote-write"])


def _headline(report: StatusReport) -> list[Html]:
    if report.readiness.ok:
        verdict = tag("p", tag("span", "Ready.", css="good"), " Every loop does its work.", css="verdict")
    else:
        verdict = tag("p", "Not ready:", css="bad verdict")
    problems = [tag("li", str(problem)) for problem in report.readiness.problems]
    told = [tag("ul", *problems)] if problems else []
    return [verdict, *told, _capture_sentence(report), _delivery_sentence(report)]


def _capture_sentence(report: StatusReport) -> Html:
    scopes = report.scopes
    if not scopes:
        return tag("p", "Everything is denied." if report.denied else "No zone has been listed yet.")
    missing = sum(scope.missing for scope in scopes)
    if not missing:
        return tag("p", "Captured: every window that is due.")
    where = sum(scope.missing > 0 for scope in scopes)
    pairs = "pair" if len(scopes) == 1 else "pairs"
    text = f"{_count(missing)} of {_count(sum(scope.expected for scope in scopes))} windows, in {_count(where)} of "
    return tag("p", tag("span", "Missing: ", css="bad"), f"{text}{_count(len(scopes))} {pairs} of zone and dataset.")


def _delivery_sentence(report: StatusReport) -> Html:
    samples = sum(destination.pending_samples for destination in report.destinations)
    ends = [end for destination in report.destinations if (end := destination.oldest_pending_end) is not None]
    lost = sum(each.buckets for destination in report.destinations for each in destination.given_up)
    given_up = [tag("span", "Given up: ", css="bad"), f"{_buckets(lost)}, in part or as a whole. "] if lost else []
    if ends:
        age = span(report.now - min(ends))
        return tag("p", *given_up, f"Waiting for delivery: {_count(samples)} samples, the oldest for {age}.")
    return tag("p", *given_up, "Nothing waits." if lost else "Delivered: everything that was captured.")


def _destinations(destinations: tuple[DestinationStatus, ...], now: float) -> list[Html]:
    header = (
        "Destination",
        "#Waiting",
        "#Oldest for",
        "Last success",
        "#Accepted",
        "#Refused",
        "#Expired",
        "#Damaged",
    )
    rows = [
        (
            _joined([destination.name, tag("small", destination.url), *_way_of_speaking(destination)]),
            _joined(
                [f"{_count(destination.pending_samples)} samples", tag("small", _buckets(destination.pending_buckets))]
            ),
            "-" if destination.oldest_pending_end is None else span(now - destination.oldest_pending_end),
            _ago(destination.last_success_at, now),
            _buckets(destination.acknowledged_buckets),
            _refused(destination),
            _alarming(destination.expired_buckets),
            _alarming(destination.damaged_buckets),
        )
        for destination in destinations
    ]
    failures = [
        # The text is what a receiver said, which is nobody's promise to be short.
        tag("li", f"{destination.name}, {_when(destination.last_failure_at, now)}: {quote(destination.last_failure)}")
        for destination in destinations
        if destination.last_failure is not None
    ]
    given_up = [
        tag(
            "li",
            f"{destination.name}: {_buckets(each.buckets)} {each.state}, the newest {_when(each.newest_at, now)}: "
            f"{_answer(each.status, each.reason)}",
        )
        for destination in destinations
        for each in destination.given_up
    ]
    refused = [
        _refusal(destination.name, refusal, now) for destination in destinations for refusal in destination.refusals
    ]
    return [
        _table(header, rows),
        *_list("Last failures:", failures),
        *_list("Given up:", given_up),
        *_list("The newest refusals:", refused),
    ]


def _way_of_speaking(destination: DestinationStatus) -> Iterable[Html]:
    if destination.message is not None:
        yield tag("small", f"remote write {quote(destination.message)}")
    if destination.parked is not None:
        yield tag("span", f"parked: {quote(destination.parked)}", css="bad")


def _refused(destination: DestinationStatus) -> str:
    if not (destination.partial_buckets or destination.refused_buckets):
        return "0"
    buckets = f"{_buckets(destination.refused_buckets)} wholly, {_count(destination.partial_buckets)} partly"
    return _joined([tag("span", f"{_count(destination.refused_samples)} samples", css="bad"), tag("small", buckets)])


def _refusal(name: str, refusal: RefusedStatus, now: float) -> Html:
    of = "1 sample" if refusal.samples == 1 else f"{_count(refusal.samples)} samples"
    text = f"{name}, {_when(refusal.refused_at, now)}: {of} of {instant(refusal.timestamp)}: "
    hidden = refusal.samples - len(refusal.series)
    rest = [tag("small", f"and {_count(hidden)} more")] if hidden > 0 else []
    series = (tag("code", each, css="series") for each in refusal.series)
    return tag("li", text, _answer(refusal.status, refusal.reason), *series, *rest)


def _answer(status: int | None, reason: str) -> str:
    return quote(reason if status is None else f"HTTP {status}: {reason}")


def _list(title: str, lines: list[Html]) -> list[Html]:
    return [tag("p", title), tag("ul", *lines)] if lines else []


def _buckets(count: int) -> str:
    return f"{_count(count)} {'bucket' if count == 1 else 'buckets'}"


def _datasets(report: StatusReport) -> list[Html]:
    """Of several datasets one row for each, as a zone has a row for each of them below."""
    if len(report.datasets) <= 1:
        return []
    header = ("Dataset", "#Zones or accounts", "Newest window ended", "#Captured", "#Missing", "#Denied to", "#Delay")
    rows = [
        (
            each.dataset,
            _joined([_scope_count(each.kind, each.scope_count), *_lacking(each)]),
            _ago(each.newest_window_end, report.now),
            f"{_count(each.captured)} of {_count(each.expected)}",
            _alarming(each.missing),
            _count(each.scopes_denied),
            span(each.delay_seconds),
        )
        for each in report.datasets[:MAX_ROWS]
    ]
    return [_table(header, rows), *_rest(len(report.datasets) - len(rows))]


def _lacking(dataset: DatasetStatus) -> list[Html]:
    return [tag("small", f"{_count(dataset.scopes_missing)} with missing windows")] if dataset.scopes_missing else []


def _scope_count(kind: str, count: int) -> str:
    return f"{_count(count)} {kind}{'' if count == 1 else 's'}"


def _denials(denied: tuple[DeniedStatus, ...]) -> list[Html]:
    if not denied:
        return []
    header = ("Denied", "#Zones or accounts", "The first of them", "Reason")
    rows = [
        (each.dataset, _scope_count(each.kind, each.scope_count), _first_names(each), quote(each.reason))
        for each in denied[:MAX_ROWS]
    ]
    text = "Not collected, as it is denied; what the plans and the token allow is looked at once a day:"
    return [tag("p", text), _table(header, rows), *_rest(len(denied) - len(rows))]


def _first_names(denied: DeniedStatus) -> str:
    names = [scope.name for scope in denied.scopes[:_FIRST_NAMES]]
    return ", ".join([*names, "..."] if denied.scope_count > len(names) else names)


def _rest(hidden: int) -> list[Html]:
    text = f"{_count(hidden)} more are not shown; /api/v1/status has all of them."
    return [tag("p", text, css="quiet")] if hidden > 0 else []


def _scopes(report: StatusReport) -> list[Html]:
    scopes = worth_a_row(report)
    if report.scopes and not scopes:
        return []
    header = ("Name", "Dataset", "Newest window ended", "#Captured", "#Missing", "Reason")
    rows = [
        (
            _joined([scope.name, tag("small", scope.scope)]),
            scope.dataset,
            _ago(scope.newest_window_end, report.now),
            f"{_count(scope.captured)} of {_count(scope.expected)}",
            _alarming(scope.missing),
            "-" if scope.reason is None else quote(scope.reason),
        )
        for scope in scopes[:MAX_ROWS]
    ]
    return [_table(header, rows), *_rest(len(scopes) - len(rows))]


def _ledger(ledger: LedgerStatus) -> list[Html]:
    text = f" {_size(ledger.size_bytes)} of {_size(ledger.max_bytes)}, {_buckets(ledger.buckets)} in "
    # A meter turns to its warning colour past `high`: four fifths, while there is time to act.
    gauge = Html(
        f'<meter min="0" max="{max(1, ledger.max_bytes)}" high="{ledger.max_bytes * 4 // 5}" '
        f'value="{ledger.size_bytes}"></meter>'
    )
    return [tag("p", gauge, text, tag("code", ledger.path))]


def _cloudflare(cloudflare: CloudflareStatus) -> Iterable[Html]:
    is_single = len(cloudflare.tokens) == 1
    for name, state in cloudflare.tokens.items():
        yield tag("p", f"Token: {state}." if is_single else f"Token {name}: {state}.")
        yield from (_budget(budget) for budget in cloudflare.budgets if budget.token == name)


def _budget(budget: ApiBudget) -> Html:
    # The other way round: the colour warns below `low`, one tenth.
    gauge = Html(
        f'<meter min="0" max="{max(1, budget.limit)}" low="{budget.limit // 10}" optimum="{budget.limit}" '
        f'value="{budget.remaining}"></meter>'
    )
    text = f" {budget.api}: {_count(budget.remaining)} of {_count(budget.limit)} requests per 5 minutes are left."
    return tag("p", gauge, text)


def _journal(entries: tuple[JournalEntry, ...]) -> Html:
    if not entries:
        return tag("p", "None on record.")
    rows = [(instant(entry.at), entry.asked, entry.by, entry.reason, entry.outcome) for entry in entries]
    return _table(("When", "What was asked", "By", "Why", "What came of it"), rows)


def _table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> Html:
    """A table. A title that starts with `#` heads a column of numbers; long words break in the first and the last."""
    titles = list(header)
    styles = ["number" if title.startswith("#") else "" for title in titles]
    head = tag("tr", *(tag("th", title.lstrip("#"), css=css) for title, css in zip(titles, styles, strict=True)))
    lines = (tag("tr", *(tag("td", cell, css=css) for cell, css in zip(row, styles, strict=True))) for row in rows)
    return tag("div", tag("table", tag("thead", head), tag("tbody", *lines)), css="scroll")


def _ago(moment: float | None, now: float) -> str:
    """How long ago, and below it when, for a cell of a table."""
    if moment is None:
        return "never"
    return _joined([f"{span(now - moment)} ago", tag("small", instant(moment), css="instant")])


def _when(moment: float | None, now: float) -> str:
    """The same for a sentence."""
    return "once" if moment is None else f"{span(now - moment)} ago at {instant(moment)}"


def _alarming(count: int) -> str:
    return tag("span", _count(count), css="bad") if count else "0"


def _count(number: int) -> str:
    return f"{number:,}"


def _size(size_bytes: int) -> str:
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"
