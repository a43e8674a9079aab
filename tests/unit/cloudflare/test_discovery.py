from collections.abc import Callable, Mapping, Sequence
from typing import Any

import httpx
import pytest

from tests.clocks import ManualClock
from tests.unit.cloudflare.fake import API_URL, TOKEN, FakeCloudflare, Network, tag
from worker.cloudflare import (
    Account,
    AccountList,
    Api,
    ApiFailure,
    ErrorKind,
    Priority,
    Quota,
    TokenAccepted,
    TokenRefused,
    TokenUnknown,
    Unmatched,
    Zone,
    ZoneList,
)
from worker.cloudflare.client import CloudflareClient
from worker.cloudflare.discovery import list_accounts
from worker.cloudflare.quota import Lease, Paused

ACCOUNTS = [{"id": tag(0xA1), "name": "Acme Inc"}, {"id": tag(0xA2), "name": "Globex"}]
TOKEN_ERROR = {"success": False, "errors": [{"code": 1000, "message": "Invalid API Token"}], "result": None}
NO_PERMISSION = {"success": False, "errors": [{"code": 9109, "message": "Unauthorized to access requested resource"}]}


def made(number: int, name: str | None = None, account: int = 0) -> dict[str, Any]:
    return {
        "id": tag(number),
        "name": name or f"zone{number:04}.example",
        "status": "active",
        "paused": False,
        "account": ACCOUNTS[account],
        "plan": {"id": "x", "legacy_id": "pro", "name": "Pro Website"},
    }


def page(objects: Sequence[Any], params: Mapping[str, str], **info: Any) -> httpx.Response:
    number, size = int(params["page"]), int(params["per_page"])
    shown = objects[(number - 1) * size : number * size]
    result_info = {"page": number, "per_page": size, "count": len(shown), "total_count": len(objects)} | info
    return httpx.Response(200, json={"success": True, "errors": [], "result": shown, "result_info": result_info})


def serving(
    zones: Sequence[dict[str, Any]], accounts: Sequence[dict[str, Any]] | httpx.Response = ACCOUNTS
) -> FakeCloudflare:
    def rest(path: str, params: Mapping[str, str]) -> httpx.Response:
        if path == "/accounts":
            return accounts if isinstance(accounts, httpx.Response) else page(accounts, params)
        assert path == "/zones"
        assert params["status"] == "active"
        owner = params.get("account.id")
        return page([zone for zone in zones if owner is None or zone["account"]["id"] == owner], params)

    return FakeCloudflare(rest=rest)


async def listed(fake: FakeCloudflare, **settings: Any) -> ZoneList:
    found = await fake.api().list_zones(**settings)
    assert isinstance(found, ZoneList), found
    return found


async def names(fake: FakeCloudflare, **settings: Any) -> list[str]:
    return [zone.name for zone in (await listed(fake, **settings)).zones]


async def test_all_pages_are_read_fifty_at_a_time() -> None:
    fake = serving([made(number) for number in range(120)])
    assert len(await names(fake)) == 120
    assert [request.url.params["page"] for request in fake.requests] == ["1", "2", "3"]
    assert {request.url.params["per_page"] for request in fake.requests} == {"50"}


