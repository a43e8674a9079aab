"""How numbers, texts, lists and paths are written, and what is wrong with one that is not.

Every parser takes the text of an environment variable or of a YAML scalar (or the parsed value itself, so that
settings can also be made in code) and returns the value, or raises `InvalidValueError`. Only the parser decides what
of the value may be repeated to the user: nothing of a secret, nothing of a URL that may hold one.

Pure, apart from the parsers of paths, which look whether the file is there, and that of a shard, which may look at the
host's name. Knows no setting by name.
"""

import re
import socket
from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import TypeGuard

from worker.series import LABEL_NAME
from worker.shards import Shard

# Each is a label value of metrics, and a further query for what is read.
_MOST_SECONDS = 8

_SHOWN_CHARACTERS = 80  # of a wrong value: enough to recognise it, and a mistake still fits a line or two


class InvalidValueError(ValueError):
    """A value that is not what its setting takes.

    given:   the value as it may be shown, or None where nothing of it may.
    problem: what is allowed, as the rest of a sentence that starts with the setting's name.
    """

    def __init__(self, given: str | None, problem: str) -> None:
        super().__init__(problem)
        self.given = given
        self.problem = problem


def shown(value: object) -> str:
    """A value that is no secret, short and on one line."""
    match value:
        case str():
            text = value if value.isprintable() else repr(value)[1:-1]
            return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + "..."
        case Mapping():
            return "a mapping of keys"
        case Sequence():
            return "a list"
        case _:
            return str(value)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """` (did you mean ...?)`, or nothing where no known name is near."""
    nearest = get_close_matches(name, list(known), n=1)
    return f" (did you mean {nearest[0]}?)" if nearest else ""


# ----------------------------------------------------------------------------------------------------------- numbers


def whole_number(value: object, *, minimum: int, maximum: int, unit: str) -> int:
    """A whole number of `unit` between two bounds, both allowed."""
    number = _digits(value)
    if number is None or not minimum <= number <= maximum:
        problem = f"must be a whole number of {unit} from {minimum} to {maximum}, without a unit"
        raise InvalidValueError(shown(value), problem)
    return number


def one_of(value: object, allowed: Sequence[int], unit: str) -> int:
    """One of a few whole numbers."""
    number = _digits(value)
    if number is None or number not in allowed:
        raise InvalidValueError(shown(value), f"must be one of {', '.join(map(str, allowed))} ({unit})")
    return number


def percentage(value: object) -> float:
    """A number of hundredths from 0 to 100, which may have decimals."""
    text = str(value).strip() if isinstance(value, str | int | float) and not isinstance(value, bool) else ""
    if not re.fullmatch(r"[0-9]{1,3}(\.[0-9]{1,9})?", text) or float(text) > 100:
        raise InvalidValueError(shown(value), "must be a number of percent from 0 to 100, such as 0.5, without a sign")
    return float(text)


def rising_seconds(value: object) -> tuple[int, ...]:
    """Numbers of seconds separated by commas, or a list of them, each longer than the one before."""
    items: Sequence[object] = value.split(",") if isinstance(value, str) else value if _is_list(value) else [value]
    seconds = tuple(whole_number(item, minimum=60, maximum=86_400, unit="seconds") for item in items)
    if len(seconds) > _MOST_SECONDS or not all(before < after for before, after in pairwise(seconds)):
        problem = f"must be {_MOST_SECONDS} numbers of seconds at most, separated by commas and ascending"
        raise InvalidValueError(shown(value), problem)
    return seconds


def _is_list(value: object) -> TypeGuard[Sequence[object]]:
    return isinstance(value, Sequence)


def _digits(value: object) -> int | None:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and re.fullmatch(r"\s*[0-9]{1,18}\s*", value):  # 18 digits: always fits 64 bits
        return int(value)
    return None


