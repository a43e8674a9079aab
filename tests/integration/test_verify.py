"""Verifying and sending again what is missing, against real receivers: each finding told exactly, and healed."""

import asyncio
import time
from array import array
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest
from pydantic import SecretStr

from tests.receivers import Labels, Receiver
from worker.app import Worker
from worker.buckets import Bucket, Window
from worker.clock import SystemClock
from worker.config import CloudflareSettings, DestinationSettings, LedgerSettings, Settings
from worker.ledger import (
    Arguments,
    Job,
    Resend,
    ResendCount,
    ResendResult,
    Scope,
    Verify,
    VerifyCount,
    VerifyResult,
    acknowledge,
    ask,
    capture,
    delivery_counts,
    expire,
    job,
    next_piece,
    record_scopes,
    refuse,
)
from worker.ledger.delivery import Refusal
from worker.series import label_block

HOUR = 3600
T0 = (int(time.time()) // HOUR - 20) * HOUR
WINDOWS = 10
COUNTRIES = 3
METRIC = "cloudflare_zone_country_requests"
EVERYTHING = Verify(T0, T0 + WINDOWS * HOUR)
MISSING = Resend(T0, T0 + WINDOWS * HOUR, only_missing=True)

RELABELLED = {
    "external_labels": {"region": "eu"},
    "write_relabel_configs": [
        {"source_labels": ["__name__"], "regex": "cloudflare_(.+)", "target_label": "__name__", "replacement": "cf_$1"},
        {"regex": "zone_id", "action": "labeldrop"},
        {"source_labels": ["country"], "regex": "C2", "action": "drop"},
    ],
}


def zone(number: int) -> dict[str, str]:
    return {"zone": f"zone-{number}.example", "zone_id": f"{number:032x}"}


def bucket(number: int, hour: int) -> Bucket:
    labels = [zone(number) | {"country": f"C{country}"} for country in range(COUNTRIES)]
    window = Window(T0 + hour * HOUR, HOUR)
    values = array("d", [float(1000 * number + 10 * hour + country) for country in range(COUNTRIES)])
    series = tuple(label_block(METRIC, each) for each in labels)
    return Bucket("http_countries", f"{number:032x}", window, window.start * 1000, series, values)


@pytest.fixture(params=["plain", "relabelled"])
def settings(request: pytest.FixtureRequest, receiver: Receiver, tmp_path: Path) -> Settings:
    more = RELABELLED if request.param == "relabelled" else {}
    destination = DestinationSettings.model_validate(
        {"name": "main", "url": receiver.write_url, "out_of_order_time_window": "30d", **more}
    )
    return Settings(
        cloudflare=CloudflareSettings(api_token=SecretStr("t" * 40)),
        destinations=(destination,),
        ledger=LedgerSettings(path=tmp_path / "ledger.db"),
    )


@pytest.fixture
async def worker(settings: Settings) -> AsyncIterator[Worker]:
    async with Worker(settings, SystemClock(), once=True) as made:
        scopes = [Scope(f"{number:032x}", zone(number)["zone"], "a" * 32, "Example", "pro") for number in (1, 2)]
        await made.ledger.write(record_scopes, scopes, T0)
        await made.ledger.write(
            capture, [bucket(number, hour) for number in (1, 2) for hour in range(WINDOWS)], T0 + WINDOWS * HOUR
        )
        yield made


def sent_as(settings: Settings, number: int, country: int) -> Labels:
    relabelled = bool(settings.destinations[0].external_labels)
    labels = zone(number) | {"country": f"C{country}"}
    if not relabelled:
        return frozenset({"__name__": METRIC, **labels}.items())
    del labels["zone_id"]
    return frozenset({"__name__": METRIC.replace("cloudflare", "cf"), "region": "eu", **labels}.items())


async def bucket_ids(worker: Worker) -> Mapping[tuple[int, int], int]:
    """By zone and hour."""
    piece = await worker.ledger.read(next_piece, "main", since=T0, until=T0 + WINDOWS * HOUR, most_samples=10_000)
    assert piece.place is None
    return {
        (int(held.scope[5]), (held.bucket.timestamp_ms // 1000 - T0) // HOUR): held.bucket.bucket_id
        for held in piece.held
    }


async def carry_out(worker: Worker, arguments: Arguments) -> Job:
    number = await worker.ledger.write(ask, arguments, reason="a test", asked_by="ann@host", now=time.time())
    await worker.push_once(asyncio.Event())
    found = await worker.ledger.read(job, number)
    assert found is not None
    assert found.state == "done", found
    return found


async def verified(worker: Worker) -> VerifyResult:
    result = (await carry_out(worker, EVERYTHING)).result
    assert isinstance(result, VerifyResult)
    return result


async def test_verify_tells_exactly_what_is_wrong_and_only_missing_heals_it(
    receiver: Receiver, settings: Settings, worker: Worker
) -> None:
    is_victoria = "victoria" in receiver.program.name
    a_while_ago = time.time() - HOUR
    countries = 2 if settings.destinations[0].external_labels else 3
    ids = await bucket_ids(worker)
    # The receiver never got these, whatever the ledger says.
    lost = [(1, 0), (1, 1), (2, 9)]
    await worker.ledger.write(acknowledge, "main", [ids[each] for each in lost], a_while_ago)
    # It has these, whatever the ledger says: all of one, one sample of the other.
    await receiver.push(
        {
            sent_as(settings, 1, 0): {(T0 + 2 * HOUR) * 1000: 1020.0, (T0 + 3 * HOUR) * 1000: 1030.0},
            sent_as(settings, 1, 1): {(T0 + 2 * HOUR) * 1000: 1021.0},
            **({sent_as(settings, 1, 2): {(T0 + 2 * HOUR) * 1000: 1022.0}} if countries == 3 else {}),
        }
    )
    series = await worker.ledger.read(next_piece, "main", since=T0, until=T0 + HOUR, most_samples=1)
    refused = Refusal(ids[1, 2], series.held[0].bucket.series_ids, 400, "too old")
    await worker.ledger.write(refuse, "main", [refused], partly=(), now=a_while_ago)
    # It has another value of this one, and something of its own in the midst of the rest.
    other = {(T0 + 4 * HOUR) * 1000: 7.0, (T0 + 4 * HOUR + 60) * 1000: 8.0}
    await receiver.push({sent_as(settings, 1, 0): other})
    rest = {
        sent_as(settings, 1, country): {(T0 + 4 * HOUR) * 1000: 1040.0 + country} for country in range(1, countries)
    }
    await receiver.push(rest)
    await worker.ledger.write(acknowledge, "main", [ids[1, 4]], a_while_ago)
    await worker.ledger.write(expire, ended_before=T0 + 4.5 * HOUR, now=a_while_ago)
    # What is pending still is the rest, of zone 2 from the fourth hour on, and of zone 1 from the fifth.
    await worker.push_once(asyncio.Event())
    await receiver.read_raw("{__name__!=''}")

    first = await verified(worker)

    samples = 20 * countries
    missing, undelivered = 3 * countries, 4 * countries + countries - 1
    assert first.totals == (
        VerifyCount(
            "main",
            equal=samples - missing - undelivered - 1,
            missing=missing,
            different=1,
            extra=1,
            undelivered=undelivered,
        ),
    )
    assert not first.is_good
    by_zone = {(count.metric, count.zone): count for count in first.unequal}
    name = dict(sent_as(settings, 1, 0))["__name__"]
    assert by_zone[METRIC, "zone-1.example"].missing == 2 * countries
    assert by_zone[METRIC, "zone-2.example"].missing == countries
    assert by_zone[name, "zone-1.example"].extra == 1
    assert {(each.finding, each.timestamp_ms // 1000 - T0) for each in first.examples} == {
        ("missing", 0),
        ("missing", HOUR),
        ("missing", 9 * HOUR),
        ("different", 4 * HOUR),
        ("extra", 4 * HOUR + 60),
    }
    (different,) = (each for each in first.examples if each.finding == "different")
    assert (different.expected, different.found) == ("1040.0", ("7.0",))
    assert "zone-1.example" in different.series

    healed = (await carry_out(worker, MISSING)).result

    assert isinstance(healed, ResendResult)
    assert healed.queued == (
        ResendCount("main", "acknowledged", 3, missing),
        ResendCount("main", "expired", 5, undelivered),
    )
    await receiver.read_raw("{__name__!=''}")
    second = await verified(worker)
    assert second.totals == (VerifyCount("main", equal=samples - 1, different=1, extra=1),)
    stored = await receiver.read_raw("{__name__!=''}")
    assert {(count.state, count.buckets) for count in await worker.ledger.read(delivery_counts)} == {
        ("acknowledged", 20)
    }

    again = (await carry_out(worker, MISSING)).result

    assert isinstance(again, ResendResult)
    assert again.queued == ()
    assert again.outcome == (
        ResendCount("main", "already there", 19, samples - 1),
        ResendCount("main", "different", 0, 1),
    )
    await receiver.read_raw("{__name__!=''}")
    if is_victoria:
        assert await receiver.read_raw("{__name__!=''}") == stored
