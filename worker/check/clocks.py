"""This machine's clock beside another one."""

from worker.check.finding import Finding, ok, warning
from worker.times import span

SECTION = "clock"

# The other side's time is told to the second and is late by the time that its answer takes.
_TOLERANCE_SECONDS = 5.0


def clock_finding(whose: str, ahead_seconds: float | None) -> Finding | None:
    """What is to be said of the difference; None where the other side does not tell its time.

    whose: as in "Cloudflare's".
    """
    if ahead_seconds is None:
        return None
    if abs(ahead_seconds) <= _TOLERANCE_SECONDS:
        return ok(SECTION, f"this machine's clock agrees with {whose}, to {span(_TOLERANCE_SECONDS)}")
    direction = "ahead of" if ahead_seconds > 0 else "behind"
    what = f"this machine's clock is {span(abs(ahead_seconds))} {direction} {whose}"
    return warning(SECTION, what, "let both machines keep their time by NTP")
