"""Keys that no setting stands behind: none of them is ignored in silence."""

from pathlib import Path
from typing import Any

import pytest

from tests.unit.config.loading import load_one, mistakes_in_one
from worker.config import DESTINATION_KEYS
from worker.config.prometheus_keys import KEYS, Kept, Refused

OAUTH2 = {"client_id": "a", "client_secret": "b", "token_url": "https://issuer/token"}
AROUND: dict[str, Any] = {"oauth2": OAUTH2, "sigv4": {"region": "eu"}, "queue_config": {}, "metadata_config": {}}


def entry(path: str, value: object) -> dict[str, Any]:
    """An entry that is right but for what stands at this path."""
    section, _, key = path.rpartition(".")
    return {section: {**AROUND[section], key: value}} if section else {key: value}


REFUSED = {path: key for path, key in KEYS.items() if isinstance(key, Refused)}
KEPT = {path: key for path, key in KEYS.items() if isinstance(key, Kept)}


def test_no_key_is_both_a_setting_and_none() -> None:
    assert KEYS.keys().isdisjoint(key.name for key in DESTINATION_KEYS)


@pytest.mark.parametrize("path", REFUSED)
def test_what_cannot_be_honoured_is_refused_with_what_to_do(tmp_path: Path, path: str) -> None:
    key = REFUSED[path]
    value = {"a": "b"} if path in {"google_iam", "external_labels"} else "true"
    only = f" with another value than {key.harmless}" if key.harmless else ""
    assert mistakes_in_one(tmp_path, **entry(path, value)) == [
        f"{path}: is a key of Prometheus that is not supported{only}; {key.instead}"
    ]


@pytest.mark.parametrize("path", [path for path, key in REFUSED.items() if key.harmless])
def test_what_the_worker_does_anyway_may_be_asked_for(tmp_path: Path, path: str) -> None:
    around = {section: AROUND[section]} if (section := path.rpartition(".")[0]) else {}
    assert load_one(tmp_path, **entry(path, REFUSED[path].harmless)) == load_one(tmp_path, **around)


@pytest.mark.parametrize("path", REFUSED)
def test_a_key_without_a_value_asks_for_nothing(tmp_path: Path, path: str) -> None:
    around = {section: AROUND[section]} if (section := path.rpartition(".")[0]) else {}
    assert load_one(tmp_path, **entry(path, None)) == load_one(tmp_path, **around)


@pytest.mark.parametrize("path", KEPT)
def test_what_makes_no_difference_is_taken_if_it_is_written_well(tmp_path: Path, path: str) -> None:
    right = "5s" if path.endswith(("deadline", "interval")) else "true" if path.startswith("send") else "500"
    section = path.partition(".")[0]
    assert load_one(tmp_path, **entry(path, right)) == load_one(tmp_path, **({section: {}} if "." in path else {}))
    [mistake] = mistakes_in_one(tmp_path, **entry(path, "a lot"))
    assert mistake.startswith(f"{path} (given: a lot): must be ")


def test_an_empty_section_of_a_key_that_is_refused_is_refused(tmp_path: Path) -> None:
    [mistake] = mistakes_in_one(tmp_path, google_iam={})
    assert mistake.startswith("google_iam: is a key of Prometheus that is not supported; remove it")
