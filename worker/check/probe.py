"""How old a sample may be for a receiver to take it, found by sending it a few.

Owns the samples that are sent for it: one a request, of the metric `cfrw_check_probe`, its value 1, under a label
`age_seconds` that says how old it was. Promises to be little trouble:

    few requests           at most MAX_REQUESTS, one after the other, none of them sent again
    few series             a series for every age, of a fixed ladder and two or three that follow from the settings
    another run works      it sends newer samples of the same series, so none of them is out of order
    nothing gets worse     a receiver counts the age from the newest sample that it has of anything. The first one sent
                           is as old as what the worker itself sends. A younger one, which may move that on, goes out
                           only where the first is too old, and so all that the worker sends, already

Knows nothing of what the answer is good for.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import assert_never

from worker.buckets import Batch, StoredBucket
from worker.config import Message
from worker.remote_write import Accepted, Later, Refused, Verdict, compress, write_request
from worker.series import label_block

PROBE_METRIC = "cfrw_check_probe"
AGE_LABEL = "age_seconds"

_MINUTE, _HOUR, _DAY = 60, 3600, 86_400

STRICT_SECONDS = _HOUR
"""How far behind its newest sample a TSDB takes samples that are in order: half of the two hours of its head block."""

# Each about half as long again as the one before. An hour lies between two of them, so that a strict receiver's answer
# does not depend on the second.
_LADDER = (
    *(minutes * _MINUTE for minutes in (2, 5, 10, 20, 35, 50, 70, 100)),
    *(hours * _HOUR for hours in (2, 3, 4, 6, 9, 12, 18, 24, 36, 48, 72)),
    *(days * _DAY for days in (5, 7, 10, 14, 21, 30, 45, 60, 90, 180, 365)),
)

# So young is nothing that the worker sends: it shows whether any sample is taken.
_YOUNGEST_SECONDS = _LADDER[0]

# Three that are asked for, two younger ones, and one for every halving of a ladder of 30 steps.
MAX_REQUESTS = 3 + 2 + 5


@dataclass(frozen=True, slots=True)
class TooOld:
    """The receiver does not take a sample of that age; `words` are its answer."""

    words: str


@dataclass(frozen=True, slots=True)
class Silent:
    """The receiver did not say whether it takes the sample, and why."""

    reason: str


Answer = Accepted | TooOld | Silent


@dataclass(frozen=True, slots=True)
class Window:
    """What is known of the ages that a receiver takes.

    taken_seconds:   the greatest age that it took; None where it took none.
    refused_seconds: the smallest age, above that, that it did not take; None where it took all.
    words:           what it said to that.
    silent:          why asking came to an end before its time; empty where it did not.
    """

    taken_seconds: int | None = None
    refused_seconds: int | None = None
    words: str = ""
    silent: str = ""

    def takes(self, age_seconds: int) -> bool | None:
        """Whether it takes a sample of this age; None where that is not known."""
        if self.taken_seconds is not None and age_seconds <= self.taken_seconds:
            return True
        if self.refused_seconds is not None and age_seconds >= self.refused_seconds:
            return False
        return None


async def find_window(
    ask: Callable[[int], Awaitable[Answer]],
    *,
    first_seconds: int,
    older_seconds: Collection[int] = (),
    younger_seconds: Collection[int] = (),
) -> Window:
    """Whether samples of some ages are taken, and where one is not, about which age is the last that is.

    ask:             sends a sample of that age in seconds.
    first_seconds:   how old the newest sample is that the worker ever sends.
    older_seconds:   what else is to be known.
    younger_seconds: what is to be known where the first one is too old.
    """
    search = _Search(ask)
    for age in sorted({first_seconds, *older_seconds}):
        if not await search.is_taken(age):
            break
    for age in sorted({*younger_seconds, _YOUNGEST_SECONDS}, reverse=True):
        if search.taken is None and not search.silent and age < first_seconds:
            await search.is_taken(age)
    while (between := search.between()) and not search.silent:
        await search.is_taken(between)
    return Window(search.taken, search.refused, search.words, search.silent)


class _Search:
    def __init__(self, ask: Callable[[int], Awaitable[Answer]]) -> None:
        self.taken: int | None = None
        self.refused: int | None = None
        self.words = ""
        self.silent = ""
        self._ask = ask

    async def is_taken(self, age_seconds: int) -> bool:
        match await self._ask(age_seconds):
            case Accepted():
                self.taken = age_seconds
                return True
            case TooOld(words):
                self.refused, self.words = age_seconds, words
            case Silent(reason):
                self.silent = reason
            case never:
                assert_never(never)
        return False

    def between(self) -> int | None:
        """The step in the middle of what is not known yet; None where nothing of the ladder is left."""
        if self.taken is None or self.refused is None:
            return None
        steps = _LADDER[bisect_right(_LADDER, self.taken) : bisect_left(_LADDER, self.refused)]
        return steps[len(steps) // 2] if steps else None


def probe_body(age_seconds: int, now: float, external_labels: Mapping[str, str], message: Message) -> bytes:
    """A request with one sample of that age. Relabelling is left out: rules that keep some metrics would drop it."""
    labels = {**external_labels, AGE_LABEL: str(age_seconds)}
    bucket = StoredBucket(1, int((now - age_seconds) * 1000), array("I", [1]).tobytes(), array("d", [1.0]).tobytes())
    return compress(write_request(Batch((bucket,), {1: label_block(PROBE_METRIC, labels)}), message))


def empty_body(message: Message) -> bytes:
    """A request without a sample: receivers answer it as any other, and nothing is stored."""
    return compress(write_request(Batch((), {}), message))


def answer_of(verdict: Verdict) -> Answer:
    """What an answer to a probe says of its age."""
    match verdict:
        case Accepted(written_samples=0):
            return TooOld(f"HTTP {verdict.status}, and that it has written nothing")
        case Accepted():
            return verdict
        case Refused(status=status, text=text):
            return TooOld(f"HTTP {status}: {text}")
        # Prometheus 2.39 to 2.49 answer so to what is older than their out-of-order window.
        case Later(status=500, reason=reason):
            return TooOld(reason)
        case Later(reason=reason):
            return Silent(reason)
        case never:
            assert_never(never)
