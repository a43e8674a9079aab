import pytest

from worker.cloudflare.catalogue import Catalogue, dataset_groups, load, select_datasets
from worker.errors import Mistake


def dataset(name: str, groups: str, time_filter: str) -> str:
    return f"""
{name}:
  help: It.
  scope: zone
  groups: [{groups}]
  node: aNode
  times: []
  time_filter: {time_filter}
  metrics: {{{name}_n: {{field: count, unit: requests, help: It.}}}}
"""


CATALOGUE = load(
    dataset("first", "web", "datetime") + dataset("second", "web, dns", "datetime") + dataset("days", "dns", "date"),
    "f",
)


def chosen(*names: str, width_seconds: int = 3600) -> list[str] | str:
    assert not isinstance(CATALOGUE, tuple)
    found = select_datasets(CATALOGUE, names, width_seconds)
    return str(found) if isinstance(found, Mistake) else [each.name for each in found]


def test_names_and_groups_mean_datasets_each_once_in_the_order_given() -> None:
    assert chosen("first") == ["first"]
    assert chosen("second", "web") == ["second", "first"]
    assert chosen("all", width_seconds=86400) == ["first", "second", "days"]


def test_what_has_no_such_windows_is_left_out_of_a_group_and_refused_by_name() -> None:
    assert chosen("dns") == ["second"]
    assert chosen("web", "days") == (
        "CF_DATASETS (given: days): has no windows of 3600 s (CF_BUCKET_SECONDS), only of 86400"
    )


def test_an_unknown_name_comes_with_the_nearest_one() -> None:
    assert chosen("frist", "wbe", "nothing") == (
        "CF_DATASETS (given: frist, wbe, nothing): unknown: frist (did you mean first?), wbe (did you mean web?), "
        "nothing; groups are dns, web, all; `cfrw datasets` lists all datasets"
    )


@pytest.mark.parametrize("catalogue", [{}, CATALOGUE])
def test_all_is_always_a_group(catalogue: Catalogue) -> None:
    assert dataset_groups(catalogue)[-1] == "all"
    only_days = {"days": catalogue["days"]} if catalogue else {}
    assert isinstance(select_datasets(only_days, ["all"], 60), Mistake)
