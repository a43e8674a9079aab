"""Configurations from their text, and the mistakes in them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from worker.config import DestinationSettings, load_settings
from worker.errors import ConfigError

URL = "http://prometheus:9090/api/v1/write"
TOKEN = {"CF_API_TOKEN": "token"}


def load_list(folder: Path, entries: object, environ: Mapping[str, str] = TOKEN) -> tuple[DestinationSettings, ...]:
    """The destinations of a file: its text, or the items of its `remote_write`."""
    file = folder / "config.yml"
    file.write_text(entries if isinstance(entries, str) else yaml.safe_dump({"remote_write": entries}))
    return load_settings(file, environ).destinations


def load_one(folder: Path, **entry: Any) -> DestinationSettings:
    """The one destination that these keys beside `url` make."""
    [destination] = load_list(folder, [{"url": URL, **entry}])
    return destination


def mistakes_in(folder: Path, entries: object, environ: Mapping[str, str] = TOKEN) -> list[str]:
    """What is said of a file; arguments as of `load_list`."""
    with pytest.raises(ConfigError) as caught:
        load_list(folder, entries, environ)
    return [str(mistake) for mistake in caught.value.mistakes]


def mistakes_in_one(folder: Path, **entry: Any) -> list[str]:
    """What is said of one destination, named from its entry on."""
    return [text.removeprefix("remote_write[0].") for text in mistakes_in(folder, [{"url": URL, **entry}])]
