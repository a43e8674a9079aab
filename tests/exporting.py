"""A ledger that `cfrw export` and `cfrw import` are tried on, and the commands as a person gives them."""

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import apsw
from click.testing import CliRunner, Result

from tests.receivers import Labels
from tests.unit.ledger.fleet import DATASET, HOUR, NOW, scope, tag
from worker.buckets import Bucket
from worker.cli import main
from worker.clock import SystemClock
from worker.ledger import Ledger, capture, outstanding_windows, record_scopes, register_destinations
from worker.ledger.session import Session
from worker.series import parse_label_block

P = ParamSpec("P")
T = TypeVar("T")

Content = dict[Labels, dict[int, float]]
"""Samples by the labels of their series and by unix milliseconds."""


@dataclass
class Scene:
    """A ledger of three zones, the destination `prom`, and somebody at a terminal."""

    folder: Path
    write_url: str = "http://127.0.0.1:9/api/v1/write"
    environment: dict[str, str | None] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        return self.folder / "ledger.db"

    def write(self, verb: Callable[Concatenate[Session, P], T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a verb on the ledger, which nobody holds."""

        async def run() -> T:
            ledger = Ledger.open(self.path)
            try:
                return await ledger.write(verb, *args, **kwargs)
            finally:
                await ledger.close()

        return asyncio.run(run())

    def captured(self, *buckets: Bucket) -> "Scene":
        """Make the ledger, with these buckets; names of zones are known by what is expected of them."""

        def verb(session: Session) -> None:
            record_scopes(session, [scope(zone) for zone in (1, 2, 3)], NOW)
            register_destinations(session, {"prom": False}, replay_since=0, now=NOW)
            tags = [tag(zone) for zone in (1, 2, 3)]
            outstanding_windows(session, dataset=DATASET, width_seconds=HOUR, tags=tags, starts=range(0))
            capture(session, buckets, SystemClock().now())

        self.write(verb)
        return self

    def configured(self, *, external_labels: dict[str, str] | None = None, **destination: object) -> Path:
        """A file in which the destination has further keys."""
        file = self.folder / "cfrw.yaml"
        keys = {"name": "prom", "url": self.write_url, **destination}
        file.write_text(json.dumps({"external_labels": external_labels or {}, "remote_write": [keys]}))
        self.environment["REMOTE_WRITE_URL"] = None
        return file

    def cfrw(self, *arguments: str, stdin: bytes = b"", **environment: str | None) -> Result:
        given = {
            "CF_API_TOKEN": "token",
            "LEDGER_PATH": str(self.path),
            "CF_BUCKET_SECONDS": "3600",
            **self.environment,
            **environment,
        }
        config = [] if "--config" in arguments else ["--config", str(self.configured())]
        result = CliRunner().invoke(main, [*arguments, *config], input=stdin, env=given, prog_name="cfrw")
        assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
        return result

    def files(self) -> set[Path]:
        """What lies in the folder beside the ledger and the configuration."""
        return {file for file in self.folder.rglob("*") if not file.name.startswith(("ledger.db", "cfrw.yaml"))}

    def damaged(self, start: int) -> None:
        """Flip a bit in the bucket of a window."""
        connection = apsw.Connection(str(self.path))
        connection.execute("UPDATE bucket SET timestamp_ms = timestamp_ms + 1 WHERE start = ?", (start,))
        connection.close()

    def rows(self, statement: str) -> list[tuple[Any, ...]]:
        connection = apsw.Connection(str(self.path))
        found = list(connection.execute(statement))
        connection.close()
        return found


def content_of(buckets: Sequence[Bucket]) -> Content:
    content: Content = {}
    for bucket in buckets:
        for block, value in zip(bucket.series, bucket.values, strict=True):
            content.setdefault(frozenset(parse_label_block(block).items()), {})[bucket.timestamp_ms] = value
    return content
