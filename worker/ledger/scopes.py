"""Verbs about zones and accounts: which exist, and from which window on each is expected to have buckets."""

from collections.abc import Sequence
from dataclasses import dataclass

from worker.ledger.session import Session


@dataclass(frozen=True, slots=True)
class Scope:
    """A zone or an account as the ledger knows it. Its tag is Cloudflare's id."""

    tag: str
    name: str
    account_tag: str
    account_name: str
    plan: str


def record_scopes(session: Session, scopes: Sequence[Scope], now: float) -> tuple[Scope, ...]:
    """Remember what a complete listing showed; return the scopes that it does not show any more.

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
    listed = {scope.tag for scope in scopes}
    gone = tuple(scope for scope in present_scopes(session) if scope.tag not in listed)
    session.many("scope_gone", [{"tag": scope.tag, "now": int(now)} for scope in gone])
    return gone


def present_scopes(session: Session) -> tuple[Scope, ...]:
    """The scopes of the last listing, by name."""
    return tuple(Scope(*row) for row in session.rows("present_scopes"))


def outstanding_windows(
    session: Session, *, dataset: str, width_seconds: int, tags: Sequence[str], starts: range
) -> dict[str, list[int]]:
    """Of the windows `starts`, those that each scope is expected to have and has not, oldest first.

    A scope that is seen for the first time is expected to have all of `starts`. One whose windows had another width
    before is expected from the end of the last of those on, and no further in that width: two widths must never
    overlap, since their samples would be different values of one series at one timestamp. Windows that Cloudflare has
    no data for any more are left out.
    """
    dataset_id = dataset_number(session, dataset)
    outstanding: dict[str, list[int]] = {}
    for tag in tags:
        key = {"dataset_id": dataset_id, "scope_id": scope_number(session, tag), "width_seconds": width_seconds}
        other_width_until = session.number("end_of_other_widths", **key)
        not_before = -(-other_width_until // width_seconds) * width_seconds
        expected_from = session.number("expect", **key, from_start=starts.start, not_before=not_before)
        session.change("end_other_expectations", **key, until=expected_from)
        wanted = range(max(starts.start, expected_from), starts.stop, width_seconds)
        settled = {start for (start,) in session.rows("settled_starts", **key, since=starts.start)}
        outstanding[tag] = [start for start in wanted if start not in settled]
    return outstanding


def scope_number(session: Session, tag: str) -> int:
    """The number of a scope; LookupError for one that no listing ever showed."""
    number = session.number("scope_id", tag=tag)
    if not number:
        message = f"no listing ever showed a zone or an account {tag}"
        raise LookupError(message)
    return number


def dataset_number(session: Session, name: str) -> int:
    """The number of a dataset; a name that was never seen gets one."""
    return session.number("dataset_id", name=name) or session.number("add_dataset", name=name)
