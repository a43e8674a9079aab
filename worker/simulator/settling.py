"""How late traffic becomes visible in Cloudflare's analytics.

Owns the arrival curve and the incidents that hold it up; pure functions of a minute and a time. What is visible only
grows, then stops.
"""

from dataclasses import dataclass

from worker.simulator.traffic import MINUTE_SECONDS

# (seconds after the end of the minute in which the requests were served, per mille of them visible); linear between.
# Observed on the real API: about half is missing after 3 minutes on a bad day, nothing after 5.
ARRIVAL = ((0, 0), (60, 450), (180, 750), (240, 980), (300, 1000))


@dataclass(frozen=True, slots=True)
class HoldUp:
    """Traffic of some minutes that Cloudflare shows much later than usual.

    zone_tag:      whose, or None for every zone's.
    start, end:    the minutes that start in [start, end), unix seconds.
    delay_seconds: how long after a minute's end the traffic that is held up becomes visible, all at once.
    percent:       how much of the traffic is held up.
    """

    zone_tag: str | None
    start: int
    end: int
    delay_seconds: int
    percent: int


@dataclass(frozen=True, slots=True)
class Settling:
    """What share of each minute is visible at which time."""

    arrival: tuple[tuple[int, int], ...] = ARRIVAL
    hold_ups: tuple[HoldUp, ...] = ()

    def permille(self, zone_tag: str, minute: int, now: float) -> int:
        """How many of 1000 requests that were served in the minute starting at `minute` are visible at `now`."""
        age_seconds = now - (minute + MINUTE_SECONDS)
        visible = _interpolated(self.arrival, age_seconds)
        for hold_up in self.hold_ups:
            if (
                hold_up.zone_tag in {None, zone_tag}
                and hold_up.start <= minute < hold_up.end
                and age_seconds < hold_up.delay_seconds
            ):
                visible = visible * (100 - hold_up.percent) // 100
        return visible

    def has_settled(self, zone_tag: str, start: int, end: int, now: float) -> bool:
        """Whether all that was served in [start, end) is sure to be visible at `now`, without a look at its minutes."""
        if now - end < self.arrival[-1][0]:
            return False
        return not any(
            hold_up.zone_tag in {None, zone_tag}
            and hold_up.start < end
            and start < hold_up.end
            and now - end < hold_up.delay_seconds
            for hold_up in self.hold_ups
        )


AT_ONCE = Settling(arrival=((0, 0), (0, 1000)))
"""Every minute is visible as soon as it is over."""


def _interpolated(points: tuple[tuple[int, int], ...], age_seconds: float) -> int:
    if age_seconds < points[0][0]:
        return 0
    before_seconds, before = points[0]
    for after_seconds, after in points[1:]:
        if age_seconds < after_seconds:
            return before + int((after - before) * (age_seconds - before_seconds) / (after_seconds - before_seconds))
        before_seconds, before = after_seconds, after
    return before
