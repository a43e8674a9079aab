import asyncio
import os
import threading
from array import array
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.exporting import Scene, content_of
from tests.unit.ledger.fleet import HOUR, tag
from worker.buckets import Bucket, SampleTimestamp, Window
from worker.cli import export
from worker.clock import SystemClock
from worker.openmetrics import number_text, series_text, timestamp_text
from worker.remote_write.receiver import MemoryReceiver
from worker.series import label_block

DAY = 24 * HOUR
T0 = int(SystemClock().now()) // DAY * DAY - 3 * DAY
NAMES = {"zone": "zone-1.example", "account": "Example"}


def traffic(zone: int, hour: int, *, requests: float = 10.5, countries: Sequence[str] = ("DE", "FR")) -> Bucket:
    """A bucket as it is collected, stamped at its start."""
    labels = {**NAMES, "zone_id": tag(zone)}
    values = {label_block("cloudflare_zone_requests", labels): requests}
    for number, country in enumerate(countries):
        values[label_block("cloudflare_zone_country_requests", {**labels, "country": country})] = number * hour
    window = Window(T0 + hour * HOUR, HOUR)
    return Bucket("http_requests", tag(zone), window, window.start * 1000, tuple(values), array("d", values.values()))


def lines_of(*buckets: Bucket) -> list[str]:
    lines = []
    for bucket in buckets:
        for block, value in zip(bucket.series, bucket.values, strict=True):
            metric, labels = series_text(block)
            lines.append(f"{metric}{{{labels}}} {number_text(value)} {timestamp_text(bucket.timestamp_ms)}")
    return [*lines, "# EOF"]


@pytest.fixture(scope="module")
def receiver() -> Iterator[tuple[MemoryReceiver, str]]:
    """One that listens in a thread of its own, as commands run in the main one."""
    memory, url, loop, stopping = MemoryReceiver(), Future[str](), asyncio.new_event_loop(), asyncio.Event()

    async def listen() -> None:
        async with memory.listening() as at:
            url.set_result(at)
            await stopping.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(listen(),))
    thread.start()
    yield memory, url.result()
    loop.call_soon_threadsafe(stopping.set)
    thread.join()
    loop.close()


@pytest.fixture
def scene(tmp_path: Path, receiver: tuple[MemoryReceiver, str], monkeypatch: pytest.MonkeyPatch) -> Scene:
    for name in list(os.environ):
        if name.startswith(("CF_", "REMOTE_WRITE_", "LEDGER_", "LISTEN_", "LOG_")):
            monkeypatch.delenv(name)
    receiver[0].samples.clear()
    return Scene(tmp_path, receiver[1])


def text(scene: Scene, *lines: str, name: str = "in.om") -> str:
    file = scene.folder / name
    file.write_text("".join(f"{line}\n" for line in lines))
    return str(file)


def everything(scene: Scene) -> list[object]:
    names = ("bucket", "delivery", "job", "series", "staged", "hole", "part")
    return [scene.rows(f"SELECT * FROM {name}") for name in names]  # noqa: S608 - names from above


def captured(scene: Scene) -> Sequence[object]:
    return scene.rows(
        "SELECT dataset.name, scope.tag, width_seconds, start, timestamp_ms FROM bucket"
        " JOIN dataset ON dataset.id = dataset_id JOIN scope ON scope.id = scope_id ORDER BY start, tag, dataset.name"
    )


def test_an_export_that_is_imported_is_the_same_ledger_and_arrives_and_a_second_time_changes_nothing(
    scene: Scene, receiver: tuple[MemoryReceiver, str], tmp_path: Path
) -> None:
    buckets = [traffic(zone, hour) for zone in (1, 2) for hour in range(30)]
    buckets[3] = replace(buckets[3], values=array("d", [float("nan"), -0.0, float("inf")]))
    scene.captured(*buckets)
    assert scene.cfrw("export", "--from", "9d", "--output", str(tmp_path / "out")).exit_code == 0
    files = [str(file) for file in sorted((tmp_path / "out").glob("*.om"))]
    assert len(files) == 2

    (tmp_path / "new").mkdir()
    new = Scene(tmp_path / "new", scene.write_url).captured()
    dry = new.cfrw("import", *files, "--dry-run")
    assert (dry.exit_code, captured(new)) == (0, [])
    assert "Would be imported: 60 buckets with 180 samples" in dry.stdout
    result = new.cfrw("import", *files, "--reason", "moved")
    assert result.exit_code == 0, result.output
    assert "Imported 60 buckets with 180 samples" in result.stdout
    assert captured(new) == captured(scene)
    wanted = {labels: {at: str(value) for at, value in each.items()} for labels, each in content_of(buckets).items()}
    assert wanted == {
        frozenset(labels): {at: str(value) for at, value in each.items()}
        for labels, each in receiver[0].samples.items()
    }
    assert new.rows("SELECT kind, state, reason FROM job") == [("import", "done", "moved")]
    assert new.rows("SELECT DISTINCT state, job_id FROM delivery") == [("acknowledged", 1)]
    assert new.rows("SELECT * FROM staged") == []
    assert "60 buckets imported" in new.cfrw("journal").stdout
    assert "Imported 60 buckets" in new.cfrw("journal", "1").stdout

    before = everything(new)
    again = new.cfrw("import", *files)
    assert again.exit_code == 0
    assert "60 windows in the ledger already, with the same content: skipped" in again.stdout
    assert everything(new) == before


