"""One destination: whether it answers, which version it speaks, its clock, and how old samples may be for it.

Asks with an empty request first, which stores nothing; then, unless that is unwanted, with the samples of
`worker.check.probe`. Sends nothing to a destination that does not answer the first. What the destination's name and the
worker's own settings have to do with the answers is told here; how they are got is not known.
"""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from math import ceil
from typing import Protocol as Interface
from typing import assert_never

from worker.buckets import SampleTimestamp
from worker.check.clocks import clock_finding
from worker.check.finding import Finding, failure, ok, skipped, warning
from worker.check.probe import STRICT_SECONDS, Answer, Window, answer_of, empty_body, find_window, probe_body
from worker.clock import Clock
from worker.config import CloudflareSettings, DestinationSettings, Message
from worker.remote_write import Accepted, Fate, Later, Protocol, Refused, Verdict
from worker.times import span

SECTION = "destination"
AGE_SECTION = "age window"

_HOUR = 3600

# An out-of-order window is asked for a little within its end: it counts from the newest sample of the receiver, which
# may be from a clock that is some minutes ahead. Of windows shorter than an hour a tenth.
_WITHIN_SECONDS = 300
_WITHIN_SHARE = 10


class Sender(Interface):
    """What sends one request to the destination."""

    @property
    def ahead_seconds(self) -> float | None:
        """How far this machine's clock is ahead of the receiver's; None before the first answer that tells."""

    async def send(self, body: bytes, attempt: int, message: Message = ...) -> Verdict:
        """Send one compressed request and tell what its receiver makes of it."""


@dataclass(frozen=True, slots=True)
class Ages:
    """How old samples are when they are sent.

    first_seconds:  those of the newest window, at the latest.
    oldest_seconds: those of the oldest window that is fetched without being asked for.
    end_seconds:    as first_seconds, if samples carried the end of their window.
    replay_hours:   CF_REPLAY_HOURS.
    """

    first_seconds: int
    oldest_seconds: int
    end_seconds: int
    replay_hours: int


def ages_of(settings: CloudflareSettings, delay_seconds: int) -> Ages:
    """`delay_seconds`: the longest after which windows of what is collected are final."""
    width = settings.bucket_seconds if settings.sample_timestamp is SampleTimestamp.START else 0
    at_end = delay_seconds + settings.collection_interval_seconds
    # A window belongs to the replay while its end lies within.
    oldest = settings.replay_hours * _HOUR + width
    return Ages(at_end + width, max(oldest, at_end + width), at_end, settings.replay_hours)


async def look_at_receiver(
    destination: DestinationSettings, sender: Sender, clock: Clock, ages: Ages, *, probe: bool
) -> AsyncIterator[Finding]:
    """What is to be said of one destination.

    probe: whether samples may be sent to it.
    """
    name = destination.name
    message, verdict, why_older = await _first_contact(destination, sender, clock)
    finding = _contact_finding(destination, message, verdict, why_older)
    yield finding
    if (clocks := clock_finding(f"{name}'s", sender.ahead_seconds)) is not None:
        yield clocks
    if isinstance(verdict, Later):
        yield skipped(AGE_SECTION, f"{name}: not looked for, as it does not answer as it should")
        return
    if not probe:
        yield _configured_finding(destination, ages) or skipped(
            AGE_SECTION, f"{name}: not looked for, as no samples are to be sent for it"
        )
        return

    async def ask(age_seconds: int) -> Answer:
        body = probe_body(age_seconds, clock.now(), destination.external_labels, message)
        return answer_of(await sender.send(body, 0, message))

    asked = (ages.oldest_seconds, _within(destination) or 0)
    window = await find_window(
        ask,
        first_seconds=ages.first_seconds,
        older_seconds=[age for age in asked if age > ages.first_seconds],
        younger_seconds=[ages.end_seconds],
    )
    for each in age_findings(destination, ages, window):
        yield each


async def _first_contact(
    destination: DestinationSettings, sender: Sender, clock: Clock
) -> tuple[Message, Verdict, str | None]:
    """The version that is understood, what came of an empty request in it, and why it is not the newest."""
    protocol = Protocol(destination.protobuf_message, retry_seconds=float("inf"), clock=clock)
    message = protocol.message
    verdict = await sender.send(empty_body(message), 0, message)
    if message is Message.V1 or not protocol.is_automatic:
        return message, verdict, None
    match verdict:
        case Later(fate=Fate.OLDER_MESSAGE):
            why = "it does not know 2.0"
        # What does not know 2.0 need not say so with the status that is meant for it.
        case Refused(status=status, speaks_2=False):
            why = f"HTTP {status} to a request in 2.0"
        case Later(fate=Fate.RETRY, status=int(status)):
            why = f"HTTP {status} to a request in 2.0"
        case _:
            return message, verdict, None
    in_1 = await sender.send(empty_body(Message.V1), 0, Message.V1)
    if isinstance(in_1, Later) and not (isinstance(verdict, Later) and verdict.fate is Fate.OLDER_MESSAGE):
        return message, verdict, None
    return Message.V1, in_1, why