# As Prometheus writes durations: every unit at most once, largest first; a year has 365 days, a week 7.
_DURATION = re.compile(
    r"(?:([0-9]+)y)?(?:([0-9]+)w)?(?:([0-9]+)d)?(?:([0-9]+)h)?(?:([0-9]+)m)?(?:([0-9]+)s)?(?:([0-9]+)ms)?"
)
_DURATION_UNITS_MS = (365 * 86_400_000, 7 * 86_400_000, 86_400_000, 3_600_000, 60_000, 1_000, 1)
_LONGEST_DURATION_MS = (2**63 - 1) // 1_000_000  # Prometheus keeps nanoseconds in a signed 64-bit integer


def duration_seconds(value: object, *, minimum: float, maximum: float) -> float:
    """A duration as Prometheus writes it (`30s`, `1m`, `1h30m`, `500ms`, `0`), in seconds; a number is seconds."""
    seconds: float | None = None
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    elif isinstance(value, str):
        seconds = _duration(value.strip())
    if seconds is None:
        raise InvalidValueError(shown(value), "must be a duration with its unit, such as 500ms, 30s, 5m or 1h30m")
    if not minimum <= seconds <= maximum:
        problem = f"must be from {duration_text(minimum)} to {duration_text(maximum)}"
        raise InvalidValueError(shown(value), problem)
    return seconds


def whole_duration_seconds(value: object, *, maximum: int) -> int:
    """A duration as Prometheus writes it, of whole seconds, zero allowed."""
    seconds = duration_seconds(value, minimum=0, maximum=maximum)
    if not seconds.is_integer():
        raise InvalidValueError(shown(value), "must be whole seconds")
    return int(seconds)


def duration_text(seconds: float) -> str:
    """Seconds as Prometheus writes a duration: `1h30m`, `500ms`, `0s`."""
    rest = round(seconds * 1000)
    parts = []
    for unit_ms, unit in zip(_DURATION_UNITS_MS, ("y", "w", "d", "h", "m", "s", "ms"), strict=True):
        count, rest = divmod(rest, unit_ms)
        if count:
            parts.append(f"{count}{unit}")
    return "".join(parts) or "0s"


def _duration(text: str) -> float | None:
    if text == "0":
        return 0.0
    match = _DURATION.fullmatch(text)
    if not text or match is None or len(text) > 40:  # 40: seven units of 64-bit numbers never need more
        return None
    milliseconds = sum(int(count or 0) * unit for count, unit in zip(match.groups(), _DURATION_UNITS_MS, strict=True))
    return milliseconds / 1000 if milliseconds <= _LONGEST_DURATION_MS else None


_SIZE = re.compile(r"([0-9]{1,19}(?:\.[0-9]{1,9})?)\s*([a-zA-Z]*)")
_SIZE_UNITS = {
    "": 1,
    "b": 1,
    **{prefix + "b": 1000**power for power, prefix in enumerate("kmgt", start=1)},
    **{prefix + "ib": 1024**power for power, prefix in enumerate("kmgt", start=1)},
    **{prefix + "i": 1024**power for power, prefix in enumerate("kmgt", start=1)},  # as Kubernetes writes them
}


def size_bytes(value: object, *, minimum: int) -> int:
    """A size: plain bytes, `10GiB` or `10Gi` (1024), `10GB` (1000); at least `minimum`."""
    size: int | None = None
    if isinstance(value, int) and not isinstance(value, bool):
        size = value
    elif isinstance(value, str) and (match := _SIZE.fullmatch(value.strip())):
        unit = _SIZE_UNITS.get(match[2].lower())
        size = None if unit is None else int(Fraction(match[1]) * unit)
    if size is None:
        raise InvalidValueError(
            shown(value), "must be a size: plain bytes, or with a unit such as 500MiB, 10GiB or 10GB"
        )
    if not minimum <= size < 2**63:
        raise InvalidValueError(shown(value), f"must be at least {minimum} bytes and less than 8 EiB")
    return size


