"""Which windows the demo collects, and what happens when. Pure; every instant is in simulated unix seconds."""

from dataclasses import dataclass

WIDTH_SECONDS = 60
"""Width of a window: the narrowest, so that there is something to see all the time."""

DELAY_SECONDS = 600
"""How long after its end a window is taken to be final: what the worker does by default."""

REPLAY_HOURS = 1
"""How far back the worker fetches at its start; an outage of the receiver must be shorter, or windows expire."""

_MINUTE = 60


@dataclass(frozen=True, slots=True)
class Timetable:
    """The course of the demo.

    starts_at:         when the worker starts, a full minute. It first fetches what it missed, while time stands still.
    outage_begins_at:  when the receiver is taken down.
    outage_ends_at:    when it is brought back.
    ends_at:           when time stands still again.
    speed:             how many simulated seconds a second has in between.
    """

    starts_at: int
    outage_begins_at: int
    outage_ends_at: int
    ends_at: int
    speed: float

    @property
    def windows(self) -> range:
        """The start of every window that is to be collected: the hour before the start, and what follows."""
        return range(self.starts_at - REPLAY_HOURS * 3600, self.ends_at - DELAY_SECONDS, WIDTH_SECONDS)

    def final_windows(self, now: float) -> int:
        """How many of them are final at `now`."""
        return len(range(self.windows.start, int(now) - DELAY_SECONDS - WIDTH_SECONDS + 1, WIDTH_SECONDS))


def timetable(now: float, *, speed: float = 120.0) -> Timetable:
    """One hour that ends now: Prometheus refuses what lies more than ten minutes in its future.

    now: unix seconds, of the machine.

    At 120 times the usual speed the hour takes 30 s, and the outage 11 s of them.
    """
    ends_at = int(now) // _MINUTE * _MINUTE
    starts_at = ends_at - 60 * _MINUTE
    return Timetable(
        starts_at=starts_at,
        outage_begins_at=starts_at + 20 * _MINUTE,
        outage_ends_at=starts_at + 42 * _MINUTE,
        ends_at=ends_at,
        speed=speed,
    )