def test_parts_of_an_export_are_not_imported_alone(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "_LEAST_FILE_BYTES", 1)
    scene.captured(*[traffic(1, hour) for hour in range(30)])
    before = everything(scene)

    def told(name: str, *options: str, **environment: Any) -> str:
        out = scene.folder / name
        assert scene.cfrw("export", "--from", "9d", "--output", str(out), *options).exit_code == 0
        result = scene.cfrw("import", str(out / min(file.name for file in out.glob("*.om"))), **environment)
        assert (result.exit_code, everything(scene)[0]) == (2, before[0])
        return result.stderr

    assert ".om has samples of the same time" in told("sizes", "--max-bytes", "6kB")
    assert "--metric, --undelivered or --destination" in told("metrics", "--metric", "cloudflare_zone_requests")
    assert "--metric, --undelivered or --destination" in told("labels", "--destination", "prom")
    assert "windows of http_requests were 1h long" in told("widths", CF_BUCKET_SECONDS="60")
    days = sorted((scene.folder / "widths").glob("*.om"))
    result = scene.cfrw("import", str(days[1]))
    assert (result.exit_code, "Nothing is new to the ledger" in result.stdout) == (0, True)


def test_where_any_line_is_wrong_nothing_is_imported_and_the_lines_are_told(scene: Scene) -> None:
    scene.captured(traffic(2, 0))
    before = everything(scene)
    good = lines_of(traffic(1, 0))[:-1]
    bad = [line.replace("country", "land") for line in lines_of(*(traffic(1, hour) for hour in range(1, 15)))[:-1]]
    first = text(scene, *good, name="a.om")
    second = text(scene, *bad, "# EOF", name="b.om")
    result = scene.cfrw("import", first, second)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: nothing is imported:\n  {first}:3: the text does not end in # EOF")
    # Each of fourteen hours has two samples of countries.
    where = f"{second}:2, 3, 5 and 25 more lines"
    assert f"  {where}: cloudflare_zone_land_requests is the metric of no dataset; did you mean" in result.stderr
    assert len(result.stderr.splitlines()) == 3
    assert everything(scene) == before


def test_each_mistake_is_told_once_with_what_the_first_lines_have(scene: Scene) -> None:
    scene.captured()
    unknown = [f'cloudflare_zone_requests{{zone_id="{zone}"}} 1 {T0}' for zone in "abacd"]
    misspelt = [f'unknown_{number}{{zone_id="a"}} 1 {T0}' for number in (*range(20), 0)]
    result = scene.cfrw("import", text(scene, *unknown, *misspelt, "# EOF"))
    assert result.exit_code == 2
    _, first, second, *_, last, rest = result.stderr.replace(f"{scene.folder}/", "").splitlines()
    words = "the ledger knows no such zone; what is imported has to be listed once before"
    assert first == f"  in.om:1, 2, 3 and 2 more lines: {words} (zone_id='a', zone_id='b')"
    assert second == "  in.om:6, 26: unknown_0 is the metric of no dataset"
    assert last == "  in.om:24: unknown_18 is the metric of no dataset"
    assert rest == "  and 1 line with other mistakes"


def test_what_the_ledger_has_otherwise_is_told_and_nothing_is_imported(scene: Scene) -> None:
    scene.captured(traffic(1, 0), traffic(1, 1), traffic(1, 2), traffic(1, 3))
    before = everything(scene)
    file = text(
        scene,
        *lines_of(traffic(1, 0), traffic(1, 1, requests=11.0), traffic(1, 2, countries=("DE",)), traffic(1, 9)),
    )
    result = scene.cfrw("import", file)
    assert result.exit_code == 2
    assert f"{file}:4: the ledger has another value; what is captured never changes" in result.stderr
    assert f"{file}:7: the ledger has other series, or another time" in result.stderr
    assert result.stderr.count("in.om") == 2
    assert everything(scene) == before


