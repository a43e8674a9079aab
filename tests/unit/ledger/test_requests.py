from worker.ledger import (
    Ledger,
    TokenRefusal,
    forget_token_refusal,
    log_requests,
    logged_requests,
    record_token_refusal,
    token_refusals,
)


async def test_nothing_was_sent_before_the_first_request(ledger: Ledger) -> None:
    assert await ledger.read(logged_requests, "default") == {}


async def test_the_requests_of_each_token_and_api_are_kept_in_whole_seconds_and_replaced(ledger: Ledger) -> None:
    await ledger.write(log_requests, "a", {"graphql": [1000.4, 1001.6], "rest": [999.0]})
    await ledger.write(log_requests, "b", {"graphql": [1030.0]})
    await ledger.write(log_requests, "a", {"graphql": [1060.0]})

    assert await ledger.read(logged_requests, "a") == {"graphql": [1060], "rest": [999]}
    assert await ledger.read(logged_requests, "b") == {"graphql": [1030]}


async def test_a_token_is_refused_from_the_first_refusal_on_until_it_is_taken(ledger: Ledger) -> None:
    await ledger.write(record_token_refusal, "a", "Authentication error", 1000.5)
    await ledger.write(record_token_refusal, "b", "Invalid access token", 1010.0)
    await ledger.write(record_token_refusal, "a", "Token expired", 1060.0)
    assert await ledger.read(token_refusals) == {
        "a": TokenRefusal(1000, "Token expired"),
        "b": TokenRefusal(1010, "Invalid access token"),
    }

    await ledger.write(forget_token_refusal, "a")

    assert list(await ledger.read(token_refusals)) == ["b"]