@pytest.mark.parametrize("count", [0, 1, 49, 50, 51, 100])
async def test_a_page_that_is_exactly_full_costs_no_further_request(count: int) -> None:
    fake = serving([made(number) for number in range(count)])
    assert len(await names(fake)) == count
    assert len(fake.requests) == max(1, -(-count // 50))


async def test_a_zone_has_what_the_labels_need() -> None:
    found = await listed(serving([made(7)]))
    assert found.zones == (Zone(tag(7), "zone0007.example", tag(0xA1), "Acme Inc", "pro"),)


async def test_a_zone_without_account_and_plan_is_a_zone() -> None:
    found = await listed(serving([{"id": tag(7), "name": "a.example", "account": None}]))
    assert found.zones == (Zone(tag(7), "a.example"),)


ZONES = [made(1, "a.example"), made(2, "b.example"), made(3, "B.Example", account=1), made(4, "c.example", account=1)]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [3, 1, 2, 4]),
        ({"zones": ["A.EXAMPLE"]}, [1]),
        ({"zones": [tag(2), "c.example"]}, [2, 4]),
        ({"zones": ["b.example"]}, [3, 2]),
        ({"zones": ["b.example"], "accounts": ["Globex"]}, [3]),
        ({"accounts": ["acme inc"]}, [1, 2]),
        ({"accounts": [tag(0xA2)]}, [3, 4]),
        ({"accounts": ["globex", tag(0xA1)]}, [3, 1, 2, 4]),
        ({"exclude_zones": ["b.example", tag(4)]}, [1]),
        ({"zones": ["a.example", "c.example"], "exclude_zones": ["C.example"]}, [1]),
    ],
)
async def test_settings_choose_by_id_or_name_in_any_case(settings: dict[str, list[str]], expected: list[int]) -> None:
    found = await listed(serving(ZONES), **settings)
    assert [int(zone.tag, 16) for zone in found.zones] == expected
    assert found.unmatched == ()


async def test_one_name_in_two_accounts_is_two_zones() -> None:
    found = await listed(serving([made(1, "a.example"), made(2, "a.example", account=1)]))
    assert [(zone.name, zone.account_name) for zone in found.zones] == [
        ("a.example", "Acme Inc"),
        ("a.example", "Globex"),
    ]


async def test_a_setting_that_fits_nothing_is_reported_with_the_nearest_name() -> None:
    found = await listed(
        serving(ZONES),
        accounts=["Acme Inc", "Globx"],
        zones=["a.example", "a.exmaple", tag(99)],
        exclude_zones=["zzz"],
    )
    assert [zone.name for zone in found.zones] == ["a.example"]
    assert found.unmatched == (
        Unmatched("CF_ACCOUNTS", "Globx", "Globex"),
        Unmatched("CF_ZONES", "a.exmaple", "a.example"),
        Unmatched("CF_ZONES", tag(99), None),
        Unmatched("CF_EXCLUDE_ZONES", "zzz", None),
    )


async def test_an_account_that_is_known_narrows_the_listing_itself() -> None:
    fake = serving(ZONES)
    assert await names(fake, accounts=["Globex"]) == ["B.Example", "c.example"]
    assert fake.requests[-1].url.params["account.id"] == tag(0xA2)


@pytest.mark.parametrize(
    "accounts", [[], httpx.Response(403, json=NO_PERMISSION), httpx.Response(403, json=TOKEN_ERROR)]
)
async def test_accounts_are_matched_by_the_zones_where_the_token_may_not_list_accounts(accounts: Any) -> None:
    found = await listed(serving(ZONES, accounts), accounts=["globex", "Hooli"])
    assert [zone.name for zone in found.zones] == ["B.Example", "c.example"]
    assert [(each.setting, each.given) for each in found.unmatched] == [("CF_ACCOUNTS", "Hooli")]


async def test_accounts_that_cannot_be_listed_for_now_are_a_failure() -> None:
    found = await serving(ZONES, httpx.Response(502)).api().list_zones(accounts=["globex"])
    assert isinstance(found, ApiFailure)
    assert found.kind is ErrorKind.SERVER


async def test_accounts_are_not_listed_where_no_setting_needs_them() -> None:
    fake = serving(ZONES)
    await listed(fake)
    assert [request.url.path for request in fake.requests] == ["/client/v4/zones"]


async def accounts_of(accounts: Any, *zones: Zone, only: Sequence[str] = ()) -> AccountList | ApiFailure:
    clock = ManualClock()
    network = Network(serving([], accounts))
    client = CloudflareClient(api_url=API_URL, token=TOKEN, clock=clock, quota=Quota(clock), transport=network)
    return await list_accounts(client, accounts=only, zones=zones)


