"""Judges a run of delivery by what was captured, what the receiver saw and holds, and what the ledger says in the end.

    conservation  every captured sample is at the receiver, bit by bit, or recorded with a reason
    truth         a refusal is recorded for the samples that are bad and for no others; pending is only what may be
    no invention  nothing is sent or stored that was not captured
    order         a strict receiver gets the windows of a series oldest first; no series is in two requests at once
    retries       the same bytes, `Retry-Attempt` counted, not before the wait is over; nothing again that was taken
    bounds        looking for k bad samples among n takes about 2k*log2(n/k) requests
    silence       no secret in anything that comes out
    it happened   every fault of the test really was there

`violations` returns what is wrong in words, so that a test of the oracle can look for it. Knows nothing of the worker
but the file of its ledger, which it reads by itself.
"""

import base64
import functools
import math
import struct
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from tests.scripted_receiver import Behaviour, Labels, Request, Sample, ScriptedReceiver, bits
from worker.buckets import Bucket
from worker.remote_write.proto import remote_write_v1_pb2 as v1

Content: TypeAlias = Mapping[Sample, int]
"""The 64 bits of every sample."""

# Statuses that decide on the bytes that were sent: they will never be taken. All others below 200 and from 300 on say
# nothing about the samples.
REFUSING = frozenset({400, 409, 413, 422})

# Waits are measured by the receiver between two events of one event loop; floating point is the only error.
_CLOCK_ERROR_SECONDS = 0.001

# What a limit holds back is sent in parts only where it did so more than once.
_LIMITED_BEFORE_SPLIT = 2

# Of what is wrong, so much is shown.
_MOST_SHOWN = 5


