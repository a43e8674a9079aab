import csv
import hashlib
import json
import os
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from tests.exporting import Content, Scene, content_of
from tests.unit.ledger.fleet import HOUR, bucket_of, refuse_whole, tag
from worker.buckets import Bucket, SampleTimestamp, Window
from worker.cli import export as command
from worker.clock import SystemClock
from worker.export.files import Folder
from worker.ledger import Ledger, Refusal, acknowledge, expire, refuse, register_destinations
from worker.openmetrics import END, Sample, read
from worker.series import parse_label_block

DAY = 24 * HOUR
T0 = int(SystemClock().now()) // DAY * DAY - 3 * DAY


def hours(zone: int, *numbers: int, **further: Any) -> list[Bucket]:
    return [bucket_of(zone, Window(T0 + number * HOUR, HOUR), **further) for number in numbers]


@pytest.fixture(autouse=True)
def _nothing_of_the_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("CF_", "REMOTE_WRITE_", "LEDGER_", "LISTEN_", "LOG_")):
            monkeypatch.delenv(name)


@pytest.fixture
def scene(tmp_path: Path) -> Scene:
    return Scene(tmp_path)


def content_in(*files: Path) -> Content:
    """What is in files, of which each has the samples of a family together and those of a series ascending."""
    content: Content = {}
    for file in files:
        families: list[str] = []
        with file.open("rb") as stream:
            newest: dict[Any, int] = {}
            for _, sample in read(stream):
                assert isinstance(sample, Sample), sample
                labels = frozenset(parse_label_block(sample.block).items())
                metric = dict(labels)["__name__"]
                if families[-1:] != [metric]:
                    assert metric not in families
                    families.append(metric)
                assert sample.timestamp_ms > newest.get(labels, 0)
                newest[labels] = sample.timestamp_ms
                content.setdefault(labels, {})[sample.timestamp_ms] = sample.value
        for metric in families:
            assert file.read_text().count(f"# TYPE {metric} gauge\n") == 1
    return content


def test_an_export_has_what_the_ledger_has_a_file_for_each_day_and_is_on_record(scene: Scene) -> None:
    buckets = [*hours(1, *range(30)), *hours(2, 3, 40), *hours(3, 5, samples=0)]
    scene.captured(*buckets)
    result = scene.cfrw("export", "--from", "9d", "--output", str(scene.folder / "out"), "--reason", "disk swap")
    assert (result.exit_code, result.stdout) == (0, "")
    files = sorted((scene.folder / "out").glob("*.om"))
    assert len(files) == 2
    assert content_in(*files) == content_of(buckets)

    receipt = json.loads((scene.folder / "out" / "receipt.json").read_text())
    assert receipt["samples"] == 32 * 3
    assert {file["name"]: file["sha256"] for file in receipt["files"]} == {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files
    }
    ((kind, state, reason, written),) = scene.rows("SELECT kind, state, reason, result FROM job")
    assert (kind, state, reason) == ("export", "done", "disk swap")
    assert json.loads(written)["samples"] == 96
    assert "96 samples in 2 files" in scene.cfrw("journal").stdout
    assert scene.cfrw("journal", "1").exit_code == 0


def test_an_export_works_beside_a_running_worker(scene: Scene) -> None:
    scene.captured(*hours(1, 0))
    held = Ledger.open(scene.path)
    try:
        assert scene.cfrw("export", "--from", "9d", "--output", str(scene.folder / "out")).exit_code == 0
    finally:
        held._close()
    assert scene.rows("SELECT state FROM job") == [("done",)]


def test_nothing_is_overwritten_and_what_fails_leaves_nothing(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    scene.captured(*hours(1, 0))
    (scene.folder / "out").mkdir()
    before = scene.files()
    result = scene.cfrw("export", "--from", "9d", "--output", str(scene.folder / "out"))
    assert result.exit_code == 2
    assert "nothing is overwritten" in result.stderr

    opened: list[BinaryIO] = []

    def full(_folder: Folder, stream: BinaryIO) -> None:
        opened.append(stream)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Folder, "close", full)
    result = scene.cfrw("export", "--from", "9d", "--output", str(scene.folder / "new"))
    assert [stream.closed for stream in opened] == [True]
    assert result.exit_code == 2
    assert "No space left on device" in result.stderr
    assert scene.files() == before
    assert scene.rows("SELECT * FROM job") == []