ACME, GLOBEX = (Account(each["id"], each["name"]) for each in ACCOUNTS)
OWNED = (
    Zone(tag(1), "a.example", GLOBEX.tag, "Globex"),
    Zone(tag(2), "b.example", tag(0xA3)),
    Zone(tag(3), "c.example"),
)


async def test_accounts_are_those_that_are_listed_and_those_that_own_zones() -> None:
    assert await accounts_of(ACCOUNTS) == AccountList((ACME, GLOBEX), is_whole=True)
    assert await accounts_of(ACCOUNTS, *OWNED) == AccountList((Account(tag(0xA3)), ACME, GLOBEX), is_whole=True)
    unnamed = [{"id": GLOBEX.tag}]
    assert await accounts_of(unnamed, *OWNED, only=["globex"]) == AccountList((GLOBEX,), is_whole=True)
    assert await accounts_of(ACCOUNTS, *OWNED, only=["acme inc", tag(0xA3)]) == AccountList(
        (Account(tag(0xA3)), ACME), is_whole=True
    )


async def test_listings_leave_the_quota_to_what_is_more_urgent() -> None:
    class Recording(Quota):
        async def acquire(self, *of: Any, **account: Any) -> Lease | Paused:
            asked.append(of)
            return await super().acquire(*of, **account)

    asked: list[tuple[Any, ...]] = []
    assert isinstance(
        await serving(ZONES).api(quota=Recording(ManualClock())).list_zones(accounts=["globex"]), ZoneList
    )
    assert asked == [(Api.REST, Priority.DISCOVERY)] * 2


@pytest.mark.parametrize("body", [NO_PERMISSION, TOKEN_ERROR])
async def test_where_the_token_may_not_list_accounts_they_are_those_that_own_zones(body: Any) -> None:
    found = await accounts_of(httpx.Response(403, json=body), *OWNED)
    assert found == AccountList((Account(tag(0xA3)), GLOBEX), is_whole=False)


async def test_accounts_that_could_not_be_listed_for_now_are_not_guessed_from_zones() -> None:
    found = await accounts_of(httpx.Response(502), *OWNED)
    assert isinstance(found, ApiFailure)
    assert found.kind is ErrorKind.SERVER


def always(response: Callable[[Mapping[str, str]], httpx.Response]) -> FakeCloudflare:
    return FakeCloudflare(rest=lambda _path, params: response(params))


@pytest.mark.parametrize(
    ("response", "kind"),
    [
        (lambda _: httpx.Response(401, json=TOKEN_ERROR), ErrorKind.TOKEN),
        (lambda _: httpx.Response(403, json=NO_PERMISSION), ErrorKind.AUTH_SCOPE),
        (lambda _: httpx.Response(500), ErrorKind.SERVER),
        (lambda _: httpx.Response(429, headers={"Retry-After": "3"}), ErrorKind.RATE),
        (lambda _: httpx.Response(200, json={"success": True, "result": [made(1)]}), ErrorKind.MALFORMED),
        (lambda _: httpx.Response(200, json={"success": True, "result": None}), ErrorKind.MALFORMED),
        (lambda params: page([{"id": 1, "name": "x"}], params), ErrorKind.MALFORMED),
        (lambda params: page([made(1)], params, total_count=2), ErrorKind.MALFORMED),
        (lambda params: page([made(1), made(2)], params, total_count=1), ErrorKind.MALFORMED),
    ],
)
async def test_a_listing_is_whole_or_a_failure(
    response: Callable[[Mapping[str, str]], httpx.Response], kind: ErrorKind
) -> None:
    found = await always(response).api().list_zones()
    assert isinstance(found, ApiFailure)
    assert found.kind is kind


async def test_a_zone_that_moves_between_pages_is_noticed() -> None:
    zones = [made(number) for number in range(60)]

    def shifting(_: str, params: Mapping[str, str]) -> httpx.Response:
        # The second page begins one zone early: one is listed twice and another one never.
        shown = zones[:50] if params["page"] == "1" else zones[49:59] if params["page"] == "2" else []
        info = {"page": 1, "per_page": 50, "count": len(shown), "total_count": 60}
        return httpx.Response(200, json={"success": True, "errors": [], "result": shown, "result_info": info})

    found = await FakeCloudflare(rest=shifting).api().list_zones()
    assert isinstance(found, ApiFailure)
    assert found.message == "/zones changed while it was listed: 59 of 60 arrived"


