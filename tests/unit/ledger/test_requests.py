from worker.ledger import Ledger, log_requests, logged_requests


async def test_nothing_was_sent_before_the_first_request(ledger: Ledger) -> None:
    assert await ledger.read(logged_requests, "default") == {}


async def test_the_requests_of_each_token_and_api_are_kept_in_whole_seconds_and_replaced(ledger: Ledger) -> None:
    await ledger.write(log_requests, "a", {"graphql": [1000.4, 1001.6], "rest": [999.0]})
    await ledger.write(log_requests, "b", {"graphql": [1030.0]})
    await ledger.write(log_requests, "a", {"graphql": [1060.0]})

    assert await ledger.read(logged_requests, "a") == {"graphql": [1060], "rest": [999]}
    assert await ledger.read(logged_requests, "b") == {"graphql": [1030]}
