"""Verbs about zones and accounts: which exist, and from which window on each is expected to have buckets."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from worker.ledger.session import Session

# Enough for a sentence of the API.
_MAX_DETAIL_CHARACTERS = 500


@dataclass(frozen=True, slots=True)
class Scope:
    """A zone or an account as the ledger knows it.

    tag:   Cloudflare's id.
    token: with which it is asked, by its name in the configuration.
    """

    tag: str
    name: str
    account_tag: str
    account_name: str
    plan: str
    token: str = "default"  # noqa: S105 - its name

    @property
    def is_account(self) -> bool:
        """Whether it is an account, which owns itself, and no zone."""
        return self.tag == self.account_tag


class Denial(msgspec.Struct, frozen=True, gc=False):
    """A dataset that a scope is not entitled to, since when (unix seconds), and why."""

    dataset: str
    tag: str
    name: str
    denied_at: int
    detail: str


class DeniedScope(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A scope that is denied something, since when (unix seconds); a large fleet has hundreds of thousands."""

    tag: str
    name: str
    denied_at: int


@dataclass(frozen=True, slots=True)
class AlikeDenials:
    """Scopes that are not entitled to a dataset for the same reason, by name."""

    dataset: str
    detail: str
    scopes: tuple[DeniedScope, ...]


def record_scopes(session: Session, scopes: Sequence[Scope], now: float) -> tuple[Scope, ...]:
    """Remember what complete listings showed; return the scopes that they do not show any more.

    A scope that disappears keeps its history. One that comes back is expected again.
    """
    session.many(
        "record_scope",
        [
            {
                "tag": scope.tag,
                "name": scope.name,
                "account_tag": scope.account_tag,
                "account_name": scope.account_name,
                "plan": scope.plan,
                "now": int(now),
            }
            for scope in scopes
        ],
    )
    session.many("record_scope_token", [{"tag": scope.tag, "token": scope.token} for scope in scopes])
    listed = {scope.tag for scope in scopes}
    gone = tuple(scope for scope in present_scopes(session) if scope.tag not in listed)
    session.many("scope_gone", [{"tag": scope.tag, "now": int(now)} for scope in gone])
    return gone


def present_scopes(session: Session) -> tuple[Scope, ...]:
    """The scopes of the last listing, by name."""
    return tuple(Scope(*row) for row in session.rows("present_scopes"))


def scopes_of_tokens(session: Session) -> dict[str, tuple[int, int]]:
    """How many zones and how many accounts of the last listing are asked with each token that has any."""
    return {str(token): (zones, accounts) for token, zones, accounts in session.rows("scopes_of_tokens")}


def record_denials(session: Session, denials: Mapping[tuple[str, str], str | None], now: float) -> None:
    """Keep what scopes are entitled to: per dataset's name and scope's tag why it is denied, or None where it is not.

    No window of what is denied is expected from `now` on, until it is not denied any more.
    """
    for (dataset, tag), detail in denials.items():
        key = {"dataset_id": dataset_number(session, dataset), "scope_id": scope_number(session, tag)}
        if detail is None:
            session.change("grant", **key)
        else:
            session.change("deny", **key, now=int(now), detail=detail[:_MAX_DETAIL_CHARACTERS])


def denials(session: Session) -> tuple[Denial, ...]:
    """What the scopes of the last listing are not entitled to, by dataset."""
    return tuple(Denial(*row) for row in session.rows("denied"))


def denials_alike(session: Session) -> tuple[AlikeDenials, ...]:
    """The same, by dataset and reason.

    All scopes of a reason are one text to SQLite: a row for each would take several times as long.
    """
    return tuple(
        AlikeDenials(dataset, detail, msgspec.json.decode(scopes, type=tuple[DeniedScope, ...]))
        for dataset, detail, scopes in session.rows("denied_alike")
    )


def denied_counts(session: Session) -> dict[str, int]:
    """Of how many scopes of the last listing each dataset is denied; those that none is denied are left out."""
    return dict(session.rows("denied_counts"))