def size_text(size: int) -> str:
    """Bytes with the largest unit of 1024 that divides them: `10GiB`, `3000000`."""
    for power, unit in ((4, "TiB"), (3, "GiB"), (2, "MiB"), (1, "KiB")):
        if size and size % 1024**power == 0:
            return f"{size // 1024**power}{unit}"
    return str(size)


# -------------------------------------------------------------------------------------------------------------- text


def plain_text(value: object) -> str:
    """Text of one line that may be shown."""
    if not isinstance(value, str):
        raise InvalidValueError(shown(value), "must be text")
    if not value.strip() or not value.isprintable():
        raise InvalidValueError(shown(value), "must be text of one line, without control characters")
    return value.strip()


# Short enough for a column of a table and for the label of a metric, and nothing to be escaped in either.
_SHORT_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,39}")


def short_name(value: object) -> str:
    """A name that is a label of metrics."""
    name = value.strip() if isinstance(value, str) else ""
    if not _SHORT_NAME.fullmatch(name):
        problem = "must be 1 to 40 letters, digits, dots, dashes and underscores, with a letter or digit first"
        raise InvalidValueError(shown(value), problem)
    return name


def choice(value: object, allowed: Sequence[str]) -> str:
    """One of a few words, in upper or lower case."""
    word = value.strip().lower() if isinstance(value, str) else None
    if word is None or word not in allowed:
        raise InvalidValueError(shown(value), f"must be {' or '.join(allowed)}")
    return word


def word(value: object, allowed: Sequence[str]) -> str:
    """One of a few words, spelt exactly so."""
    if not isinstance(value, str) or value.strip() not in allowed:
        raise InvalidValueError(shown(value), f"must be one of {', '.join(allowed)}")
    return value.strip()


def uuid(value: object) -> str:
    """An id as Azure gives it: 32 hexadecimal digits with four dashes."""
    if not isinstance(value, str) or not re.fullmatch(
        r"\s*[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\s*", value
    ):
        raise InvalidValueError(shown(value), "must be an id such as 00000000-0000-0000-0000-000000000000")
    return value.strip()


def texts_by_name(value: object) -> Mapping[str, str]:
    """Texts by their names; what they are is not shown."""
    if not isinstance(value, Mapping) or not all(isinstance(item, str) for pair in value.items() for item in pair):
        raise InvalidValueError(None, "must be a mapping of names to texts")
    return dict(value)


def labels(value: object) -> Mapping[str, str]:
    """Labels by their names, as Prometheus takes them; none whose name starts with two underscores."""
    if not isinstance(value, Mapping):
        raise InvalidValueError(shown(value), "must be a mapping of label names to values")
    for name, text in value.items():
        if not isinstance(name, str) or not LABEL_NAME.fullmatch(name):
            raise InvalidValueError(shown(name), "must hold label names of letters, digits and underscores only")
        if name.startswith("__"):
            problem = (
                "must not hold a name that starts with __: those are Prometheus' own, and __replica__ makes Mimir and "
                "Cortex discard what comes from the replica that they did not elect"
            )
            raise InvalidValueError(name, problem)
        if not isinstance(text, str):
            raise InvalidValueError(name, "must hold a text as the value of each label")
    return {name: text for name, text in value.items() if text}


def truth(value: object) -> bool:
    """`true` or `false`; also what YAML takes for them."""
    if isinstance(value, bool):
        return value
    match value.strip().lower() if isinstance(value, str) else None:
        case "true" | "yes" | "on":
            return True
        case "false" | "no" | "off":
            return False
        case _:
            raise InvalidValueError(shown(value), "must be true or false")


