"""Reading facts: what becomes of Cloudflare's listings, sound and hostile ones."""

from array import array
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import pytest

from tests.unit.cloudflare.fake import FakeCloudflare, tag, zone
from worker.cloudflare import FACT_SETS, Account, ApiFailure, ErrorKind, Samples, Scope, Zone
from worker.cloudflare.catalogue.personal import is_personal
from worker.series import parse_label_block

ZONE = zone(1)
ACCOUNT = Account(tag(0xACC), "Example Inc")
SCOPES: Mapping[str, Scope] = {"zone": ZONE, "account": ACCOUNT}
PATHS = {
    "certificates": f"/zones/{ZONE.tag}/ssl/certificate_packs",
    "lb_pools": f"/accounts/{ACCOUNT.tag}/load_balancers/pools",
    "tunnel_status": f"/accounts/{ACCOUNT.tag}/cfd_tunnel",
}
each_fact_set = pytest.mark.parametrize("name", FACT_SETS)


def pack(number: int, *expiries: str | None, **changed: Any) -> dict[str, Any]:
    certificates = [{"id": "x", "hosts": ["a.example"], "issuer": "GoogleTrust", "expires_on": at} for at in expiries]
    whole = {"id": tag(number), "type": "universal", "status": "active", "hosts": [], "certificates": certificates}
    return {**whole, **changed}


def pool(number: int, *origins: dict[str, Any], **changed: Any) -> dict[str, Any]:
    return {"id": tag(number), "name": f"pool-{number}", "healthy": True, "origins": list(origins), **changed}


def origin(name: str, **changed: Any) -> dict[str, Any]:
    return {"name": name, "address": "192.0.2.1", "weight": 0.5, "enabled": True, **changed}


def tunnel(number: int, status: str = "healthy", **changed: Any) -> dict[str, Any]:
    connections = [{"origin_ip": "192.0.2.2", "client_id": "c"}]
    return {"id": tag(number), "name": f"t-{number}", "status": status, "connections": connections, **changed}


OBJECTS = {
    "certificates": pack(1, "2026-02-03T04:05:06Z"),
    "lb_pools": pool(1, origin("a")),
    "tunnel_status": tunnel(1),
}


def body(result: Any, **info: Any) -> dict[str, Any]:
    return {"success": True, "errors": [], "messages": [], "result": result} | ({"result_info": info} if info else {})


async def read_each(name: str, answers: Sequence[Any]) -> list[Samples | ApiFailure]:
    """What is read where the API answers so, whatever the page: text, or something that is written as JSON."""
    found = []
    content: dict[str, Any] = {}
    fact_set = FACT_SETS[name]
    api = FakeCloudflare(
        rest=lambda path, _: httpx.Response(200, **content) if path == PATHS[name] else missing()
    ).api()
    for answer in answers:
        content = {"text": answer} if isinstance(answer, str) else {"json": answer}
        found.append(await api.read_facts(fact_set, SCOPES[fact_set.scope]))
    return found


async def read(name: str, answer: Any) -> Samples | ApiFailure:
    (found,) = await read_each(name, [answer])
    return found


def missing() -> httpx.Response:
    return httpx.Response(404, json={"success": False, "errors": [{"code": 7003, "message": "Could not route"}]})


async def values(name: str, *objects: dict[str, Any]) -> dict[str, float]:
    """The samples without what every series of the scope has."""
    found = await read(name, body(list(objects)))
    assert isinstance(found, Samples), found
    of_scope = SCOPES[FACT_SETS[name].scope].labels()
    told = {}
    for block, value in zip(found.series, found.values, strict=True):
        labels = parse_label_block(block)
        assert of_scope.items() <= labels.items()
        metric = labels.pop("__name__").removeprefix("cloudflare_")
        told[" ".join([metric, *(text for label, text in labels.items() if label not in of_scope)])] = value
    return told


async def test_a_pack_expires_with_its_first_certificate() -> None:
    two = pack(1, "2026-02-03T04:05:06Z", "2026-02-03T06:05:05.5+02:00", certificate_authority="google")
    new = pack(2, status="pending_validation", type="advanced")
    undated = pack(3, None, "2026-01-01T00:00:00Z")
    assert await values("certificates", two, new, undated, pack(4, "2020-01-01T00:00:00Z", status="deleted")) == {
        f"zone_certificate_active {tag(1)} universal": 1.0,
        f"zone_certificate_expiry_timestamp_seconds {tag(1)} google universal": 1_770_091_505.5,
        f"zone_certificate_active {tag(2)} advanced": 0.0,
        f"zone_certificate_active {tag(3)} universal": 1.0,
        f"zone_certificate_expiry_timestamp_seconds {tag(3)} GoogleTrust universal": 1_767_225_600.0,
    }


async def test_a_pool_without_a_monitor_has_no_health_and_origins_of_one_name_share_a_series() -> None:
    twins = pool(1, origin("a"), origin("a", weight=0.25), origin("", weight=1))
    assert await values("lb_pools", twins, pool(2, healthy=None), pool(3, healthy=False, origins=None)) == {
        f"account_lb_pool_healthy pool-1 {tag(1)}": 1.0,
        f"account_lb_origin_weight a pool-1 {tag(1)}": 0.75,
        f"account_lb_origin_weight unknown pool-1 {tag(1)}": 1.0,
        f"account_lb_pool_healthy pool-3 {tag(3)}": 0.0,
    }


