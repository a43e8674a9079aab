"""How people read and write instants and spans of time: in commands, health answers, tables and on the status page.

Pure functions; they read no clock.
"""

import re
from datetime import UTC, datetime

_SECONDS_OF_UNIT = (("d", 86_400), ("h", 3_600), ("m", 60), ("s", 1))
_UNIT_SECONDS = dict(_SECONDS_OF_UNIT)
_DURATION_PART = re.compile(r"([0-9]{1,9})([dhms])")
_DURATION = re.compile(rf"({_DURATION_PART.pattern})+")

# 10 digits are the seconds from 2001 to 2286. Fewer are a duration that lacks its unit, like 30, or a date: 20260106.
_UNIX_SECONDS = re.compile(r"[0-9]{10}")


def instant(seconds: float) -> str:
    """Unix seconds as RFC 3339 in UTC to the second: `2026-01-06T03:00:00Z`."""
    return datetime.fromtimestamp(int(seconds), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def span(seconds: float) -> str:
    """A duration by its two largest units: `45s`, `3h 12m`, `2d`. Less than a second is `0s`."""
    left = max(0, int(seconds))
    parts: list[str] = []
    for unit, length in _SECONDS_OF_UNIT:
        count, left = divmod(left, length)
        if count:
            parts.append(f"{count}{unit}")
        elif parts:
            # The unit right below the largest one is nothing: what comes below it is too small to tell.
            break
        if len(parts) == 2:
            break
    return " ".join(parts) or "0s"


def moment(text: str, now: float) -> float:
    """Unix seconds of what a person wrote: RFC 3339, unix seconds, or a duration ago (`90s`, `15m`, `6h`, `3d`).

    RFC 3339 without an offset, and a date alone, are taken as UTC. ValueError, with what is allowed, for anything else
    and for what lies before 1970.
    """
    written = text.strip()
    if _UNIX_SECONDS.fullmatch(written):
        return float(written)
    if ago := _DURATION.fullmatch(written):
        then = now - sum(int(count) * _UNIT_SECONDS[unit] for count, unit in _DURATION_PART.findall(ago.group()))
    else:
        then = _date(written)
    if then < 0:
        problem = f"{text!r} lies before 1970"
        raise ValueError(problem)
    return then


def _date(written: str) -> float:
    try:
        parsed = datetime.fromisoformat(written.upper())
    except ValueError:
        problem = (
            f"{written!r} is no time: write 2026-01-06T03:00:00Z, unix seconds of 10 digits, or a duration ago such as "
            "6h or 3d"
        )
        raise ValueError(problem) from None
    return (parsed if parsed.tzinfo else parsed.replace(tzinfo=UTC)).timestamp()
