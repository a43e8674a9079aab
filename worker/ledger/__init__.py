"""The ledger: what was captured, what became of it at each destination, and what was asked for to repair it.

The only part of the worker that sees SQLite. `Ledger` runs the verbs exported here, each in one transaction:

    await ledger.write(capture, buckets, now)
    await ledger.read(backlogs)

Promises: what `write` returned from is on disk and survives a kill and a power cut; a captured bucket never changes; a
bucket leaves `pending` only by a recorded decision; a row whose content is damaged is noticed and never sent.
"""

from worker.ledger.capture import Captured, Hole, HoleReason, capture, record_holes
from worker.ledger.delivery import (
    ONE_LANE,
    WHOLE_QUEUE,
    Lane,
    Pending,
    Position,
    Refusal,
    Stretch,
    acknowledge,
    expire,
    expire_too_old,
    next_pending,
    note_failure,
    refuse,
    register_destinations,
    set_aside,
    still_pending,
)
from worker.ledger.ledger import Ledger
from worker.ledger.repairs import (
    Job,
    Resend,
    ResendCount,
    ask_for_resend,
    carry_out_next,
    job,
    jobs,
    plan_resend,
    resent,
)
from worker.ledger.report import (
    Backlog,
    DeliveryCount,
    DestinationReport,
    RefusedSample,
    RefusedSamples,
    ScopeReport,
    Undelivered,
    backlogs,
    delivery_counts,
    destination_reports,
    drifted_buckets,
    hole_counts,
    newest_captured,
    refusals,
    refused_samples,
    scope_reports,
    undelivered,
)
from worker.ledger.requests import log_requests, logged_requests
from worker.ledger.retention import Room, prove_writable, prune, room
from worker.ledger.scopes import Scope, outstanding_windows, present_scopes, record_scopes

__all__ = [
    "ONE_LANE",
    "WHOLE_QUEUE",
    "Backlog",
    "Captured",
    "DeliveryCount",
    "DestinationReport",
    "Hole",
    "HoleReason",
    "Job",
    "Lane",
    "Ledger",
    "Pending",
    "Position",
    "Refusal",
    "RefusedSample",
    "RefusedSamples",
    "Resend",
    "ResendCount",
    "Room",
    "Scope",
    "ScopeReport",
    "Stretch",
    "Undelivered",
    "acknowledge",
    "ask_for_resend",
    "backlogs",
    "capture",
    "carry_out_next",
    "delivery_counts",
    "destination_reports",
    "drifted_buckets",
    "expire",
    "expire_too_old",
    "hole_counts",
    "job",
    "jobs",
    "log_requests",
    "logged_requests",
    "newest_captured",
    "next_pending",
    "note_failure",
    "outstanding_windows",
    "plan_resend",
    "present_scopes",
    "prove_writable",
    "prune",
    "record_holes",
    "record_scopes",
    "refusals",
    "refuse",
    "refused_samples",
    "register_destinations",
    "resent",
    "room",
    "scope_reports",
    "set_aside",
    "still_pending",
    "undelivered",
]
