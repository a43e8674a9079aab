import asyncio
import logging
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest
from pydantic import SecretStr

from tests.clocks import ManualClock
from tests.integration.remote_write.scripted_server import (
    NO_CONTENT,
    ScriptedServer,
    SeenRequest,
    client_of,
    destination,
    echo,
    replying,
    response,
    saying,
    serving,
)
from tests.integration.remote_write.sigv4 import NotSignedError, signature_of, signed_by
from worker.config import DestinationSettings, Message, SigV4Settings
from worker.errors import ConfigError
from worker.remote_write import Accepted, Fate, Later, Refused, RemoteWriteClient
from worker.remote_write.auth_aws import Signatures

KEYS = {"AKIDEXAMPLE": "canary/secret+key", "ASIAROLE": "canary-role-key", "AKIDPROFILE": "canary-profile-key"}


@pytest.fixture(autouse=True)
def _nothing_of_aws_is_found_on_this_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


def settings_for(url: str, *, with_keys: bool = True, **more: Any) -> DestinationSettings:
    keys = {"access_key": SecretStr("AKIDEXAMPLE"), "secret_key": SecretStr(KEYS["AKIDEXAMPLE"])} if with_keys else {}
    return destination(url, sigv4=SigV4Settings.model_validate({"region": "eu-central-1", **keys, **more}))


@pytest.mark.parametrize(
    ("headers", "body", "signature"),
    [
        ([], b"", "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"),
        (
            [("content-type", "application/x-www-form-urlencoded")],
            b"Param1=value1",
            "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a",
        ),
    ],
    ids=["post-vanilla", "post-x-www-form-urlencoded"],
)
def test_signatures_are_checked_as_in_the_cases_that_aws_has_published(
    headers: list[tuple[str, str]], body: bytes, signature: str
) -> None:
    headers = [*headers, ("host", "example.amazonaws.com"), ("x-amz-date", "20150830T123600Z")]
    request = SeenRequest("POST / HTTP/1.1", headers, body)
    names = [name for name, _ in headers]
    key = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
    assert signature_of(request, names, "20150830/us-east-1/service/aws4_request", key) == signature


@pytest.mark.parametrize("path", ["/workspaces/ws-1/api/v1/remote_write", "/a%20b/c?x=1&a=2&key=%2F"])
async def test_what_arrives_is_signed_over_its_body_and_the_headers_that_describe_it(path: str) -> None:
    async with serving(saying(NO_CONTENT, then_close=False)) as server:
        url = f"http://127.0.0.1:{server.port}{path}"
        async with client_of(settings_for(url)) as client:
            assert await client.send(b"\x00\xffbody", 0) == Accepted(204)
            await client.send(b"other body", 3, Message.V2)
    assert len(server.requests) == 2
    for request in server.requests:
        assert signed_by(request, KEYS) == ("AKIDEXAMPLE", "eu-central-1", "aps")
        names = (request.header("Authorization") or "").partition("SignedHeaders=")[2].partition(",")[0]
        assert names == "content-encoding;content-type;host;x-amz-date;x-prometheus-remote-write-version"
    spoiled = SeenRequest(request.line, request.headers, request.body + b"!")
    with pytest.raises(NotSignedError):
        signed_by(spoiled, KEYS)


async def test_every_attempt_is_signed_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    async with (
        serving(saying(NO_CONTENT, then_close=False)) as server,
        client_of(settings_for(server.url, service_name="other")) as client,
    ):
        for _ in range(2):
            now += timedelta(hours=1)
            monkeypatch.setattr("botocore.auth.get_current_datetime", lambda now=now: now)
            assert await client.send(b"body", 0) == Accepted(204)
    assert [request.header("X-Amz-Date") for request in server.requests] == ["20260101T010000Z", "20260101T020000Z"]
    assert [signed_by(request, KEYS)[2] for request in server.requests] == ["other", "other"]


async def test_keys_and_region_are_found_where_aws_own_programs_find_them(tmp_path: Path) -> None:
    (tmp_path / "credentials").write_text(
        f"[team]\naws_access_key_id = AKIDPROFILE\naws_secret_access_key = {KEYS['AKIDPROFILE']}\n"
    )
    (tmp_path / "config").write_text("[profile team]\nregion = us-west-2\n")
    async with (
        serving(saying(NO_CONTENT)) as server,
        client_of(settings_for(server.url, with_keys=False, profile="team", region=None)) as client,
    ):
        assert await client.send(b"body", 0) == Accepted(204)
    assert signed_by(server.requests[0], KEYS) == ("AKIDPROFILE", "us-west-2", "aps")


def sts(request: SeenRequest) -> bytes:
    form = parse_qs(request.body.decode())
    assert form["Action"] == ["AssumeRole"]
    assert form["RoleArn"] == ["arn:aws:iam::123456789012:role/writer"]
    assert form["ExternalId"] == ["outside"]
    assert signed_by(request, KEYS)[0] == "AKIDEXAMPLE"
    return response(
        200,
        "<AssumeRoleResponse><AssumeRoleResult><Credentials><AccessKeyId>ASIAROLE</AccessKeyId>"
        f"<SecretAccessKey>{KEYS['ASIAROLE']}</SecretAccessKey><SessionToken>canary-session</SessionToken>"
        "<Expiration>2100-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>",
        "Content-Type: text/xml\r\n",
    )


def assuming(server: ScriptedServer, at: ScriptedServer, monkeypatch: pytest.MonkeyPatch) -> DestinationSettings:
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", f"http://127.0.0.1:{at.port}")
    return settings_for(server.url, role_arn="arn:aws:iam::123456789012:role/writer", external_id="outside")


