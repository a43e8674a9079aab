"""Whether windows are final when they are read, by what the worker measured of them."""

from collections.abc import Iterator, Sequence

from worker.check.finding import Finding, State, first_of
from worker.check.memory import Memory
from worker.cloudflare import Dataset
from worker.config import CloudflareSettings
from worker.lateness import recommended_delay

SECTION = "delay"


def look_at_delays(
    settings: CloudflareSettings, datasets: Sequence[Dataset], memory: Memory | None
) -> Iterator[Finding]:
    """A finding for each thing that there is to say, of one dataset or of several alike."""
    alike: dict[tuple[State, str, str], list[str]] = {}
    for dataset in datasets:
        alike.setdefault(_verdict(settings, dataset, memory), []).append(dataset.name)
    for (state, what, to_do), names in alike.items():
        yield Finding(state, SECTION, f"{first_of(names)}: {what}", to_do)


def _verdict(settings: CloudflareSettings, dataset: Dataset, memory: Memory | None) -> tuple[State, str, str]:
    delay_seconds = dataset.final_after_seconds(settings.delay_seconds)
    readings = memory.readings.get(dataset.name, ()) if memory else ()
    if not readings:
        to_do = "" if settings.drift_sample_percent else "set CF_DRIFT_SAMPLE_PERCENT to have it measured"
        what = f"not measured yet, whether windows are final {delay_seconds} s after their end"
        return State.SKIPPED, what, to_do
    advice = recommended_delay(readings, delay_seconds=delay_seconds, is_sampled=dataset.is_sampled)
    if advice.delay_seconds is None:
        return State.SKIPPED, f"nothing is known of the delay of {delay_seconds} s: {advice.reason}", ""
    if advice.delay_seconds > delay_seconds:
        to_do = f"set CF_DELAY_SECONDS={advice.delay_seconds}"
        return State.WARNING, f"the delay of {delay_seconds} s is too short: {advice.reason}", to_do
    return State.OK, f"of the delay of {delay_seconds} s: {advice.reason}", ""
