from typing import Any

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from tests.unit.cloudflare.datasets import KV_STORED
from tests.unit.cloudflare.fake import tag, zone
from worker.admission import admit, plan_of
from worker.cloudflare import Account, Dataset, Scope, ScopeKind, Zone, shipped
from worker.cloudflare.planning import Plan
from worker.config import CloudflareSettings
from worker.errors import ConfigError

ROLLUPS = shipped()["http_requests"]


def settings(**changes: Any) -> CloudflareSettings:
    return CloudflareSettings.model_validate({"api_token": SecretStr("t"), "bucket_seconds": 300} | changes)


def plan(datasets: list[Dataset], scopes: list[Scope], **changes: Any) -> Plan:
    return plan_of(settings(**changes), datasets, scopes, lambda _dataset, _tag: False)


def copies(count: int) -> list[Dataset]:
    return [Dataset(f"copy{number}", "A copy.", ROLLUPS.grains, ROLLUPS.totals) for number in range(count)]


def test_scopes_that_may_be_asked_for_the_same_are_one_group_and_nothing_is_reckoned_for_what_is_denied() -> None:
    zones: list[Scope] = [zone(number) for number in range(30)]
    account = Account("a" * 32, "Example")
    denied = {zone(number).tag for number in range(10)}
    found = plan_of(
        settings(),
        [ROLLUPS, KV_STORED],
        [*zones, account],
        lambda dataset, tag: dataset is ROLLUPS and tag in denied,
    )
    groups = {(group.kind, group.scopes, tuple(each.name for each in group.datasets)) for group in found.groups}
    assert groups == {(ScopeKind.ZONE, 20, ("http_requests",)), (ScopeKind.ACCOUNT, 1, (KV_STORED.name,))}


def test_where_accounts_are_counted_the_busiest_of_them_has_to_fit() -> None:
    zones: list[Scope] = [Zone(tag(number), f"z{number}", tag(0xA00 + max(0, number - 900))) for number in range(1000)]
    shared = plan(copies(8), zones, rate_limit_type="account")
    assert shared.groups[0].apart == (901, *[1] * 99)
    assert (shared.requests, shared.limit) == (2 * (91 + 99), 300 * (182 + 198) // 182)
    assert shared.share == pytest.approx(182 / 300, abs=0.001)


def test_what_fits_is_said_with_its_numbers() -> None:
    with capture_logs() as lines:
        admit(plan(copies(8), [zone(number) for number in range(1000)]))
    assert [line["log_level"] for line in lines] == ["info"]
    assert lines[0]["share"] == 0.667
    assert "200 requests every 5m" in lines[0]["requests"]


def test_what_fits_only_if_queries_may_be_large_is_a_warning() -> None:
    with capture_logs() as lines:
        admit(plan(copies(12), [zone(number) for number in range(1000)]))
    assert [(line["log_level"], line["share"], line["share_at_best"]) for line in lines] == [("warning", 1.0, 0.667)]


def test_what_cannot_fit_is_refused_with_the_numbers_and_with_what_would() -> None:
    with pytest.raises(ConfigError, match="1,000 zones x 30 datasets") as refused:
        admit(plan(copies(30), [zone(number) for number in range(1000)]))
    assert "CF_BUCKET_SECONDS=900" in str(refused.value)
