import base64

import httpx
import pytest
from pydantic import SecretStr

from tests.clocks import ManualClock
from worker.config import Authorization, BasicAuth, DestinationSettings
from worker.remote_write.auth import SecretMask, credentials_of


def destination(**more: object) -> DestinationSettings:
    given = {"name": "main", "url": "https://receiver.example/api/v1/write", **more}
    return DestinationSettings.model_validate(given)


async def authorization(settings: DestinationSettings) -> str | None:
    request = httpx.Request("POST", "https://receiver.example")
    credentials = credentials_of(settings, ManualClock(), SecretMask(settings))
    assert await credentials.authorize(request) is None
    assert not credentials.refused(request)
    await credentials.aclose()
    sent: str | None = request.headers.get("Authorization")
    return sent


async def test_basic_auth_is_sent_as_rfc_7617_says() -> None:
    basic = BasicAuth(username="42", password=SecretStr("päss:word"))
    sent = await authorization(destination(basic_auth=basic))
    assert sent == "Basic " + base64.b64encode("42:päss:word".encode()).decode()


@pytest.mark.parametrize(
    ("settings", "sent"),
    [
        (destination(authorization=Authorization(credentials=SecretStr("token"))), "Bearer token"),
        (destination(authorization=Authorization(type="Token", credentials=SecretStr("abc"))), "Token abc"),
        (destination(headers={"X-Scope-OrgID": SecretStr("7")}), None),
    ],
)
async def test_a_header_is_sent_as_it_was_given(settings: DestinationSettings, sent: str | None) -> None:
    assert await authorization(settings) == sent


def test_no_representation_shows_a_secret() -> None:
    for settings in (
        destination(basic_auth=BasicAuth(username="42", password=SecretStr("canary-password"))),
        destination(
            authorization=Authorization(credentials=SecretStr("canary-token")),
            headers={"X-Key": SecretStr("canary-header")},
        ),
    ):
        mask = SecretMask(settings)
        assert "canary" not in f"{settings!r} {credentials_of(settings, ManualClock(), mask)!r} {mask!r}"