async def test_a_failure_on_a_later_page_is_a_failure() -> None:
    def rest(_: str, params: Mapping[str, str]) -> httpx.Response:
        return page([made(n) for n in range(60)], params) if params["page"] == "1" else httpx.Response(502)

    found = await FakeCloudflare(rest=rest).api().list_zones()
    assert isinstance(found, ApiFailure)
    assert found.kind is ErrorKind.SERVER


def verified(status: str) -> httpx.Response:
    return httpx.Response(200, json={"success": True, "errors": [], "result": {"id": "x", "status": status}})


def tokens(**answers: httpx.Response) -> FakeCloudflare:
    paths = {
        "/user/tokens/verify": "user",
        "/zones": "zones",
        f"/accounts/{ACCOUNTS[0]['id']}/tokens/verify": "account",
    }
    return FakeCloudflare(rest=lambda path, _: answers[paths[path]])


REFUSED = httpx.Response(401, json=TOKEN_ERROR)
DOWN = httpx.Response(503)


def zones_page(*zones: dict[str, Any]) -> httpx.Response:
    return page(zones, {"page": "1", "per_page": "5"})


@pytest.mark.parametrize(
    ("fake", "check", "ok"),
    [
        (tokens(user=verified("active")), TokenAccepted(), True),
        (
            tokens(user=verified("disabled"), zones=REFUSED),
            TokenRefused("Cloudflare says that the token is disabled"),
            False,
        ),
        (tokens(user=REFUSED, zones=REFUSED), TokenRefused("Invalid API Token"), False),
        (tokens(user=REFUSED, zones=zones_page(made(1)), account=verified("active")), TokenAccepted(), True),
        (
            tokens(user=REFUSED, zones=zones_page(made(1)), account=verified("expired")),
            TokenRefused("Cloudflare says that the token is expired"),
            False,
        ),
        (tokens(user=REFUSED, zones=zones_page()), TokenAccepted(), True),
    ],
)
async def test_a_token_is_accepted_or_refused(fake: FakeCloudflare, check: object, ok: bool) -> None:  # noqa: FBT001 - a column of the table
    api = fake.api()
    assert api.last_token_ok is None
    assert await api.verify_token() == check
    assert api.last_token_ok is ok


@pytest.mark.parametrize(
    ("expires_on", "expires_at"),
    [
        ("2027-01-01T00:00:00Z", 1_798_761_600.0),
        ("2027-01-01T01:00:00+01:00", 1_798_761_600.0),
        ("2027-01-01", 1_798_761_600.0),
        ("9999-12-31T23:59:59-23:59", None),
        ("soon", None),
        (1_798_761_600, None),
        (None, None),
    ],
)
async def test_a_token_says_until_when_it_is_good(expires_on: object, expires_at: float | None) -> None:
    answer = httpx.Response(200, json={"success": True, "result": {"status": "active", "expires_on": expires_on}})
    assert await tokens(user=answer).api().verify_token() == TokenAccepted(expires_at)


@pytest.mark.parametrize(
    "fake",
    [
        tokens(user=DOWN),
        tokens(user=REFUSED, zones=DOWN),
        tokens(user=REFUSED, zones=zones_page(made(1)), account=DOWN),
        tokens(user=httpx.Response(200, json={"success": True, "result": None})),
        tokens(user=REFUSED, zones=httpx.Response(200, json={"success": True, "result": None})),
    ],
)
async def test_a_token_that_could_not_be_checked_is_neither(fake: FakeCloudflare) -> None:
    api = fake.api()
    api.last_token_ok = True
    assert isinstance(await api.verify_token(), TokenUnknown)
    assert api.last_token_ok is True