def name_list(value: object) -> tuple[str, ...]:
    """Names separated by commas, or a list of them; empty ones are left out, repeated ones are taken once."""
    if isinstance(value, str):
        items: Sequence[object] = value.split(",")
    elif isinstance(value, Sequence):
        items = value
    else:
        raise InvalidValueError(shown(value), "must be names separated by commas, or a list of names")
    names: dict[str, None] = {}
    for item in items:
        if not isinstance(item, str) or not item.isprintable():
            raise InvalidValueError(shown(item), "must hold names only")
        if item.strip():
            names[item.strip()] = None
    return tuple(names)


def some_names(value: object) -> tuple[str, ...]:
    """As `name_list`, but at least one."""
    names = name_list(value)
    if not names:
        raise InvalidValueError(shown(value), "must hold at least one name")
    return names


def zone_list(value: object) -> tuple[str, ...]:
    """Zone names or ids: as `name_list`, in lower case and without the root's dot, as the API spells them."""
    names = tuple(dict.fromkeys(name.lower().rstrip(".") for name in name_list(value)))
    for name in names:
        if " " in name:
            raise InvalidValueError(shown(name), "must be separated by commas: a zone's name or id has no space in it")
    return names


# ------------------------------------------------------------------------------------------------------------ shards

_MOST_SHARDS = 1000  # 1,000 workers with 600 zones each are more zones than anybody has
_SHARD = re.compile(r"(?P<which>[0-9]{1,6}|auto|[a-zA-Z0-9.-]{1,253})/(?P<count>[0-9]{1,6})")
_ORDINAL = re.compile(r"-([0-9]{1,6})")


def shard(value: object) -> Shard:
    """`i/n`, with i from 1 to n, or the name of a StatefulSet's pod in its place, or `auto` for the name of this host.

    The ordinals at the end of pods' names count from 0.
    """
    if isinstance(value, Shard):
        return value
    match = _SHARD.fullmatch(value.strip()) if isinstance(value, str) else None
    count = int(match["count"]) if match else 0
    if match is None or not 1 <= count <= _MOST_SHARDS:
        problem = f"must be i/n with n up to {_MOST_SHARDS}, such as 2/4, or auto/n for the ordinal of this pod"
        raise InvalidValueError(shown(value), problem)
    if match["which"].isdecimal():
        number = int(match["which"])
        if not 1 <= number <= count:
            raise InvalidValueError(shown(value), f"must be from 1/{count} to {count}/{count}")
        return Shard(number, count)
    pod = (socket.gethostname() if match["which"] == "auto" else match["which"]).partition(".")[0]
    ordinal = _ORDINAL.fullmatch(pod[pod.rfind("-") :]) if "-" in pod else None
    if ordinal is None:
        problem = f"needs the name of a pod that ends in its ordinal, such as cfrw-3, and not {shown(pod)}"
        raise InvalidValueError(shown(value), problem)
    if int(ordinal[1]) >= count:
        problem = f"is for the pods 0 to {count - 1}, and this is {shown(pod)}: there are more replicas than shards"
        raise InvalidValueError(shown(value), problem)
    return Shard(int(ordinal[1]) + 1, count)


# ------------------------------------------------------------------------------------------------------------- files


def readable_file(value: object, directory: Path = Path()) -> Path:
    """A file that is there and can be read.

    directory: where a relative path starts.
    """
    path = file_path(value, directory)
    try:
        with path.open("rb"):
            return path
    except OSError as error:
        raise InvalidValueError(shown(str(path)), f"cannot be read: {error.strerror}") from None


def file_path(value: object, directory: Path = Path()) -> Path:
    """The path of a file, which need not exist; `~` is the home directory. A directory is refused.

    directory: where a relative path starts.
    """
    if not isinstance(value, str | Path) or not str(value).strip() or not str(value).isprintable():
        raise InvalidValueError(shown(value), "must be the path of a file")
    try:
        path = directory / Path(str(value).strip()).expanduser()
    except RuntimeError:
        raise InvalidValueError(shown(value), "starts with ~, but there is no such home directory") from None
    if path.is_dir():
        raise InvalidValueError(shown(value), "is a directory; give the path of a file in it")
    return path