def test_files_are_parted_by_stretches_of_the_clock_and_by_size(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command, "_LEAST_FILE_BYTES", 1)
    buckets = [*hours(1, *range(6), samples=8), *hours(2, *range(6), samples=8, stamp=SampleTimestamp.END)]
    scene.captured(*buckets)
    result = scene.cfrw(
        "export", "--from", "9d", "--output", str(scene.folder / "out"), "--block-hours", "2", "--max-bytes", "2kB"
    )
    assert result.exit_code == 0, result.output
    files = sorted((scene.folder / "out").glob("*.om"))
    assert len(files) == 6
    assert content_in(*files) == content_of(buckets)
    for file in files:
        moments = [moment for samples in content_in(file).values() for moment in samples]
        assert max(moments) // (2 * HOUR * 1000) == min(moments) // (2 * HOUR * 1000)
        assert file.stat().st_size <= 2000


def test_only_what_is_named_is_exported(scene: Scene) -> None:
    buckets = [*hours(1, 0, 1), *hours(2, 0), *hours(3, 2, dataset="dns_queries")]
    scene.captured(*buckets)

    def samples(*options: str) -> Content:
        result = scene.cfrw("export", "--from", str(T0), "--output", "-", *options)
        assert result.exit_code == 0, result.output
        (scene.folder / "text").write_bytes(result.stdout_bytes)
        return content_in(scene.folder / "text")

    assert samples() == content_of(buckets)
    assert samples("--zone", "zone-2.example") == content_of(buckets[2:3])
    assert samples("--zone", tag(3), "--dataset", "dns_queries") == content_of(buckets[3:])
    assert samples("--to", str(T0 + HOUR)) == content_of([buckets[0], buckets[2]])
    assert samples("--metric", "cloudflare_zone_threats") == {}
    assert scene.cfrw("export", "--from", "1h", "--output", "-").stdout_bytes == END
    assert scene.rows("SELECT DISTINCT kind FROM job") == [("export",)]


def test_what_a_destination_has_not_got_is_exported_with_its_labels(scene: Scene) -> None:
    partly, refused, expired, sent, waiting = buckets = hours(1, 0, 1, 2, 3, 4)
    scene.captured(*buckets)
    first_two = scene.rows("SELECT series_ids FROM bucket WHERE id = 1")[0][0][:8]
    refusal = Refusal(1, first_two, 400, "no")
    scene.write(refuse, "prom", [refusal], partly=[1], now=1.0)
    scene.write(refuse_whole, "prom", [2])
    scene.write(acknowledge, "prom", [4], 1.0)
    scene.write(expire, ended_before=T0 + 3 * HOUR + 1, now=1.0)
    config = scene.configured(
        external_labels={"cluster": "a"}, write_relabel_configs=[{"regex": "country", "action": "labeldrop"}]
    )
    # Without the country all series of a window are one, of which only the first can be there.
    options = ("export", "--from", "9d", "--output", "-", "--config", str(config))
    result = scene.cfrw(*options, "--destination", "prom", "--undelivered")
    assert result.exit_code == 3, result.stderr
    assert "left out: 5 samples" in result.stderr
    (scene.folder / "text").write_bytes(result.stdout_bytes)
    ((labels, samples),) = content_in(scene.folder / "text").items()
    assert dict(labels) == {"__name__": "cloudflare_zone_requests", "zone_id": tag(1), "cluster": "a"}
    assert samples == {each.timestamp_ms: each.values[0] for each in (partly, refused, expired)}
    assert sent.timestamp_ms not in samples
    assert waiting.timestamp_ms not in samples

    plain = scene.cfrw(*options)
    assert "are sent to prom: --destination" in plain.stderr
    (scene.folder / "text").write_bytes(plain.stdout_bytes)
    assert content_in(scene.folder / "text") == content_of(buckets)

    scene.write(register_destinations, {"prom": False, "new": False}, replay_since=2**40, now=1.0)
    scene.environment["REMOTE_WRITE_URL"] = None
    config.write_text(config.read_text().replace('"prom"', '"new"'))
    result = scene.cfrw(*options, "--destination", "new", "--undelivered", "--metric", "cloudflare_zone_requests")
    assert result.stdout.count("\n") == 4 + len(buckets), "what it never was to get is not there either"


