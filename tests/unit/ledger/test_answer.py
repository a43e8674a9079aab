import apsw
import pytest

from tests.unit.ledger.fleet import DATASET, NOW, T0, bucket, queue, tag, window
from worker.errors import LedgerError
from worker.ledger import (
    Hole,
    HoleReason,
    Ledger,
    hole_counts,
    logged_requests,
    record_answer,
    record_token_refusal,
    token_refusals,
)

REQUESTS = {"graphql": [NOW - 1.0, NOW]}

HOLE = Hole(DATASET, tag(2), window(0), HoleReason.FAILED, "503 from Cloudflare")


async def test_what_a_query_brought_is_written_together(ledger: Ledger) -> None:
    captured = await ledger.write(
        record_answer, "default", REQUESTS, buckets=[bucket(1, 0), bucket(3, 0)], holes=[HOLE], now=NOW
    )

    assert (captured.buckets, captured.by_dataset[DATASET].buckets) == (2, 2)
    assert await queue(ledger) == [(1, 0), (3, 0)]
    assert await ledger.read(hole_counts, since=T0) == {(DATASET, "failed"): 1}
    assert await ledger.read(logged_requests, "default") == {"graphql": [NOW - 1, NOW]}


async def test_a_bucket_proves_that_the_token_is_taken_and_a_failure_does_not(ledger: Ledger) -> None:
    for token in ("default", "shops"):
        await ledger.write(record_token_refusal, token, "Invalid API Token", NOW)

    await ledger.write(record_answer, "default", REQUESTS, buckets=[], holes=[HOLE], now=NOW)
    assert set(await ledger.read(token_refusals)) == {"default", "shops"}

    await ledger.write(record_answer, "default", REQUESTS, buckets=[bucket(1, 0)], holes=[], now=NOW)
    assert set(await ledger.read(token_refusals)) == {"shops"}


async def test_an_answer_without_any_bucket_leaves_its_reasons_and_counts(ledger: Ledger) -> None:
    captured = await ledger.write(record_answer, "default", REQUESTS, buckets=[], holes=[HOLE], now=NOW)

    assert (captured.buckets, captured.samples, captured.by_dataset) == (0, 0, {})
    assert await ledger.read(hole_counts, since=T0) == {(DATASET, "failed"): 1}
    assert await ledger.read(logged_requests, "default") == {"graphql": [NOW - 1, NOW]}


@pytest.mark.parametrize("statement", ["INSERT INTO request_log", "INSERT INTO bucket", "INSERT INTO hole"])
async def test_where_a_part_of_it_cannot_be_written_none_of_it_is(ledger: Ledger, statement: str) -> None:
    def refuse(_: apsw.Cursor, text: str, __: object) -> bool:
        if text.startswith(statement):
            raise apsw.FullError
        return True

    ledger._connection.exec_trace = refuse
    with pytest.raises(LedgerError):
        await ledger.write(record_answer, "default", REQUESTS, buckets=[bucket(1, 0)], holes=[HOLE], now=NOW)
    ledger._connection.exec_trace = None

    assert await queue(ledger) == []
    assert await ledger.read(hole_counts, since=T0) == {}
    assert await ledger.read(logged_requests, "default") == {}
