"""docs/datasets.md, made of the catalogue: `make datasets` writes it, and a test compares it."""

from collections.abc import Iterator
from pathlib import Path

from worker.cloudflare.catalogue import FACT_SETS, Dataset, FactSet, ScopeKind, shipped
from worker.cloudflare.catalogue.entry import ALL, WIDTHS_SECONDS
from worker.cloudflare.catalogue.facts import FACTS
from worker.times import span

PAGE = Path(__file__).parents[1] / "docs" / "datasets.md"

TITLES = {
    "http": "HTTP",
    "security": "Security",
    "dns": "DNS",
    "load_balancing": "Load balancing",
    "health_checks": "Health checks",
    "waiting_room": "Waiting rooms",
    "cache": "Cache Reserve",
    "workers": "Workers, Pages, Durable Objects, Containers",
    "storage": "KV, R2, D1, Hyperdrive, Vectorize, Queues, Pipelines",
    "queues": "Queues",
    "ai": "AI Gateway, Workers AI",
    "media": "Stream, Images, Realtime",
    "zero_trust": "Zero Trust",
    "network": "Networks",
    "logs": "Logs",
    "email": "E-mail",
    "web_analytics": "Web Analytics",
}
"""Groups with the headings of their sections, in the order of the page. Of a dataset's groups the first one counts."""

INTRODUCTION = """\
# Datasets

Everything that can be collected, and the metrics it becomes. `make datasets` writes this page from the catalogue
(`worker/cloudflare/catalogue/*.yaml`), so it says what the worker does; `cfrw datasets` tells the same of your set-up,
your own datasets included.

`CF_DATASETS` takes names of datasets and of groups, and a group stands for all of its datasets. More datasets are more
queries and more series: begin with what you look at. A dataset that a zone's plan does not have costs the others
nothing. Which permission of the token a dataset needs depends on what it is asked for: *Zone → Analytics → Read* for
zones, *Account → Account Analytics → Read* for accounts.

## Groups

"""

READING = """
## How to read it

- **Labels.** Series of zones have `zone`, `zone_id` and `account`, those of accounts `account` and `account_id`; *by*
  says what else they have. Cloudflare's empty value is `unknown`.
- **Kept.** In every window so many combinations of labels keep their values, those with the most of the first metric
  (of what `top` names in the catalogue). The rest is summed up in one whose labels all say `other`: sums over a bucket
  stay exact. A state cannot be summed, so all of its combinations are kept (`-`).
- **Sampled.** Cloudflare answers from a sample, scaled up. How coarse it was comes with it: the metrics
  `cloudflare_zone_sample_interval` and `cloudflare_account_sample_interval`, with the label `dataset`, are 1 where
  everything was counted and 10 where one in ten was.
- **Sums.** What may be summed may be summed over windows, labels and zones. A window without rows is a 0 where a
  dataset has no labels; elsewhere, and for states, it is no sample.
- **Means.** There are few, where Cloudflare gives nothing else. Everywhere else there is a sum and a number, and PromQL
  makes the mean of any time and any part:

```promql
# Mean time that the origin took, by cache status, in the last hour.
sum by (zone, cache_status) (sum_over_time(cloudflare_zone_cache_status_origin_response_seconds[1h]))
  / sum by (zone, cache_status) (sum_over_time(cloudflare_zone_cache_status_requests[1h]))
```

- **Widths.** All six where nothing else is said. Where Cloudflare has no time dimension of the width, a query asks for
  one window, which makes a catch-up slower.
- **Hosts** are in `http_hosts` alone, which only its name and `all` mean. What points at a person (addresses, users,
  devices, paths, queries) is never a label, also not in a dataset of your own.
"""

OF_FACTS = """\
What Cloudflare tells over REST, and of the present only. A fact is read once in a window of `CF_BUCKET_SECONDS`, or in
a longer one where the table says so, and carries the time of the read, whatever `CF_SAMPLE_TIMESTAMP` is. A window
without a read stays without one, and is [counted](operations.md#facts-are-missing). None of them may be summed over
windows.

A permission that lacks costs nothing else and is told once. Where it is the one for tunnels, Cloudflare answers with an
empty list and no error, which cannot be told from an account without tunnels.

A status of a tunnel is `healthy`, `degraded`, `down` or `inactive`, and `other` for whatever else Cloudflare may say.
Origins of one name in a pool share a series, with the sum of their weights. Addresses are never read.

```promql
# Certificates that expire within two weeks.
last_over_time(cloudflare_zone_certificate_expiry_timestamp_seconds[2h15m]) - time() < 14 * 86400
```
"""


