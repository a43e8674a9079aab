import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from tests.clocks import ManualClock
from worker.health import Health
from worker.observe import PUSH_OUTCOMES, Metrics, replace_values

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def health(clock: ManualClock) -> Health:
    return Health(clock)


@pytest.fixture
def metrics(clock: ManualClock, health: Health) -> Metrics:
    return Metrics(
        clock,
        health,
        version="1.2.3",
        sqlite_version="3.54.1",
        destinations=["prod", "backup"],
        datasets=["http_requests"],
    )


def samples(metrics: Metrics) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    body, _ = metrics.exposition("")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in parse_text(body.decode())
        for sample in family.samples
    }


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return samples(metrics).get((name, frozenset(labels.items())))


def use_everything(metrics: Metrics, health: Health) -> None:
    """Gives every metric a series, so that nothing escapes whoever reads the exposition."""
    for description in metrics.descriptions():
        metric = getattr(metrics, description.name.removeprefix("cfrw_"), None)
        if metric is not None and description.labels:
            metric.labels(*(f"some {label}" for label in description.labels))
    health.expect("collect", allowance_seconds=300, liveness_seconds=60)


def test_promtool_has_nothing_to_say(metrics: Metrics, health: Health, required_program: Callable[[str], Path]) -> None:
    promtool = required_program("promtool")
    use_everything(metrics, health)
    body, _ = metrics.exposition("")

    result = subprocess.run([promtool, "check", "metrics"], input=body, capture_output=True, check=False)

    assert (result.returncode, result.stdout, result.stderr) == (0, b"", b"")


def test_every_metric_is_described_as_it_is_exposed(metrics: Metrics, health: Health) -> None:
    use_everything(metrics, health)
    body, _ = metrics.exposition("")
    exposed = {
        (family.name + ("_total" if family.type == "counter" else ""), family.type, family.documentation): {
            frozenset(sample.labels) - {"le"} for sample in family.samples
        }
        for family in parse_text(body.decode())
    }

    described = {
        (description.name, description.kind, description.help): {frozenset(description.labels)}
        for description in metrics.descriptions()
    }

    assert described == exposed
    assert len(metrics.descriptions()) == len(described)


def test_an_attribute_is_called_as_its_metric(metrics: Metrics) -> None:
    attributes = {f"cfrw_{name}" for name in vars(metrics) if not name.startswith("_")}

    assert attributes == {description.name for description in metrics.descriptions()} - {
        "cfrw_push_oldest_pending_age_seconds",
        "cfrw_ready",
        "cfrw_token_accepted",
        "cfrw_loop_last_completed_timestamp_seconds",
        "cfrw_loop_allowance_seconds",
    }


def test_all_names_start_with_the_worker_s_prefix(metrics: Metrics) -> None:
    assert all(name.startswith("cfrw_") for name, _ in samples(metrics))


def test_no_creation_times_double_the_series(metrics: Metrics) -> None:
    assert not [name for name, _ in samples(metrics) if name.endswith("_created")]


def test_build_info_says_what_runs(metrics: Metrics) -> None:
    labels = next(dict(labels) for name, labels in samples(metrics) if name == "cfrw_build_info")

    assert labels["version"] == "1.2.3"
    assert labels["sqlite_version"] == "3.54.1"
    assert labels["python_version"].startswith("3.")


def test_series_of_known_destinations_and_datasets_exist_before_anything_happened(metrics: Metrics) -> None:
    for outcome in PUSH_OUTCOMES:
        assert value(metrics, "cfrw_push_requests_total", destination="backup", outcome=outcome) == 0
    assert value(metrics, "cfrw_collect_captured_buckets_total", dataset="http_requests") == 0
    assert value(metrics, "cfrw_push_last_success_timestamp_seconds", destination="prod") == 0


