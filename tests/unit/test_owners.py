from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from tests.clocks import ManualClock
from tests.unit.cloudflare.fake import zone
from worker.cloudflare import Account, Scope, ScopeKind
from worker.config import CloudflareSettings
from worker.errors import LedgerFullError
from worker.health import Health
from worker.ledger import Ledger, present_scopes
from worker.observe import Metrics
from worker.owners import Owners

NOW = 1_750_000_000.0
ACCOUNT = Account("a" * 32, "Example")


@pytest.fixture
async def ledger(tmp_path: Path) -> AsyncIterator[Ledger]:
    opened = Ledger.open(tmp_path / "ledger.db")
    yield opened
    await opened.close()


def owners(ledger: Ledger, *names: str, **settings: Any) -> Owners:
    clock = ManualClock(NOW)
    given = {"api_token": SecretStr("t"), **settings}
    return Owners(
        [CloudflareSettings.model_validate(given | {"name": name}) for name in names],
        kinds=set(ScopeKind),
        ledger=ledger,
        metrics=Metrics(clock, Health(clock, names), version="1", sqlite_version="3"),
    )


async def take(found: Owners, token: str, listed: Sequence[Scope]) -> list[str]:
    """The names of those that are gone."""
    await found.recall()
    return [scope.name for scope in await found.take(token, listed, NOW)]


def scopes(found: Owners, *names: str) -> list[set[str]]:
    """The tags of what is collected with each token."""
    return [set(found.scopes(name)) for name in names]


def tags(*those: Scope) -> set[str]:
    return {scope.tag for scope in those}


async def test_a_scope_belongs_to_the_first_token_that_lists_it_whoever_listed_first(ledger: Ledger) -> None:
    found = owners(ledger, "a", "b")
    await take(found, "b", [zone(1), zone(2), ACCOUNT])
    assert scopes(found, "b") == [tags(zone(1), zone(2), ACCOUNT)]

    assert await take(found, "a", [zone(1), ACCOUNT]) == []
    assert scopes(found, "a", "b") == [tags(zone(1), ACCOUNT), tags(zone(2))]
    known = {scope.tag: scope.token for scope in await ledger.read(present_scopes)}
    assert known == {zone(1).tag: "a", ACCOUNT.tag: "a", zone(2).tag: "b"}


async def test_what_the_first_token_lists_no_more_goes_to_the_next_and_is_gone_where_there_is_none(
    ledger: Ledger,
) -> None:
    found = owners(ledger, "a", "b")
    await take(found, "a", [zone(1), zone(2)])
    await take(found, "b", [zone(1)])

    assert await take(found, "a", []) == [zone(2).name]
    assert scopes(found, "a", "b") == [set(), tags(zone(1))]


async def test_after_a_restart_each_token_has_what_it_had_before_any_has_listed(ledger: Ledger) -> None:
    before = owners(ledger, "a", "b")
    await take(before, "a", [zone(1), zone(2)])
    await take(before, "b", [zone(2), zone(3)])

    found = owners(ledger, "a", "b", exclude_zones=(zone(1).name,))
    assert await take(found, "b", [zone(2), zone(3), zone(4)]) == [zone(1).name]
    assert scopes(found, "a", "b") == [tags(zone(2)), tags(zone(3), zone(4))]


async def test_the_scopes_of_a_token_with_another_name_are_gone_once_every_token_has_listed(ledger: Ledger) -> None:
    await take(owners(ledger, "default"), "default", [zone(1), zone(2)])

    found = owners(ledger, "a", "b")
    assert await take(found, "b", [zone(3)]) == []
    assert scopes(found, "a", "b") == [set(), tags(zone(3))]
    assert await take(found, "a", [zone(1)]) == [zone(2).name]
    assert scopes(found, "a") == [tags(zone(1))]


async def test_a_listing_that_cannot_be_written_changes_nothing(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = owners(ledger, "a")
    await take(found, "a", [zone(1)])

    async def fail(*_: Any) -> None:
        raise LedgerFullError

    monkeypatch.setattr(ledger, "write", fail)
    with pytest.raises(LedgerFullError):
        await take(found, "a", [zone(2)])
    assert scopes(found, "a") == [tags(zone(1))]