async def test_a_role_is_assumed_once_and_its_keys_sign(monkeypatch: pytest.MonkeyPatch) -> None:
    async with (
        serving(replying(sts)) as at,
        serving(saying(NO_CONTENT, then_close=False)) as server,
        client_of(assuming(server, at, monkeypatch)) as client,
    ):
        for _ in range(3):
            assert await client.send(b"body", 0) == Accepted(204)
    assert len(at.requests) == 1
    for request in server.requests:
        assert signed_by(request, KEYS) == ("ASIAROLE", "eu-central-1", "aps")
        assert request.header("X-Amz-Security-Token") == "canary-session"
        assert "x-amz-security-token" in (request.header("Authorization") or "")


@pytest.mark.parametrize(
    ("status", "code", "fate"),
    [(403, "AccessDenied", Fate.PARK), (400, "ValidationError", Fate.PARK), (503, "ServiceUnavailable", Fate.RETRY)],
)
async def test_a_role_that_cannot_be_assumed_is_told_in_aws_words(
    status: int, code: str, fate: Fate, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = f"<Error><Code>{code}</Code><Message>not you: canary/secret+key</Message></Error>"
    xml = f"<ErrorResponse>{error}</ErrorResponse>"
    async with (
        serving(saying(response(status, xml, "Content-Type: text/xml\r\n"))) as at,
        serving(saying(NO_CONTENT)) as server,
        client_of(assuming(server, at, monkeypatch)) as client,
    ):
        verdict = await client.send(b"body", 0)
    assert isinstance(verdict, Later)
    assert verdict.reason.startswith("no keys from AWS (sigv4): ")
    assert f"({code}) when calling the AssumeRole operation" in verdict.reason
    assert "not you: " in verdict.reason
    assert "canary" not in verdict.reason
    assert verdict.fate is fate
    # The worker itself tries again, and nobody else.
    assert len(at.requests) == 1
    assert not server.requests


async def test_no_keys_anywhere_park_the_destination() -> None:
    async with client_of(settings_for("http://receiver.example", with_keys=False)) as client:
        assert await client.send(b"body", 0) == Later(
            "no keys from AWS (sigv4): Unable to locate credentials", Fate.PARK
        )


async def test_an_endpoint_of_aws_that_is_not_there_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(saying(NO_CONTENT)) as gone, serving(saying(NO_CONTENT)) as server:
        settings = assuming(server, gone, monkeypatch)
    async with client_of(settings) as client:
        verdict = await client.send(b"body", 0)
    assert isinstance(verdict, Later)
    assert verdict.reason.startswith("no keys from AWS (sigv4): Could not connect to the endpoint URL")
    assert verdict.fate is Fate.RETRY


async def test_an_endpoint_of_aws_that_hangs_is_asked_once_by_all_who_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    async def for_ever(*_: object) -> None:
        await asyncio.Event().wait()

    async with serving(lambda _: for_ever) as at, serving(saying(NO_CONTENT)) as server:
        settings = assuming(server, at, monkeypatch).model_copy(update={"timeout_seconds": 2})
        async with client_of(settings) as client:
            verdicts = await asyncio.gather(*(client.send(b"body", 0) for _ in range(10)))
            assert set(verdicts) == {Later("files or credentials were not ready within 2 s (remote_timeout)")}
            assert not any(thread.name == "sigv4_1" for thread in threading.enumerate())
    assert at.connections == 1


def test_the_endpoint_for_fips_is_used_where_that_was_asked_for() -> None:
    for use, host in ((True, "sts-fips.us-east-1.amazonaws.com"), (False, "sts.us-east-1.amazonaws.com")):
        settings = settings_for("http://receiver.example", region="us-east-1", use_fips_sts_endpoint=use)
        signatures = RemoteWriteClient(settings, ManualClock())._setup.credentials
        assert isinstance(signatures, Signatures)
        client = signatures._session.create_client("sts", region_name="us-east-1")
        assert client.meta.endpoint_url == f"https://{host}"


async def test_no_secret_is_in_a_verdict_a_repr_or_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    async with (
        serving(replying(sts)) as at,
        serving(replying(lambda request: response(400, f"{KEYS['ASIAROLE']} {echo(request)}"))) as server,
        client_of(assuming(server, at, monkeypatch)) as client,
    ):
        verdict = await client.send(b"body", 0)
        assert "canary" not in f"{client!r} {client._setup!r} {client._setup.credentials!r}"
    assert isinstance(verdict, Refused)
    assert "x-amz-security-token: **************" in verdict.text
    assert "Signature=****************" in verdict.text
    assert "ASIAROLE" not in verdict.text
    assert "canary" not in verdict.text
    assert "canary" not in caplog.text


def test_a_profile_that_does_not_exist_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match=r"remote_write main: sigv4: cannot be used: .*\(nobody\)"):
        RemoteWriteClient(settings_for("http://receiver.example", profile="nobody"), ManualClock())


def test_a_region_that_nobody_names_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match=r"remote_write main: sigv4\.region: is required"):
        RemoteWriteClient(settings_for("http://receiver.example", region=None), ManualClock())


def test_without_the_package_the_command_that_installs_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "worker.remote_write.auth_aws", raising=False)
    monkeypatch.setitem(sys.modules, "botocore.auth", None)
    with pytest.raises(ConfigError, match="sigv4: needs a package") as mistake:
        RemoteWriteClient(settings_for("http://receiver.example"), ManualClock())
    assert str(mistake.value).splitlines()[1] == (
        "  remote_write main: sigv4: needs a package that is not installed (botocore): pip install '.[aws]' in the "
        "folder of the project, or build the container image with --build-arg EXTRAS=aws"
    )