async def test_the_age_of_the_backlog_grows_while_no_loop_passes(metrics: Metrics, clock: ManualClock) -> None:
    metrics.set_oldest_pending("prod", clock.now() - 100)
    await clock.advance(50)

    assert value(metrics, "cfrw_push_oldest_pending_age_seconds", destination="prod") == 150
    assert value(metrics, "cfrw_push_oldest_pending_age_seconds", destination="backup") == 0


def test_the_age_of_an_empty_backlog_is_zero(metrics: Metrics, clock: ManualClock) -> None:
    metrics.set_oldest_pending("prod", clock.now() - 100)
    metrics.set_oldest_pending("prod", None)

    assert value(metrics, "cfrw_push_oldest_pending_age_seconds", destination="prod") == 0


def test_an_age_is_not_negative_where_the_clock_was_set_back(metrics: Metrics, clock: ManualClock) -> None:
    metrics.set_oldest_pending("prod", clock.now() + 3600)

    assert value(metrics, "cfrw_push_oldest_pending_age_seconds", destination="prod") == 0


async def test_loops_and_readiness_are_told_as_they_are_at_the_scrape(
    metrics: Metrics, health: Health, clock: ManualClock
) -> None:
    health.ledger_writable()
    health.token_accepted()
    health.expect("collect", allowance_seconds=300, liveness_seconds=60)
    name = "cfrw_loop_last_completed_timestamp_seconds"
    assert (value(metrics, "cfrw_ready"), value(metrics, name, loop="collect")) == (0, 0)

    health.completed("collect")
    completed_at = clock.now()
    assert (value(metrics, "cfrw_ready"), value(metrics, name, loop="collect")) == (1, completed_at)

    await clock.advance(301)
    assert (value(metrics, "cfrw_ready"), value(metrics, name, loop="collect")) == (0, completed_at)
    assert value(metrics, "cfrw_loop_allowance_seconds", loop="collect") == 300


def test_what_a_gauge_no_longer_says_goes_to_zero_and_stays(metrics: Metrics) -> None:
    replace_values(metrics.missing_windows, {("http_requests", "not answered"): 3, ("http_requests", "refused"): 1})
    replace_values(metrics.missing_windows, {("http_requests", "refused"): 2})

    assert value(metrics, "cfrw_missing_windows", dataset="http_requests", reason="not answered") == 0
    assert value(metrics, "cfrw_missing_windows", dataset="http_requests", reason="refused") == 2


PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,"
    "text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
TEXT_FIRST = "text/plain;version=0.0.4;q=0.6,application/openmetrics-text;version=1.0.0;q=0.5"


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", TEXT),
        ("*/*", TEXT),
        ("text/html,application/xhtml+xml", TEXT),
        ("text/plain; version=0.0.4", TEXT),
        ("application/openmetrics-text", OPENMETRICS),
        ("Application/OpenMetrics-Text; version=1.0.0", OPENMETRICS),
        (PROMETHEUS_3, OPENMETRICS),
        (TEXT_FIRST, TEXT),
        ("text/plain, application/openmetrics-text", OPENMETRICS),
        ("application/openmetrics-text;q=0", TEXT),
        ("application/openmetrics-text;version=abc", OPENMETRICS),
        ("application/openmetrics-text;q=lots", TEXT),
        (",;,;q=,=", TEXT),
    ],
)
def test_the_format_is_the_one_that_the_client_prefers(metrics: Metrics, accept: str, content_type: str) -> None:
    body, given = metrics.exposition(accept)

    assert given == content_type
    assert body.endswith(b"# EOF\n") == (content_type == OPENMETRICS)


def test_openmetrics_is_what_its_own_parser_reads(metrics: Metrics, health: Health) -> None:
    use_everything(metrics, health)
    body, _ = metrics.exposition("application/openmetrics-text")

    parsed = parse_openmetrics(body.decode())  # type: ignore[no-untyped-call] # the library has no types for it
    families = {family.name: family.type for family in parsed}

    assert families["cfrw_push_samples"] == "counter"
    assert families["cfrw_collect_pass_duration_seconds"] == "histogram"