def page() -> str:
    """The whole text."""
    return "\n".join([INTRODUCTION + "\n".join(_groups()), READING, *_sections()]) + "\n"


def _groups() -> Iterator[str]:
    members: dict[str, list[Dataset | FactSet]] = {}
    everything: list[Dataset | FactSet] = [*shipped().values(), *FACT_SETS.values()]
    for each in everything:
        for group in (*each.groups, ALL):
            members.setdefault(group, []).append(each)
    yield "| group | datasets | metrics |"
    yield "| --- | --- | --- |"
    for group in (*ScopeKind, *TITLES, FACTS, ALL):
        count = sum(len(_own_metrics(each)) for each in members[group])
        yield f"| `{group}` | {len(members[group])} | {count} |"


def _sections() -> Iterator[str]:
    sections: dict[str, list[Dataset]] = {group: [] for group in TITLES}
    alone: list[Dataset] = []
    for dataset in shipped().values():
        own = [group for group in dataset.groups if group in sections]
        (sections[own[0]] if own else alone).append(dataset)
    for group, datasets in sections.items():
        if datasets:
            yield from _section(f"{TITLES[group]}: `{group}`", datasets)
    yield from _section("In no other group", alone)
    yield from _facts()


def _section(title: str, datasets: list[Dataset]) -> Iterator[str]:
    yield f"## {title}\n"
    yield "| dataset | of | what | by | kept | sampled | Cloudflare's node |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    yield from map(_dataset_row, datasets)
    yield "\n| metric | dataset | unit | may be summed | meaning |"
    yield "| --- | --- | --- | --- | --- |"
    for dataset in datasets:
        for name, unit, additive, meaning in _own_metrics(dataset):
            yield f"| `{name}` | `{dataset.name}` | {unit} | {additive} | {meaning} |"
    yield ""


def _facts() -> Iterator[str]:
    yield f"## Facts: `{FACTS}`\n\n{OF_FACTS}"
    yield "| dataset | of | what | by | once in | permission of the token |"
    yield "| --- | --- | --- | --- | --- | --- |"
    for each in FACT_SETS.values():
        by = dict.fromkeys(label for _, labels in each.metrics() for label in labels)
        least = each.least_window_seconds
        often = "a window" if least == WIDTHS_SECONDS[0] else f"a window, and at least {span(least)}"
        permission = each.permission.replace(">", "→")
        labels = ", ".join(f"`{label}`" for label in by)
        yield f"| `{each.name}` | {each.scope} | {each.help} | {labels} | {often} | *{permission}* |"
    yield "\n| metric | dataset | labels | meaning |"
    yield "| --- | --- | --- | --- |"
    for each in FACT_SETS.values():
        for metric, names in each.metrics():
            yield f"| `{metric.name}` | `{each.name}` | {', '.join(f'`{name}`' for name in names)} | {metric.help} |"
    yield ""


def _dataset_row(dataset: Dataset) -> str:
    notes = []
    if dataset.widths_seconds != WIDTHS_SECONDS:
        notes.append(f"Windows of {' and '.join(map(span, dataset.widths_seconds))} only.")
    if dataset.delay_seconds is not None:
        notes.append(f"Final after {span(dataset.delay_seconds)}, or later where `CF_DELAY_SECONDS` says so.")
    by = [label.name for label in dataset.labels] + [f"{item.label}" for item in dataset.breakdowns]
    cells = (
        f"`{dataset.name}`",
        dataset.scope,
        " ".join((dataset.help, *notes)),
        (" or " if dataset.breakdowns else ", ").join(f"`{label}`" for label in by),
        "-" if dataset.top is None else str(dataset.top.keep),
        "yes" if dataset.is_sampled else "no",
        ", ".join(f"`{node}`" for node in dict.fromkeys(grain.node for grain in dataset.grains)),
    )
    return f"| {' | '.join(cells)} |"


def _own_metrics(dataset: Dataset | FactSet) -> list[tuple[str, str, str, str]]:
    """Name, unit, whether it may be summed, and meaning of each metric that no other dataset has."""
    if isinstance(dataset, FactSet):
        return [(each.name, each.unit, "no", each.help) for each, _ in dataset.metrics()]
    own = [total.metric for total in dataset.totals]
    own += [metric for item in dataset.breakdowns for _, metric in item.values]
    return [(each.name, each.unit, "yes" if each.additive else "no", each.help) for each in own]


if __name__ == "__main__":
    PAGE.write_text(page())