def test_series_of_two_zones_that_get_the_same_labels_follow_each_other_in_time(scene: Scene) -> None:
    buckets = [*hours(1, 0, 1, samples=1), *hours(2, 1, 2, samples=1)]
    scene.captured(*buckets)
    config = scene.configured(write_relabel_configs=[{"regex": "zone_id", "action": "labeldrop"}])
    result = scene.cfrw("export", "--from", "9d", "--output", "-", "--config", str(config), "--destination", "prom")
    assert result.exit_code == 3
    assert "left out: 1 sample: another series has the same labels" in result.stderr
    (scene.folder / "text").write_bytes(result.stdout_bytes)
    ((_, samples),) = content_in(scene.folder / "text").items()
    assert samples == {each.timestamp_ms: each.values[0] for each in (buckets[0], buckets[1], buckets[3])}


def test_a_bucket_that_is_damaged_is_told_and_left_out(scene: Scene) -> None:
    buckets = hours(1, 0, 1)
    scene.captured(*buckets).damaged(T0)
    result = scene.cfrw("export", "--from", "9d", "--output", str(scene.folder / "out"))
    assert result.exit_code == 3
    assert "damaged, and left out: http_requests of zone-1.example, window of " in result.stderr
    assert content_in(*(scene.folder / "out").glob("*.om")) == content_of(buckets[1:])
    assert "1 damaged bucket" in scene.cfrw("journal", "1").stdout


def test_the_table_for_people_has_a_row_for_each_sample(scene: Scene) -> None:
    (bucket,) = hours(1, 0, stamp=SampleTimestamp.END)
    scene.captured(bucket)
    result = scene.cfrw("export", "--from", "9d", "--format", "csv", "--output", str(scene.folder / "out"))
    assert result.exit_code == 0
    (file,) = (scene.folder / "out").glob("*.csv")
    with file.open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [float(row["value"]) for row in rows] == list(bucket.values)
    assert rows[0]["time"].endswith(":59:59.999Z")
    assert (rows[0]["dataset"], rows[0]["scope"], rows[0]["metric"]) == (
        "http_requests",
        "zone-1.example",
        "cloudflare_zone_requests",
    )
    assert rows[1]["labels"] == f'country="C1",zone_id="{tag(1)}"'


def test_samples_that_prometheus_has_in_its_head_are_warned_of(scene: Scene) -> None:
    now = int(SystemClock().now()) // HOUR * HOUR
    scene.captured(bucket_of(1, Window(now - HOUR, HOUR)))
    result = scene.cfrw("export", "--from", "9d", "--output", str(scene.folder / "out"))
    assert "younger than three hours" in result.stderr
    assert "younger than three hours" in (scene.folder / "out" / "receipt.json").read_text()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--from", "2199-01-01"], "--from 2199-01-01 is in the future"),
        (["--from", "2d", "--to", "3d"], "nothing lies between --from"),
        (["--from", "yesterday"], "--from: 'yesterday' is no time"),
        (["--from", "2d", "--zone", "zone-1.exampel"], "did you mean zone-1.example"),
        (["--from", "2d", "--dataset", "http"], "--dataset http is not known"),
        (["--from", "2d", "--metric", "cloudflare_zone_request"], "did you mean cloudflare_zone_requests"),
        (["--from", "2d", "--destination", "mimir"], "--destination mimir is not known"),
        (["--from", "2d", "--undelivered"], "--undelivered needs --destination"),
        (["--from", "2d", "--block-hours", "3"], "--block-hours 3 has to be even"),
        (["--from", "2d", "--max-bytes", "1"], "--max-bytes 1: must be at least"),
        (["--from", "2d", "--max-bytes", "1GiB", "--output", "-"], "standard output is one"),
        (["--from", "2d", "--output", "/nowhere/out"], "cannot be written to /nowhere/out: No such file"),
    ],
)
def test_what_cannot_be_exported_is_one_message_and_nothing_is_done(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, options: list[str], told: str
) -> None:
    monkeypatch.chdir(scene.folder)
    scene.captured(*hours(1, 0))
    before = scene.files()
    result = scene.cfrw("export", *options)
    assert result.exit_code == 2
    assert told in result.stderr
    assert scene.files() == before
    assert scene.rows("SELECT * FROM job") == []
