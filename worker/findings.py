"""What reading back has found, summed up piece by piece into a result of bounded size. Pure."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace

from worker.comparison import Finding
from worker.ledger import VerifyCount, VerifyExample, VerifyResult
from worker.series import notation
from worker.verification import Looked

# The result is a row of the ledger, written anew with each piece: 200 counts of 150 bytes are 30 KB. Nobody reads more.
_MOST_COUNTS = 200
_MOST_EXAMPLES = 20

_UNEQUAL = ("missing", "different", "extra", "duplicated", "undelivered")


def with_looked(result: VerifyResult, destination: str, seen: Looked) -> VerifyResult:
    """The result with what was found in one more piece."""
    counts = list(_counts(destination, seen))
    unequal = _summed([*result.unequal, *filter(is_unequal, counts)])
    in_total = (replace(count, metric="", zone="") for count in counts)
    return replace(
        result,
        totals=_summed([*result.totals, VerifyCount(destination), *in_total]),
        unequal=unequal[:_MOST_COUNTS],
        unlisted=result.unlisted + len(unequal[_MOST_COUNTS:]),
        examples=(*result.examples, *_examples(destination, seen))[:_MOST_EXAMPLES],
        damaged=result.damaged + seen.damaged,
    )


def is_unequal(count: VerifyCount) -> bool:
    """Whether something of it is not as the ledger has it."""
    return any(getattr(count, name) for name in _UNEQUAL)


def _counts(destination: str, seen: Looked) -> Iterator[VerifyCount]:
    """By metric and zone."""
    numbers: dict[tuple[str, str], Counter[str]] = {}
    for outcome in seen.outcomes:
        found_of = seen.metric_of[outcome.claim.series_id], seen.scope_of[outcome.claim.bucket_id]
        counter = numbers.setdefault(found_of, Counter())
        counter[outcome.finding] += 1
        counter["duplicated"] += outcome.is_duplicated
    for extra in seen.extra:
        labels = dict(extra.labels)
        zone = labels.get("zone") or labels.get("account") or ""
        numbers.setdefault((labels.get("__name__", ""), zone), Counter())[Finding.EXTRA] += 1
    for (metric, zone), counter in numbers.items():
        yield VerifyCount(destination, metric, zone, *map(counter.__getitem__, ("equal", *_UNEQUAL)))


def _summed(counts: Iterable[VerifyCount]) -> tuple[VerifyCount, ...]:
    """One count for each destination, metric and zone, in the order in which they came."""
    summed: dict[tuple[str, str, str], VerifyCount] = {}
    for count in counts:
        key = count.destination, count.metric, count.zone
        before = summed.get(key)
        if before is not None:
            names = ("equal", *_UNEQUAL)
            count = replace(before, **{name: getattr(before, name) + getattr(count, name) for name in names})  # noqa: PLW2901
        summed[key] = count
    return tuple(summed.values())


def _examples(destination: str, seen: Looked) -> Iterator[VerifyExample]:
    """Samples that somebody should look at: what is undelivered is no surprise, and of what is stored twice one is."""
    for outcome in seen.outcomes:
        claim = outcome.claim
        if outcome.finding in {Finding.MISSING, Finding.DIFFERENT}:
            yield VerifyExample(
                destination=destination,
                finding=outcome.finding,
                series=notation(dict(sorted(claim.labels))),
                timestamp_ms=claim.timestamp_ms,
                expected=repr(claim.value),
                found=tuple(map(repr, outcome.values)),
            )
    for extra in seen.extra:
        yield VerifyExample(
            destination=destination,
            finding=Finding.EXTRA,
            series=notation(dict(sorted(extra.labels))),
            timestamp_ms=extra.timestamp_ms,
            expected=None,
            found=(repr(extra.value),),
        )