CERTIFICATE = 'cloudflare_zone_certificate_active{{certificate_id="{}",type="universal",zone_id="' + tag(1) + '"}} 1 {}'
REQUESTS = 'cloudflare_zone_requests{zone_id="' + tag(1) + '"} 1'


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (f'cloudflare_zone_requests{{zone_id="{tag(9)}"}} 1 {T0}', "the ledger knows no such zone"),
        (f'cloudflare_zone_requests{{zone="zone-1.example"}} 1 {T0}', "no label zone_id"),
        (f'cloudflare_zone_request{{zone_id="{tag(1)}"}} 1 {T0}', "did you mean cloudflare_zone_requests?"),
        (f'cloudflare_zone_requests{{zone_id="{tag(1)}",cluster="a"}} 1 {T0}', "has no label cluster"),
        (f'cloudflare_zone_country_requests{{zone_id="{tag(1)}"}} 1 {T0}', "lacks the label country"),
        (f'cloudflare_zone_sample_interval{{zone_id="{tag(1)}"}} 1 {T0}', "several datasets"),
        (f"{REQUESTS} {T0 + 60}", "is not the start of a window of 1h"),
        (f"{REQUESTS} {T0 + 3599}.999", "as CF_SAMPLE_TIMESTAMP and CF_BUCKET_SECONDS say; it is its end"),
        (f"{REQUESTS} {T0 + 40 * DAY}", "is not final yet"),
        (f"{REQUESTS} {T0 - 30 * DAY}", "older than LEDGER_RETENTION_HOURS (168)"),
        (f"{REQUESTS} {T0}\n{REQUESTS} {T0}", "in.om:2: the series has a sample of that time already ("),
        (f"{CERTIFICATE.format('a', T0 + 5)}\n{CERTIFICATE.format('b', T0 + 6)}", "in.om:2: another sample of cert"),
    ],
)
def test_a_sample_that_is_of_no_bucket_is_told_with_its_line(scene: Scene, line: str, told: str) -> None:
    scene.captured(traffic(2, 0))
    before = everything(scene)
    result = scene.cfrw("import", text(scene, line, "# EOF"))
    assert result.exit_code == 2
    assert told in result.stderr, result.stderr
    assert everything(scene) == before


def test_windows_of_two_widths_never_overlap(scene: Scene) -> None:
    scene.captured(traffic(1, 5))
    result = scene.cfrw("import", text(scene, f"{REQUESTS} {T0}", "# EOF"), CF_BUCKET_SECONDS="86400")
    assert result.exit_code == 2
    assert "the ledger has a window of another width at that time" in result.stderr


def test_facts_keep_the_time_of_their_read_and_sampled_datasets_their_label(scene: Scene) -> None:
    scene.captured()
    lines = [
        CERTIFICATE.format("a", f"{T0 + 5}.25"),
        f'cloudflare_zone_sample_interval{{dataset="cache_reserve_requests",zone_id="{tag(1)}"}} 3 {T0}',
        "# EOF",
    ]
    assert scene.cfrw("import", text(scene, *lines)).exit_code == 0
    assert captured(scene) == [
        ("cache_reserve_requests", tag(1), HOUR, T0, T0 * 1000),
        ("certificates", tag(1), HOUR, T0, T0 * 1000 + 5250),
    ]


def test_what_is_read_from_standard_input_is_stamped_as_the_settings_say(scene: Scene) -> None:
    scene.captured()
    bucket = traffic(1, 0)
    stamped = replace(bucket, timestamp_ms=bucket.window.timestamp_ms(SampleTimestamp.END))
    stdin = "".join(f"{line}\n" for line in lines_of(stamped)).encode()
    result = scene.cfrw("import", "-", stdin=stdin, CF_SAMPLE_TIMESTAMP="end")
    assert result.exit_code == 0, result.output
    assert captured(scene) == [("http_requests", tag(1), HOUR, T0, stamped.timestamp_ms)]
    wrong = scene.cfrw("import", "-", stdin=b"\x1f\x8b\x08")
    assert (wrong.exit_code, "standard input:1: the file is compressed" in wrong.stderr) == (2, True)


def test_a_file_that_cannot_be_read_is_told(scene: Scene) -> None:
    scene.captured()
    result = scene.cfrw("import", str(scene.folder / "missing.om"))
    assert result.exit_code == 2
    assert "missing.om cannot be read: No such file or directory" in result.stderr


def test_an_import_that_does_not_arrive_is_incomplete(scene: Scene) -> None:
    scene.captured().write_url = "http://127.0.0.1:9/api/v1/write"
    config = scene.configured(queue_config={"min_backoff": "1ms", "max_backoff": "1ms"})
    result = scene.cfrw("import", text(scene, *lines_of(traffic(1, 0))), "--config", str(config))
    assert result.exit_code == 3
    assert "is not finished" in result.stderr
    assert scene.rows("SELECT state FROM job") == [("running",)]
    assert len(captured(scene)) == 1