def outstanding_windows(
    session: Session, *, dataset: str, width_seconds: int, tags: Sequence[str], starts: range
) -> dict[str, list[range]]:
    """Of the windows `starts`, those that each scope is expected to have and has not: runs without a gap, oldest first.

    A scope that is seen for the first time is expected to have all of `starts`. One whose windows had another width
    before is expected from the end of the last of those on, and no further in that width: two widths must never
    overlap, since their samples would be different values of one series at one timestamp. Windows that Cloudflare has
    no data for any more are left out.
    """
    dataset_id = dataset_number(session, dataset)
    outstanding: dict[str, list[range]] = {}
    for tag in tags:
        key = {"dataset_id": dataset_id, "scope_id": scope_number(session, tag), "width_seconds": width_seconds}
        other_width_until = session.number("end_of_other_widths", **key)
        not_before = -(-other_width_until // width_seconds) * width_seconds
        expected_from = session.number("expect", **key, from_start=starts.start, not_before=not_before)
        session.change("end_other_expectations", **key, until=expected_from)
        wanted = range(max(starts.start, expected_from), starts.stop, width_seconds)
        settled = sorted(start for (start,) in session.rows("settled_starts", **key, since=starts.start))
        outstanding[tag] = _runs_without(wanted, settled)
    return outstanding


def missing_windows(
    session: Session, *, dataset: str, widths_seconds: Sequence[int], tags: Sequence[str], starts: range
) -> dict[str, tuple[range, ...]]:
    """Of the windows `starts`, those without a bucket, expected or not: runs without a gap, oldest first.

    A window that overlaps a bucket of another width is left out: both would be values of one series for one time. So is
    a scope that lacks none.

    widths_seconds: all that the dataset has.
    """
    if not starts:
        return {}
    taken: dict[str, set[int]] = {tag: set() for tag in tags}
    for tag, start, width_seconds in session.rows(
        "captured_between",
        dataset_id=session.number_of("dataset_id", dataset),
        tags=json.dumps(list(tags)),
        widths=json.dumps(list(widths_seconds)),
        since=starts.start,
        until=starts.stop,
    ):
        first = start - start % starts.step
        taken[tag].update(range(first, start + width_seconds, starts.step))
    missing = ((tag, _runs_without(starts, sorted(settled))) for tag, settled in taken.items())
    return {tag: tuple(runs) for tag, runs in missing if runs}


def newest_timestamps(
    session: Session, *, dataset: str, widths_seconds: Sequence[int], tags: Sequence[str]
) -> dict[str, int | None]:
    """What the samples of each scope's newest bucket carry, unix milliseconds; None without one.

    widths_seconds: of the windows that are looked at.
    """
    dataset_id = session.number_of("dataset_id", dataset)
    widths = json.dumps(list(widths_seconds))
    newest: dict[str, int | None] = {}
    for tag in tags:
        found = session.rows(
            "newest_timestamp", dataset_id=dataset_id, scope_id=scope_number(session, tag), widths=widths
        )
        ((newest[tag],),) = found
    return newest


def _runs_without(wanted: range, settled: Sequence[int]) -> list[range]:
    """What is left of a run without these, which are ascending: a year of minutes stays one value."""
    runs: list[range] = []
    first = wanted.start
    for start in settled:
        if start in wanted:
            runs.append(range(first, start, wanted.step))
            first = start + wanted.step
    return [run for run in (*runs, range(first, wanted.stop, wanted.step)) if run]


def scope_number(session: Session, tag: str) -> int:
    """The number of a scope; LookupError for one that no listing ever showed."""
    number = session.number_of("scope_id", tag)
    if not number:
        message = f"no listing ever showed a zone or an account {tag}"
        raise LookupError(message)
    return number


def dataset_number(session: Session, name: str) -> int:
    """The number of a dataset; a name that was never seen gets one."""
    return session.number_of("dataset_id", name) or session.number("add_dataset", name=name)