@dataclass(frozen=True, slots=True)
class Fate:
    """What the ledger says of one sample: `refused` where it is named as such, else the state of its bucket."""

    state: str
    status: int | None = None
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long a request waits after each failure at least, before jitter."""

    min_seconds: float = 1.0
    max_seconds: float = 60.0

    def after(self, attempt: int) -> float:
        return min(self.min_seconds * 2.0**attempt, self.max_seconds)


@dataclass(frozen=True, slots=True)
class Expectation:
    """What holds for one run beside what always holds.

    bad:            the samples that the receiver never takes: exactly these are to be recorded as refused.
    may_be:         states beside acknowledged (and refused, of bad ones) that a sample may be in.
    strict:         the receiver takes nothing out of order.
    attempts_before_split: how often a request has to fail with 5xx before a part of it may be sent alone.
    controls:       how many requests may repeat what was taken, to see whether the receiver works.
    restarts:       the worker was started again meanwhile: it does not know how often it sent what it sends.
    backoff:        None where waits are not looked at.
    asked_seconds:  what answers asked for in `Retry-After`, by the name of the behaviour.
    """

    bad: frozenset[Sample] = frozenset()
    may_be: frozenset[str] = frozenset()
    strict: bool = False
    attempts_before_split: int = 5
    controls: int = 0
    restarts: bool = False
    backoff: Backoff | None = Backoff()
    asked_seconds: Mapping[str, float] = field(default_factory=dict)


# ---------------------------------------------------------------------------------------- what is true, and recorded


def content_of(buckets: Iterable[Bucket]) -> dict[Sample, int]:
    """Every sample of these buckets."""
    return {
        (labels_of(block), bucket.timestamp_ms): bits(value)
        for bucket in buckets
        for block, value in zip(bucket.series, bucket.values, strict=True)
    }


@functools.cache
def labels_of(block: bytes) -> Labels:
    """The labels of a label block, which is the beginning of a serialized TimeSeries."""
    return tuple((label.name, label.value) for label in v1.TimeSeries.FromString(block).labels)


def fates(session: Any, destination: str) -> dict[Sample, Fate]:
    """A verb of the ledger: what it says of every sample at a destination, read with statements of its own."""
    execute = session._connection.execute
    labels = {number: labels_of(block) for number, block in execute("SELECT id, labels FROM series")}
    found: dict[Sample, Fate] = {}
    timestamps: dict[int, int] = {}
    for bucket_id, timestamp_ms, series_ids, state, status, reason in execute(
        """SELECT bucket.id, timestamp_ms, series_ids, delivery.state, delivery.status, delivery.reason
        FROM delivery JOIN bucket ON bucket.id = bucket_id JOIN destination ON destination.id = destination_id
        WHERE destination.name = ?""",
        (destination,),
    ):
        timestamps[bucket_id] = timestamp_ms
        # Of a bucket that was delivered in part, the refused samples are named below.
        fate = Fate("acknowledged") if state == "partial" else Fate(state, status, reason)
        found |= {(labels[number], timestamp_ms): fate for number in _numbers(series_ids)}
    for bucket_id, series_ids, status, reason in execute(
        """SELECT bucket_id, series_ids, status, reason FROM refusal
        JOIN destination ON destination.id = destination_id WHERE destination.name = ?""",
        (destination,),
    ):
        for number in _numbers(series_ids):
            found[labels[number], timestamps[bucket_id]] = Fate("refused", status, reason)
    return found


def _numbers(packed: bytes) -> tuple[int, ...]:
    return struct.unpack(f"<{len(packed) // 4}I", packed)


# ------------------------------------------------------------------------------------------------------ the verdict


def violations(
    truth: Content,
    recorded: Mapping[Sample, Fate],
    receiver: ScriptedReceiver,
    expected: Expectation,
    *,
    secrets: Collection[str] = (),
    outputs: Mapping[str, bytes] | None = None,
) -> list[str]:
    """Everything that is wrong with a run, in words; empty where nothing is.

    truth:    what was captured.
    recorded: what the ledger says (`fates`).
    outputs:  whatever came out of the worker, by where it did.
    """
    return [
        *receiver.broken_rules,
        *_conservation(truth, recorded, receiver.holds(), expected),
        *_invention(truth, receiver),
        *(_wrong_order(receiver.requests, expected) if expected.strict else ()),
        *_retries(receiver.requests, expected),
        *_unbounded(receiver.requests, expected),
        *_leaks(secrets, outputs or {}),
        *_did_not_happen(receiver.behaviours, receiver.happened),
    ]


def _conservation(
    truth: Content, recorded: Mapping[Sample, Fate], stored: Content, expected: Expectation
) -> Iterator[str]:
    if truth.keys() != recorded.keys():
        yield f"the ledger has {len(recorded)} samples and {len(truth)} were captured"
    wrong: defaultdict[str, list[Sample]] = defaultdict(list)
    for sample, value in truth.items():
        for problem in _wrong_fate(recorded.get(sample, Fate("nowhere")), value, stored.get(sample)):
            wrong[problem].append(sample)
        state = recorded[sample].state if sample in recorded else "nowhere"
        if state == "refused" and sample not in expected.bad:
            wrong["recorded as refused, though it is good"].append(sample)
        elif state not in {"acknowledged", "refused", *expected.may_be}:
            wrong[f"in the end {state}"].append(sample)
    for what, samples in wrong.items():
        yield f"{len(samples)} of {len(truth)} samples: {what}: {_some(samples)}"


def _wrong_fate(fate: Fate, value: int, stored: int | None) -> Iterator[str]:
    match fate.state:
        case "acknowledged" if stored is None:
            yield "acknowledged and not at the receiver"
        case "acknowledged" if stored != value:
            yield "at the receiver with another value"
        case "refused" if not fate.reason or fate.status is None:
            yield "refused without a status or a reason"
        case "expired" | "damaged" if not fate.reason:
            yield f"{fate.state} without a reason"


def _invention(truth: Content, receiver: ScriptedReceiver) -> Iterator[str]:
    if invented := [sample for sample, value in receiver.holds().items() if truth.get(sample) != value]:
        yield f"{len(invented)} samples are stored that were not captured so: {_some(invented)}"
    for request in receiver.requests:
        if invented := [sample for sample, value in request.samples.items() if truth.get(sample) != value]:
            yield f"request {request.number} has {len(invented)} samples that were not captured so: {_some(invented)}"


def _wrong_order(requests: Iterable[Request], expected: Expectation) -> Iterator[str]:
    """What a receiver that takes nothing out of order would complain about, or not survive a lost answer."""
    newest: dict[Labels, tuple[int, Request]] = {}
    for request in requests:
        if len(request.samples) > len(request.series):
            yield f"request {request.number} has two windows of a series, which cannot be repeated"
        for labels, timestamp_ms in request.samples:
            before_ms, earlier = newest.get(labels, (timestamp_ms, request))
            if timestamp_ms < before_ms:
                yield f"request {request.number} has {timestamp_ms} of {dict(labels)} behind {before_ms}"
            elif timestamp_ms > before_ms and not _decided(earlier) and (labels, before_ms) not in expected.bad:
                yield f"request {request.number} leaves {before_ms} of {dict(labels)} behind, which nothing was said to"
            newest[labels] = max(timestamp_ms, before_ms), request


def _retries(requests: Sequence[Request], expected: Expectation) -> Iterator[str]:
    """What is wrong between a request and the one before it that had one of its samples."""
    last: dict[Sample, Request] = {}
    searched: set[Sample] = set()  # those of requests that failed so often that their parts are sent alone
    limited: Counter[frozenset[Sample]] = Counter()  # how often a limit held a request back
    controls = expected.controls
    for request in requests:
        if controls and all(sample in last and last[sample].accepted for sample in request.samples):
            controls -= 1
            continue
        before = {last[sample] for sample in request.samples if sample in last}
        if request.attempt and not before and request.attempt > request.unread:
            yield f"request {request.number} says attempt {request.attempt} and is the first"
        for earlier in before:
            if limited[frozenset(earlier.samples)] >= _LIMITED_BEFORE_SPLIT:
                searched |= earlier.samples.keys()
            # Those that were cut off before they could be read are known by their number only.
            if earlier.attempt + 1 + request.unread - earlier.unread >= expected.attempts_before_split:
                searched |= earlier.samples.keys()
            if request.attempt:
                problem = _wrong_repetition(request, earlier, expected)
            elif expected.restarts or (request.samples.keys() <= searched and not earlier.accepted):
                problem = None
            else:
                problem = _wrong_instead(request, earlier)
            if problem is not None:
                told = f"request {request.number}, attempt {request.attempt}, after {earlier.number}, attempt"
                yield f"{told} {earlier.attempt}, which has {_outcome(earlier)}: {problem}"
        last |= dict.fromkeys(request.samples, request)
        limited[frozenset(request.samples)] += request.status in {429, 529}


def _wrong_repetition(request: Request, earlier: Request, expected: Expectation) -> str | None:
    """What is wrong with a request that says that it is a repetition."""
    if request.version is not earlier.version:
        return None
    if request.body != earlier.body:
        return "it has other bytes"
    if not earlier.attempt < request.attempt <= earlier.attempt + 1 + request.unread - earlier.unread:
        return "it is wrongly counted"
    if _decided(earlier):
        return "it repeats what was decided"
    if earlier.answered_at is None or expected.backoff is None or _parks(earlier):
        return None
    waited = request.at - earlier.answered_at
    wanted = max(expected.backoff.after(earlier.attempt), expected.asked_seconds.get(earlier.fault or "", 0.0))
    return f"it came after {waited:.3f} s and not {wanted:g} s" if waited < wanted - _CLOCK_ERROR_SECONDS else None


def _wrong_instead(request: Request, earlier: Request) -> str | None:
    """What is wrong with a request that has samples of an earlier one and does not say that it repeats it."""
    if earlier.accepted:
        return "it sends again what was taken"
    if request.version is not earlier.version:
        return None
    if earlier.status not in REFUSING:
        return "it is not the same bytes with the next Retry-Attempt"
    return None if request.samples.keys() < earlier.samples.keys() else "it is no part of what was refused"


def _parks(request: Request) -> bool:
    """Whether it says that the destination is set up wrongly: then all wait until any request gets another answer."""
    return request.status is not None and request.status not in {408, 425, 429} and not 500 <= request.status < 600


def _decided(request: Request) -> bool:
    return request.accepted or request.status in REFUSING


def _unbounded(requests: Sequence[Request], expected: Expectation) -> Iterator[str]:
    """Requests that look for bad samples, beyond what it takes.

    Halving n samples with k bad ones among them, all as far apart as possible: 2k - 1 requests until each half has one,
    then 2*log2(n/k) for each. Halves of whole windows and of odd numbers are uneven, which costs each of the k another
    level. A refusal by a fault looks like a bad sample that cannot be found; one for its size costs two requests.
    """
    families: list[_Family] = []
    family_of: dict[Sample, _Family] = {}
    taken: set[Sample] = set()
    for request in requests:
        family = family_of.get(next(iter(request.samples), ((), 0)))
        # A part of what was sent before looks for bad samples in it. The same in another version does not.
        if family is None or not request.samples.keys() <= family.samples:
            family = _Family(frozenset(request.samples))
            families.append(family)
            family_of |= dict.fromkeys(request.samples, family)
        elif request.samples.keys() < family.samples and not request.samples.keys() <= taken:  # that is a control
            family.parts.add(request.body)
        taken.update(request.samples if request.accepted else ())
        family.too_large += request.size_refused
        family.faults += request.fault is not None and not request.accepted
    for family in families:
        size, found = len(family.samples), len(family.samples & expected.bad)
        looked_for = min(size, found + family.faults)
        needed = 2 * looked_for * math.log2(size / looked_for) + 4 * looked_for if looked_for else 0
        enough = needed + 2 * family.too_large
        if len(family.parts) > enough:
            yield f"{len(family.parts)} requests looked for {found} bad samples among {size}; {enough:.0f} are enough"


@dataclass(slots=True, eq=False)
class _Family:
    """A request and what was sent to look for bad samples in it.

    parts:     each once, however often it was sent.
    faults:    how many of them failed by a fault.
    too_large: how many were refused for their size.
    """

    samples: frozenset[Sample]
    parts: set[bytes] = field(default_factory=set)
    faults: int = 0
    too_large: int = 0


def _leaks(secrets: Collection[str], outputs: Mapping[str, bytes]) -> Iterator[str]:
    for secret in secrets:
        for form in (secret.encode(), base64.b64encode(secret.encode())):
            for where, output in outputs.items():
                if form in output:
                    begin = max(0, output.index(form) - 80)
                    yield f"a secret is in {where}: {output[begin : begin + 200]!r}"


def _did_not_happen(behaviours: Iterable[Behaviour], happened: Mapping[str, int]) -> Iterator[str]:
    yield from (f"{behaviour.name} never happened" for behaviour in behaviours if not happened[behaviour.name])


def _outcome(request: Request) -> str:
    if request.accepted:
        return "been accepted"
    return f"{'no answer' if request.status is None else f'status {request.status}'} ({request.fault or 'no fault'})"


def _some(samples: Iterable[Sample]) -> str:
    first = sorted(samples, key=lambda sample: (sample[1], sample[0]))[:_MOST_SHOWN]
    return "; ".join(f"{dict(labels)} at {timestamp_ms}" for labels, timestamp_ms in first)
