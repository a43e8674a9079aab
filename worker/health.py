"""Whether the worker is alive and whether it is ready: what /-/healthy and /-/ready answer.

Owns the facts that these two answers rest on, told by the loops as they happen, and the rules that make answers of
them. Promises that a Cloudflare or a receiver outage makes the worker neither unhealthy nor unready: restarting it
would cure nothing, and the ledger already holds what is to be delivered. So

- a loop beats at every turn, also while it waits out a backoff; only a loop that hangs stops beating;
- a pass that met an outage, and recorded it as such, is a completed pass;
- a token that was accepted stays accepted until Cloudflare refuses it in so many words (401, 403);
- of several tokens one that is accepted is enough: what is wrong with the others is told, and costs only their zones;
- a destination whose set-up somebody has to correct (its credentials, URL or certificate) makes the worker unready, as
  nothing else is as loud; it delivers to the others and collects all the same.

An event loop that hangs as a whole answers no request at all, which a probe takes for unhealthy too.

Pure: knows no HTTP and no ledger, and gets its time from the clock it is given.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from worker.clock import Clock
from worker.config import DEFAULT_TOKEN
from worker.times import instant, span

# What another side said is quoted up to here: a sentence and its context, not a page of HTML.
MAX_QUOTE_CHARACTERS = 300


class TokenState(StrEnum):
    """What Cloudflare thinks of an API token, as far as it has said."""

    UNKNOWN = "not checked yet"
    ACCEPTED = "accepted"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Problem:
    """One reason why the worker is not what it should be.

    what:  what has the problem: `token`, of several `token <name>`, `ledger`, `destination <name>`, or the name of a
           loop.
    since: unix seconds at which the problem began.
    text:  what is wrong and what to do, on one line, for the person who reads it at night.
    """

    what: str
    since: float
    text: str

    def __str__(self) -> str:
        return f"{self.what}: {self.text} (since {instant(self.since)})"


@dataclass(frozen=True, slots=True)
class Verdict:
    """An answer to "is it alive?" or "is it ready?".

    ok:       yes or no.
    problems: the reasons for a no; with a yes, what is wrong and not reason enough, mostly nothing.
    """

    ok: bool
    problems: tuple[Problem, ...]


@dataclass(frozen=True, slots=True)
class LoopHealth:
    """What is known of one loop; times are unix seconds.

    allowance_seconds: how long the last completed pass may lie back.
    expected_at:       when the loop was announced.
    beat_at:           when it last turned; None before its first turn.
    completed_at:      when it last completed a pass; None before the first.
    """

    allowance_seconds: float
    expected_at: float
    beat_at: float | None
    completed_at: float | None


class Health:
    """The facts and the two verdicts. Nothing is ready before it has been told so.

    tokens: the names of the API tokens.
    """

    def __init__(self, clock: Clock, tokens: Sequence[str] = (DEFAULT_TOKEN,)) -> None:
        self._clock = clock
        started = clock.monotonic()
        self._loops: dict[str, _Loop] = {}
        self._ledger = _Fact(started, "not found writable yet")
        self._parked: dict[str, _Fact] = {}
        self._tokens = dict.fromkeys(tokens, TokenState.UNKNOWN)
        self._token_facts = dict.fromkeys(tokens, _Fact(started, "Cloudflare has not accepted the API token yet"))

    def expect(self, loop: str, *, allowance_seconds: float, liveness_seconds: float) -> None:
        """Announce a loop before it starts.

        allowance_seconds: how long it may take from one completed pass to the next, all its waits included.
        liveness_seconds:  how long it may take from one turn to the next; longer, and it is taken to hang. More than
                           its longest single wait, a request's timeout or a backoff, can take.
        """
        self._loops[loop] = _Loop(allowance_seconds, liveness_seconds, self._clock.monotonic())

    def beat(self, loop: str) -> None:
        """The loop turns. To be called at each turn, whatever came of it. KeyError for a loop never announced."""
        self._loops[loop].beat = self._clock.monotonic()

    def completed(self, loop: str) -> None:
        """The loop did all it set out to do in this pass, an outage found on the way included. This is a beat, too."""
        self.beat(loop)
        self._loops[loop].completed = self._clock.monotonic()

    def ledger_writable(self) -> None:
        """A write to the ledger has reached the disk."""
        self._ledger = _Fact(self._clock.monotonic(), None)

    def ledger_unwritable(self, reason: str) -> None:
        """The ledger takes no writes; `reason` says why, without secrets."""
        self._ledger = self._ledger.failing(self._clock.monotonic(), quote(reason))

    def token_accepted(self, token: str = DEFAULT_TOKEN) -> None:
        """Cloudflare has answered a request made with the token."""
        self._tokens[token] = TokenState.ACCEPTED
        self._token_facts[token] = _Fact(self._clock.monotonic(), None)

    def token_refused(self, reason: str, token: str = DEFAULT_TOKEN) -> None:
        """Cloudflare has answered 401 or 403 to the token itself; `reason` is what it said, without secrets."""
        setting = "CF_API_TOKEN" if token == DEFAULT_TOKEN else "its api_token under `cloudflare`"
        text = f"Cloudflare refuses the API token; check {setting} and its permissions. It said: {quote(reason)}"
        self._tokens[token] = TokenState.REFUSED
        self._token_facts[token] = self._token_facts[token].failing(self._clock.monotonic(), text)

    def destination_parked(self, name: str, reason: str | None) -> None:
        """Somebody has to correct a destination's set-up before anything can be delivered; None: that has been done."""
        what = f"destination {name}"
        if reason is None:
            self._parked.pop(what, None)
            return
        now = self._clock.monotonic()
        self._parked[what] = self._parked.get(what, _Fact(now, None)).failing(now, quote(reason))

    @property
    def tokens(self) -> Mapping[str, TokenState]:
        """What Cloudflare last said about each token, by its name."""
        return self._tokens

    @property
    def token(self) -> TokenState:
        """The same of the token that is best off."""
        return min(self._tokens.values(), key=(TokenState.ACCEPTED, TokenState.REFUSED, TokenState.UNKNOWN).index)

    def loops(self) -> Mapping[str, LoopHealth]:
        """What is known of every loop, in the order in which they were announced."""
        return {
            name: LoopHealth(
                allowance_seconds=loop.allowance_seconds,
                expected_at=self._wall(loop.expected),
                beat_at=None if loop.beat is None else self._wall(loop.beat),
                completed_at=None if loop.completed is None else self._wall(loop.completed),
            )
            for name, loop in self._loops.items()
        }

    def liveness(self) -> Verdict:
        """Alive while every loop turns."""
        now = self._clock.monotonic()
        problems = tuple(
            Problem(
                name,
                self._wall(loop.turned),
                f"has not turned for {span(now - loop.turned)}, {span(loop.liveness_seconds)} are allowed: it hangs, "
                "and only a restart helps",
            )
            for name, loop in self._loops.items()
            if now - loop.turned > loop.liveness_seconds
        )
        return Verdict(not problems, problems)

    def readiness(self) -> Verdict:
        """Ready while the ledger is writable, a token accepted, no destination parked and every loop in time."""
        tokens = {
            "token" if name == DEFAULT_TOKEN else f"token {name}": fact for name, fact in self._token_facts.items()
        }
        problems = [
            Problem(what, self._wall(fact.since), fact.problem)
            for what, fact in (("ledger", self._ledger), *tokens.items(), *self._parked.items())
            if fact.problem is not None
        ]
        now = self._clock.monotonic()
        for name, loop in self._loops.items():
            allowed = f"{span(loop.allowance_seconds)} are allowed"
            if loop.completed is None:
                text = f"has not completed its first pass yet, {allowed}"
                problems.append(Problem(name, self._wall(loop.expected), text))
            elif now - loop.completed > loop.allowance_seconds:
                text = f"completed its last pass at {instant(self._wall(loop.completed))}, {allowed}"
                problems.append(Problem(name, self._wall(loop.completed + loop.allowance_seconds), text))
        is_any_accepted = any(fact.problem is None for fact in tokens.values())
        is_ok = is_any_accepted and all(problem.what in tokens for problem in problems)
        return Verdict(is_ok, tuple(problems))

    def _wall(self, moment: float) -> float:
        """The unix time of a monotonic moment, by the wall clock as it stands now: right also after somebody set it."""
        return self._clock.now() - (self._clock.monotonic() - moment)


def loop_of(loop: str, token: str) -> str:
    """What a loop that asks Cloudflare with a token is called; of several tokens each has one of its own."""
    return loop if token == DEFAULT_TOKEN else f"{loop}:{token}"


def quote(text: str) -> str:
    """What another side said, on one line and bounded."""
    line = " ".join(text.split())
    return line if len(line) <= MAX_QUOTE_CHARACTERS else f"{line[: MAX_QUOTE_CHARACTERS - 1]}…"


@dataclass(frozen=True, slots=True)
class _Fact:
    """Something that has to hold: since which monotonic moment it holds, or does not and why."""

    since: float
    problem: str | None

    def failing(self, now: float, problem: str) -> "_Fact":
        """The fact with a problem, which began when it was first reported and not when it was last repeated."""
        return _Fact(now if self.problem is None else self.since, problem)


@dataclass(slots=True)
class _Loop:
    """A loop's allowances and its monotonic moments."""

    allowance_seconds: float
    liveness_seconds: float
    expected: float
    beat: float | None = None
    completed: float | None = None

    @property
    def turned(self) -> float:
        """When it last turned; before its first turn, when it was announced."""
        return self.expected if self.beat is None else self.beat