def _contact_finding(
    destination: DestinationSettings, message: Message, verdict: Verdict, why_older: str | None
) -> Finding:
    name = destination.name
    version = "2.0" if message is Message.V2 else f"1.0 ({why_older})" if why_older else "1.0"
    where = f"{name}: {destination.shown_url}"
    match verdict:
        case Accepted():
            return ok(SECTION, f"{where} takes requests of this worker, in remote write {version}")
        case Refused(status=status, text=text):
            words = f"{where} answers HTTP {status} to a request without samples: {text}"
            return warning(SECTION, words, "see whether it takes a sample, which the next line tells")
        case Later(fate=Fate.RATE_LIMITED, reason=reason):
            return warning(SECTION, f"{where} wants fewer requests: {reason}", "ask again in some minutes")
        case Later(fate=Fate.OLDER_MESSAGE, reason=reason):
            to_do = f"take protobuf_message: {message} out of the destination's configuration"
            return failure(SECTION, f"{where}: {reason}", to_do if destination.protobuf_message else "check the URL")
        case Later(fate=Fate.PARK, reason=reason):
            return failure(SECTION, f"{where}: {reason}", "correct the destination's configuration, or the receiver")
        case Later(reason=reason):
            return failure(SECTION, f"{where}: {reason}", "see whether the receiver runs, and what its own log says")
        case never:
            assert_never(never)


def _within(destination: DestinationSettings) -> int | None:
    """An age that the window takes as it is configured; None where there is none."""
    seconds = destination.out_of_order_time_window_seconds
    return seconds - min(_WITHIN_SECONDS, seconds // _WITHIN_SHARE) if seconds else None


def _configured_finding(destination: DestinationSettings, ages: Ages) -> Finding | None:
    """What the configuration alone tells of the window, where that is something."""
    seconds = destination.out_of_order_time_window_seconds
    if not seconds or seconds >= ages.oldest_seconds:
        return None
    what = (
        f"{destination.name}: out_of_order_time_window is {span(seconds)}, and samples of the oldest window that is "
        f"fetched are {span(ages.oldest_seconds)} old: what is older than the window is given up"
    )
    return warning(AGE_SECTION, what, _widen(ages))


def age_findings(destination: DestinationSettings, ages: Ages, window: Window) -> list[Finding]:
    """What the ages that a receiver takes mean for what the worker sends."""
    name = destination.name
    if window.silent:
        what = f"{name}: not found, as it answered otherwise in between: {window.silent}"
        return [warning(AGE_SECTION, what, "check again when it answers")]
    limit = _limit(window)
    if window.takes(ages.first_seconds) is not True:
        return [failure(AGE_SECTION, *_refuses_all(name, ages, window, limit))]
    findings = []
    if window.takes(ages.oldest_seconds) is True:
        findings += [each for each in [_configured_finding(destination, ages)] if each]
    else:
        what = (
            f"{name}: takes samples of {span(ages.first_seconds)}, as old as the newest window's are, but {limit}. "
            f"With CF_REPLAY_HOURS={ages.replay_hours} those of the oldest window are {span(ages.oldest_seconds)} old: "
            "after an outage they are refused"
        )
        findings.append(warning(AGE_SECTION, what, f"{_widen(ages)}{_shorter(ages, window)}"))
    findings += _against_the_configuration(destination, window, limit)
    if not findings:
        taken, oldest = span(window.taken_seconds or 0), span(ages.oldest_seconds)
        what = f"{name}: takes samples of {taken}; the oldest that are sent without being asked for are {oldest} old"
        findings.append(ok(AGE_SECTION, what, _loosen(destination, window)))
    return findings


def _against_the_configuration(destination: DestinationSettings, window: Window, limit: str) -> list[Finding]:
    within = _within(destination)
    if within is None or window.takes(within) is not False:
        return []
    configured = span(destination.out_of_order_time_window_seconds)
    what = f"{destination.name}: out_of_order_time_window is {configured} here, but {limit}"
    to_do = "set the receiver's own window to that, or the destination's to what the receiver's is"
    return [warning(AGE_SECTION, what, to_do)]


def _loosen(destination: DestinationSettings, window: Window) -> str:
    """What could be had from a receiver that takes more than it is taken to."""
    if destination.out_of_order_time_window_seconds or (window.taken_seconds or 0) <= STRICT_SECONDS:
        return ""
    return (
        "it takes what is out of order: set the destination's out_of_order_time_window to what the receiver's is, and "
        "many windows travel in one request"
    )


def _refuses_all(name: str, ages: Ages, window: Window, limit: str) -> tuple[str, str]:
    first = span(ages.first_seconds)
    what = f"{name}: does not take samples of {first}, and the newest window's are that old when they are sent"
    if window.taken_seconds is None:
        younger = (
            "" if window.refused_seconds == ages.first_seconds else f", nor of {span(window.refused_seconds or 0)}"
        )
        return f"{what}{younger}: {window.words}", "see in its words whether that is about age at all"
    is_cured_by_end = ages.end_seconds < ages.first_seconds and window.takes(ages.end_seconds)
    at_end = f"; or set CF_SAMPLE_TIMESTAMP=end, with which they are {span(ages.end_seconds)} old"
    return f"{what}; {limit}", f"{_widen(ages)}{at_end if is_cured_by_end else ''}"


def _limit(window: Window) -> str:
    """Where the window ends, for people."""
    taken, refused = span(window.taken_seconds or 0), span(window.refused_seconds or 0)
    return f"its window ends between {taken} and {refused} ({window.words})"


def _widen(ages: Ages) -> str:
    hours = ceil(ages.oldest_seconds / _HOUR) + 1
    return f"set the receiver's out-of-order window to {hours}h or more, and out_of_order_time_window here to the same"


def _shorter(ages: Ages, window: Window) -> str:
    behind_replay = ages.oldest_seconds - ages.replay_hours * _HOUR
    hours = ((window.taken_seconds or 0) - behind_replay) // _HOUR
    return f"; or set CF_REPLAY_HOURS={hours}, and what is older is given up" if hours >= 1 else ""