async def test_a_tunnel_has_one_status_of_a_few() -> None:
    gone = tunnel(3, deleted_at="2026-01-01T00:00:00Z")
    assert await values("tunnel_status", tunnel(1), tunnel(2, "down"), gone, tunnel(4, "a new word")) == {
        f"account_tunnel_healthy t-1 {tag(1)}": 1.0,
        f"account_tunnel_status healthy t-1 {tag(1)}": 1.0,
        f"account_tunnel_healthy t-2 {tag(2)}": 0.0,
        f"account_tunnel_status down t-2 {tag(2)}": 1.0,
        f"account_tunnel_healthy t-4 {tag(4)}": 0.0,
        f"account_tunnel_status other t-4 {tag(4)}": 1.0,
    }


@each_fact_set
async def test_a_series_has_the_labels_that_are_announced_and_no_personal_ones(name: str) -> None:
    announced = {metric.name: {*labels} for metric, labels in FACT_SETS[name].metrics()}
    found = await read(name, body([OBJECTS[name]]))
    assert isinstance(found, Samples)
    of_scope = SCOPES[FACT_SETS[name].scope].labels()
    seen = {}
    for block in found.series:
        labels = parse_label_block(block)
        assert not any(text.startswith("192.0.2.") for text in labels.values())
        metric = labels.pop("__name__")
        seen[metric] = labels.keys() - of_scope
    assert seen == announced
    assert not [label for labels in announced.values() for label in labels if is_personal(label)]


@each_fact_set
async def test_nothing_is_an_answer(name: str) -> None:
    for found in await read_each(name, [body([]), body(None), body([], total_count=0, count=0)]):
        assert found == Samples((), array("d"))


@each_fact_set
async def test_all_pages_are_read(name: str) -> None:
    objects = [{**OBJECTS[name], "id": tag(number)} for number in range(120)]
    asked: list[Mapping[str, str]] = []

    def rest(path: str, params: Mapping[str, str]) -> httpx.Response:
        assert path == PATHS[name]
        asked.append(params)
        first = 50 * (int(params["page"]) - 1)
        return httpx.Response(200, json=body(objects[first : first + 50], total_count=120))

    found = await FakeCloudflare(rest=rest).api().read_facts(FACT_SETS[name], SCOPES[FACT_SETS[name].scope])
    assert isinstance(found, Samples)
    assert len(found.series) == 240
    assert [params["page"] for params in asked] == ["1", "2", "3"]
    assert {params["per_page"] for params in asked} == {"50"}


def broken(name: str) -> Sequence[Any]:
    whole = OBJECTS[name]
    return [
        *("", "[]", "null", "not JSON", "<html>", "{", '{"success": true}', '{"result": {"id": 1}}', "[" * 100_000),
        *(body([{key: value for key, value in whole.items() if key != "id"}]), body([None]), body([whole | {"id": 5}])),
        # Listed in part: fewer than there are, more, other ones at each page.
        *(body([whole], total_count=2), body([whole], total_count=0), body([whole], total_count="1")),
        body([whole], total_count=10_001),
    ]


HOSTILE: Mapping[str, Sequence[Any]] = {
    "certificates": [
        *(pack(2, "soon"), pack(2, "2026-02-03T04:05:06"), pack(2, "2026-02-30T00:00:00Z"), pack(2, status=None)),
        *(pack(2, certificates={}), pack(2, certificates=[None]), pack(2, type=7)),
    ],
    "lb_pools": [
        *(pool(2, origin("a", weight="much")), pool(2, origin("a", weight=None)), pool(2, healthy="yes")),
        *(pool(2, {"weight": 1}), pool(2, name=None), pool(2, origins="none")),
    ],
    "tunnel_status": [tunnel(2, status=None), tunnel(2, name=3), tunnel(2, deleted_at=5)],  # type: ignore[arg-type]
}


@each_fact_set
async def test_an_answer_that_is_not_whole_and_sound_brings_no_sample(name: str) -> None:
    answers = [*broken(name), *(body([OBJECTS[name], bad]) for bad in HOSTILE[name])]
    for answer, found in zip(answers, await read_each(name, answers), strict=True):
        assert isinstance(found, ApiFailure), answer
        assert found.kind in {ErrorKind.MALFORMED, ErrorKind.SERVER, ErrorKind.TOO_LARGE}, answer


async def test_numbers_that_are_none_are_refused() -> None:
    sound = '{"result": [{"id": "1", "name": "p", "origins": [{"name": "o", "weight": 1}]}]}'
    bad = [sound.replace(": 1}", f": {number}}}") for number in ("NaN", "1e999", "-Infinity")]
    assert [type(found) for found in await read_each("lb_pools", [sound, *bad])] == [Samples, *[ApiFailure] * 3]


async def test_a_missing_permission_is_told_as_it_is() -> None:
    answer = {"success": False, "errors": [{"code": 9109, "message": "Unauthorized to access requested resource"}]}
    fake = FakeCloudflare(rest=lambda _path, _params: httpx.Response(403, json=answer))
    found = await fake.api().read_facts(FACT_SETS["certificates"], Zone(tag(1), "a.example"))
    assert isinstance(found, ApiFailure)
    assert found.kind is ErrorKind.AUTH_SCOPE
