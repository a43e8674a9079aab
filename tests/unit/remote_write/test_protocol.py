import pytest

from tests.clocks import ManualClock
from worker.config import Message
from worker.remote_write.protocol import Protocol

DAY_SECONDS = 86_400.0


def automatic(clock: ManualClock) -> Protocol:
    return Protocol(None, retry_seconds=DAY_SECONDS, clock=clock)


def spoken(protocol: Protocol) -> Message:
    """For the type checker, which takes an attribute to stay what it was seen to be."""
    return protocol.message


def test_the_newer_version_is_tried_first_and_is_not_known_until_it_was_understood() -> None:
    protocol = automatic(ManualClock())
    assert spoken(protocol) is Message.V2
    assert protocol.is_automatic
    assert not protocol.knows_2
    protocol.understood(Message.V2)
    assert protocol.knows_2
    assert spoken(protocol) is Message.V2
    assert protocol.why_older is None


async def test_what_fell_back_speaks_the_older_version_for_a_day_and_says_why() -> None:
    clock = ManualClock()
    protocol = automatic(clock)
    protocol.fall_back("HTTP 415")
    assert spoken(protocol) is Message.V1
    assert not protocol.knows_2
    assert protocol.why_older == "HTTP 415"
    await clock.advance(DAY_SECONDS - 1)
    assert spoken(protocol) is Message.V1


async def test_after_a_day_the_newer_version_is_tried_again_as_at_first_contact() -> None:
    clock = ManualClock()
    protocol = automatic(clock)
    protocol.understood(Message.V2)
    protocol.fall_back("HTTP 415")
    await clock.advance(DAY_SECONDS)
    assert spoken(protocol) is Message.V2
    assert not protocol.knows_2
    protocol.understood(Message.V2)
    assert protocol.why_older is None
    assert spoken(protocol) is Message.V2


async def test_the_day_begins_anew_with_each_fall_back() -> None:
    clock = ManualClock()
    protocol = automatic(clock)
    protocol.fall_back("HTTP 415")
    await clock.advance(DAY_SECONDS / 2)
    for _ in range(3):
        protocol.fall_back("HTTP 415")
        await clock.advance(DAY_SECONDS - 1)
        assert spoken(protocol) is Message.V1
        await clock.advance(1)
        assert spoken(protocol) is Message.V2


def test_an_answer_to_the_older_version_says_nothing_about_the_newer_one() -> None:
    protocol = automatic(ManualClock())
    protocol.understood(Message.V1)
    assert not protocol.knows_2
    protocol.fall_back("HTTP 415")
    protocol.understood(Message.V1)
    protocol.understood(Message.V2)  # a request that was under way
    assert spoken(protocol) is Message.V1
    assert protocol.why_older == "HTTP 415"


@pytest.mark.parametrize("configured", list(Message))
def test_a_configured_version_is_taken_to_be_understood_and_stays(configured: Message) -> None:
    protocol = Protocol(configured, retry_seconds=DAY_SECONDS, clock=ManualClock())
    assert spoken(protocol) is configured
    assert protocol.knows_2 is (configured is Message.V2)
    assert not protocol.is_automatic
    protocol.understood(configured)
    assert spoken(protocol) is configured
    assert protocol.why_older is None
