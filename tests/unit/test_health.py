import pytest

from tests.clocks import ManualClock
from worker.health import MAX_QUOTE_CHARACTERS, Health, TokenState, quote

START = 1_767_668_400.0  # 2026-01-06T03:00:00Z


class SteppedClock(ManualClock):
    """A clock whose wall time somebody sets while it runs."""

    step = 0.0

    def now(self) -> float:
        return super().now() + self.step


@pytest.fixture
def clock() -> SteppedClock:
    return SteppedClock(START)


@pytest.fixture
def health(clock: SteppedClock) -> Health:
    """Of a worker with one loop that is all it should be."""
    health = Health(clock)
    health.expect("collect", allowance_seconds=300, liveness_seconds=60)
    health.ledger_writable()
    health.token_accepted()
    health.completed("collect")
    return health


def problems(health: Health) -> list[str]:
    verdict = health.readiness()
    assert verdict.ok == (not verdict.problems)
    return [str(problem) for problem in verdict.problems]


def test_a_worker_that_does_all_its_work_is_ready_and_alive(health: Health) -> None:
    assert problems(health) == []
    assert health.liveness().ok


async def test_a_worker_that_has_just_started_is_alive_but_not_ready(clock: SteppedClock) -> None:
    health = Health(clock)
    health.expect("collect", allowance_seconds=300, liveness_seconds=60)
    await clock.advance(10)

    assert health.liveness().ok
    assert problems(health) == [
        "ledger: not found writable yet (since 2026-01-06T03:00:00Z)",
        "token: Cloudflare has not accepted the API token yet (since 2026-01-06T03:00:00Z)",
        "collect: has not completed its first pass yet, 5m are allowed (since 2026-01-06T03:00:00Z)",
    ]


async def test_a_pass_that_is_overdue_makes_it_unready_from_the_end_of_the_allowance(
    health: Health, clock: SteppedClock
) -> None:
    await clock.advance(300)
    assert problems(health) == []

    await clock.advance(1)
    assert problems(health) == [
        "collect: completed its last pass at 2026-01-06T03:00:00Z, 5m are allowed (since 2026-01-06T03:05:00Z)"
    ]

    health.completed("collect")
    assert problems(health) == []


async def test_a_loop_that_waits_out_a_backoff_is_unready_but_alive(health: Health, clock: SteppedClock) -> None:
    for _ in range(10):
        await clock.advance(50)
        health.beat("collect")

    assert health.liveness().ok
    assert len(problems(health)) == 1


async def test_a_loop_that_hangs_makes_it_unhealthy_and_is_named(health: Health, clock: SteppedClock) -> None:
    health.expect("push prod", allowance_seconds=300, liveness_seconds=120)
    await clock.advance(60)
    assert health.liveness().ok

    await clock.advance(1)
    verdict = health.liveness()
    assert not verdict.ok
    (problem,) = verdict.problems
    assert str(problem) == (
        "collect: has not turned for 1m 1s, 1m are allowed: it hangs, and only a restart helps "
        "(since 2026-01-06T03:00:00Z)"
    )


async def test_a_loop_that_never_turns_is_taken_to_hang(health: Health, clock: SteppedClock) -> None:
    health.expect("push prod", allowance_seconds=300, liveness_seconds=20)
    await clock.advance(21)

    assert [problem.what for problem in health.liveness().problems] == ["push prod"]


async def test_an_outage_makes_it_neither_unready_nor_unhealthy(health: Health, clock: SteppedClock) -> None:
    for _ in range(100):
        await clock.advance(50)
        health.completed("collect")  # of a pass in which every request failed

    assert health.readiness().ok
    assert health.liveness().ok
    assert health.token is TokenState.ACCEPTED


async def test_a_refused_token_makes_it_unready_until_it_is_accepted_again(health: Health, clock: SteppedClock) -> None:
    await clock.advance(60)
    health.token_refused("403: Authentication\n error")
    await clock.advance(60)
    health.token_refused("403: Authentication error")

    assert health.token is TokenState.REFUSED
    (problem,) = problems(health)
    assert problem == (
        "token: Cloudflare refuses the API token; check CF_API_TOKEN and its permissions. "
        "It said: 403: Authentication error (since 2026-01-06T03:01:00Z)"
    )

    health.token_accepted()
    assert problems(health) == []


def test_of_several_tokens_one_that_is_accepted_is_enough_and_what_is_wrong_with_the_others_is_told(
    clock: SteppedClock,
) -> None:
    health = Health(clock, ["a", "b", "c"])
    health.ledger_writable()
    health.token_refused("Invalid API Token", "b")
    assert (health.readiness().ok, health.token) == (False, TokenState.REFUSED)

    health.token_accepted("a")
    verdict = health.readiness()

    assert (verdict.ok, health.token) == (True, TokenState.ACCEPTED)
    assert health.tokens == {"a": TokenState.ACCEPTED, "b": TokenState.REFUSED, "c": TokenState.UNKNOWN}
    refused, unknown = map(str, verdict.problems)
    assert refused.startswith("token b: Cloudflare refuses the API token; check its api_token under `cloudflare` and")
    assert unknown.startswith("token c: Cloudflare has not accepted the API token yet")

    health.ledger_unwritable("the volume is full")
    assert not health.readiness().ok


async def test_a_ledger_that_takes_no_writes_makes_it_unready_since_the_first_report(
    health: Health, clock: SteppedClock
) -> None:
    await clock.advance(60)
    health.ledger_unwritable("the volume is full")
    await clock.advance(60)
    health.ledger_unwritable("the volume is still full")

    assert problems(health) == ["ledger: the volume is still full (since 2026-01-06T03:01:00Z)"]

    health.ledger_writable()
    assert problems(health) == []


async def test_setting_the_machine_s_clock_changes_no_verdict(health: Health, clock: SteppedClock) -> None:
    for step in (-86_400.0, 86_400.0):
        clock.step = step
        assert problems(health) == []
        assert health.liveness().ok

    await clock.advance(301)
    assert [problem.since for problem in health.readiness().problems] == [START + 86_400 + 300]


def test_what_is_known_of_a_loop_can_be_read(health: Health) -> None:
    health.expect("push prod", allowance_seconds=30, liveness_seconds=20)

    collect, push = health.loops()["collect"], health.loops()["push prod"]

    assert (collect.allowance_seconds, collect.beat_at, collect.completed_at) == (300, START, START)
    assert (push.allowance_seconds, push.expected_at, push.beat_at, push.completed_at) == (30, START, None, None)


def test_a_loop_that_nobody_announced_is_a_mistake_of_the_program(health: Health) -> None:
    with pytest.raises(KeyError, match="colect"):
        health.beat("colect")


def test_a_quotation_is_one_bounded_line() -> None:
    assert quote("a\n  b\t c ") == "a b c"
    assert len(quote("x" * 10_000)) == MAX_QUOTE_CHARACTERS
    assert quote("x" * MAX_QUOTE_CHARACTERS) == "x" * MAX_QUOTE_CHARACTERS
