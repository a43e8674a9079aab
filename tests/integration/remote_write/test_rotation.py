import asyncio
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.integration.remote_write.scripted_server import (
    NO_CONTENT,
    SeenRequest,
    client_of,
    destination,
    replying,
    response,
    saying,
    serving,
)
from worker.config import Authorization, BasicAuth, OAuth2Settings, SecretFile
from worker.errors import ConfigError
from worker.remote_write import Accepted, Fate, Later, Refused, RemoteWriteClient


def replace(path: Path, text: str) -> None:
    """As whoever rotates secrets does it: a reader finds the old file or the new one, never half of one."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


def hang(path: Path) -> None:
    """Whoever reads it waits for somebody who writes."""
    path.unlink()
    os.mkfifo(path)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "secret"
    path.write_text("canary-old\n")
    return path


WAYS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "password": lambda path: {"basic_auth": BasicAuth(username="user", password=SecretFile(path))},
    "username": lambda path: {"basic_auth": BasicAuth(username=SecretFile(path), password=SecretFile(path))},
    "credentials": lambda path: {"authorization": Authorization(type="Token", credentials=SecretFile(path))},
    "bearer_token": lambda path: {"authorization": Authorization(credentials=SecretFile(path))},
    "headers": lambda path: {"headers": {"Authorization": SecretFile(path)}},
}
SENT = {
    "password": ("Basic dXNlcjpjYW5hcnktb2xk", "Basic dXNlcjpjYW5hcnktbmV3ZXI="),
    "username": ("Basic Y2FuYXJ5LW9sZDpjYW5hcnktb2xk", "Basic Y2FuYXJ5LW5ld2VyOmNhbmFyeS1uZXdlcg=="),
    "credentials": ("Token canary-old", "Token canary-newer"),
    "bearer_token": ("Bearer canary-old", "Bearer canary-newer"),
    "headers": ("canary-old", "canary-newer"),
}


@pytest.mark.parametrize("way", WAYS)
async def test_a_secret_is_read_again_when_its_file_has_changed(way: str, secret: Path) -> None:
    settings = destination("http://receiver.example").model_copy(update=WAYS[way](secret))
    async with (
        serving(saying(NO_CONTENT, then_close=False)) as server,
        client_of(settings.model_copy(update={"url": server.url})) as client,
    ):
        for _ in range(2):
            assert await client.send(b"body", 0) == Accepted(204)
        replace(secret, "canary-newer\n")
        for _ in range(2):
            assert await client.send(b"body", 0) == Accepted(204)
    old, new = SENT[way]
    assert [request.header("Authorization") for request in server.requests] == [old, old, new, new]


async def test_the_secret_of_an_oauth_client_is_read_again(secret: Path) -> None:
    def give(request: SeenRequest) -> bytes:
        token = {"Basic d29ya2VyOmNhbmFyeS1vbGQ=": "one", "Basic d29ya2VyOmNhbmFyeS1uZXdlcg==": "two"}
        return response(200, f'{{"access_token": "{token[request.header("Authorization") or ""]}"}}')

    async with serving(replying(give)) as tokens, serving(saying(NO_CONTENT, then_close=False)) as server:
        oauth2 = OAuth2Settings(client_id="worker", client_secret=SecretFile(secret), token_url=tokens.url)
        async with client_of(destination(server.url, oauth2=oauth2)) as client:
            await client.send(b"body", 0)
            replace(secret, "canary-newer")
            await client.send(b"body", 0)
    assert [request.header("Authorization") for request in server.requests] == ["Bearer one", "Bearer two"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (Path.unlink, "cannot be read: No such file or directory"),
        (lambda path: replace(path, "\n"), "is empty"),
        (lambda path: replace(path, "canary\r\nX-Other: canary"), "must hold text of one line"),
    ],
    ids=["missing", "empty", "two lines"],
)
async def test_a_file_that_cannot_be_used_parks_until_it_can(
    way: str, spoil: Callable[[Path], None], problem: str, secret: Path
) -> None:
    settings = destination("http://receiver.example").model_copy(update=WAYS[way](secret))
    async with (
        serving(saying(NO_CONTENT, then_close=False)) as server,
        client_of(settings.model_copy(update={"url": server.url})) as client,
    ):
        assert await client.send(b"body", 0) == Accepted(204)
        spoil(secret)
        for _ in range(2):
            verdict = await client.send(b"body", 0)
            assert isinstance(verdict, Later)
            assert verdict.fate is Fate.PARK
            assert f"(given: {secret}): {problem}" in verdict.reason
            assert "canary" not in verdict.reason.replace(str(secret), "")
        replace(secret, "canary-newer")
        assert await client.send(b"body", 0) == Accepted(204)
    assert [request.header("Authorization") for request in server.requests] == list(SENT[way])


@pytest.mark.parametrize("way", ["credentials", "bearer_token", "headers"])
async def test_what_a_header_cannot_hold_parks_and_is_not_shown(way: str, secret: Path) -> None:
    settings = destination("http://receiver.example").model_copy(update=WAYS[way](secret))
    async with client_of(settings) as client:
        replace(secret, "canary-ü")
        verdict = await client.send(b"body", 0)
    assert isinstance(verdict, Later)
    assert verdict.fate is Fate.PARK
    assert f"(given: {secret}): holds what cannot be used: it " in verdict.reason
    assert "canary" not in verdict.reason


@pytest.mark.parametrize("way", WAYS)
def test_a_file_that_is_missing_at_the_start_is_a_mistake_of_the_configuration(way: str, secret: Path) -> None:
    settings = destination("http://receiver.example").model_copy(update=WAYS[way](secret))
    secret.unlink()
    with pytest.raises(ConfigError, match="cannot be read: No such file or directory"):
        RemoteWriteClient(settings, None)  # type: ignore[arg-type]  # no clock is looked at before the mistake


async def test_a_secret_that_was_read_again_is_blotted_out_as_well(secret: Path) -> None:
    async with serving(replying(lambda request: response(400, request.header("Authorization") or ""))) as server:
        settings = destination(server.url, authorization=Authorization(credentials=SecretFile(secret)))
        async with client_of(settings) as client:
            assert await client.send(b"body", 0) == Refused(400, f"Bearer {'*' * len('canary-old')}")
            replace(secret, "canary-newer")
            assert await client.send(b"body", 0) == Refused(400, f"Bearer {'*' * len('canary-newer')}")


async def test_a_request_under_way_ends_in_peace_while_a_secret_changes(secret: Path) -> None:
    received, go_on = asyncio.Event(), asyncio.Event()
    seen = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await reader.readuntil(b"body"))
        if len(seen) == 1:
            received.set()
            await go_on.wait()
        writer.write(NO_CONTENT)

    async with (
        serving(lambda _: answer) as server,
        client_of(destination(server.url, authorization=Authorization(credentials=SecretFile(secret)))) as client,
    ):
        first = asyncio.create_task(client.send(b"body", 0))
        await received.wait()
        old = client._setup
        replace(secret, "canary-newer")
        assert await client.send(b"body", 0) == Accepted(204)
        go_on.set()
        assert await first == Accepted(204)
        # Nobody uses the old connections any more.
        assert not old.connections._pool.transport._pool.connections
    assert b"Bearer canary-old" in seen[0]
    assert b"Bearer canary-newer" in seen[1]


async def test_connections_are_kept_as_long_as_no_file_changes(secret: Path) -> None:
    async with (
        serving(saying(NO_CONTENT, then_close=False)) as server,
        client_of(destination(server.url, authorization=Authorization(credentials=SecretFile(secret)))) as client,
    ):
        for _ in range(5):
            assert await client.send(b"body", 0) == Accepted(204)
    assert server.connections == 1


async def test_a_volume_that_hangs_costs_its_own_destination_time_and_no_other_and_is_read_when_it_is_back(
    secret: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.write_text("canary-other")
    # All that there is for whoever asks for a thread, as names are looked up.
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(max_workers=1))

    async with serving(saying(NO_CONTENT, then_close=False)) as server:

        def reading(path: Path, timeout_seconds: float) -> AbstractAsyncContextManager[RemoteWriteClient]:
            authorization = Authorization(credentials=SecretFile(path))
            return client_of(destination(server.url, timeout_seconds=timeout_seconds, authorization=authorization))

        async with reading(secret, 0.05) as hanging, reading(other, 30.0) as client:
            hang(secret)
            for _ in range(3):
                assert await hanging.send(b"body", 0) == Later(
                    "files or credentials were not ready within 0.05 s (remote_timeout)"
                )
                assert await client.send(b"body", 0) == Accepted(204)
            await asyncio.to_thread(secret.write_text, "canary-newer")
            replace(secret, "canary-newer")
            hanging._settings = hanging._settings.model_copy(update={"timeout_seconds": 30.0})
            assert await hanging.send(b"body", 0) == Accepted(204)
    assert server.requests[-1].header("authorization") == "Bearer canary-newer"
