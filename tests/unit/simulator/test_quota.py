from tests.unit.simulator.worlds import NOW
from worker.simulator.quota import Exceeded, Quota, QuotaLimits


def test_three_hundred_queries_in_five_minutes_are_allowed_and_the_next_closes_for_five_minutes() -> None:
    quota = Quota(QuotaLimits())
    assert {quota.charge("token", NOW + second, is_graphql=True) for second in range(299)} == {None}
    assert quota.budget_left("token", NOW + 299) == 1
    assert quota.charge("token", NOW + 299, is_graphql=True) is None
    assert quota.charge("token", NOW + 299, is_graphql=True) is Exceeded.GRAPHQL
    assert quota.seconds_until_open("token", NOW + 299.5, Exceeded.GRAPHQL) == 300
    # Some have left the window by now, but the quota is closed.
    assert quota.charge("token", NOW + 598, is_graphql=True) is Exceeded.GRAPHQL
    assert quota.charge("token", NOW + 599, is_graphql=True) is None


def test_one_query_a_second_is_never_refused() -> None:
    quota = Quota(QuotaLimits())
    assert {quota.charge("token", NOW + second, is_graphql=True) for second in range(2_000)} == {None}


def test_all_requests_together_have_a_quota_of_their_own() -> None:
    quota = Quota(QuotaLimits())
    assert {quota.charge("token", NOW, is_graphql=False) for _ in range(1_200)} == {None}
    assert quota.charge("token", NOW, is_graphql=False) is Exceeded.ALL
    assert quota.charge("token", NOW, is_graphql=True) is Exceeded.ALL
    assert quota.charge("token", NOW + 300, is_graphql=True) is None


def test_queries_that_are_refused_leave_the_rest_of_the_api_open() -> None:
    quota = Quota(QuotaLimits(graphql_requests=1))
    quota.charge("token", NOW, is_graphql=True)
    assert quota.charge("token", NOW, is_graphql=True) is Exceeded.GRAPHQL
    assert quota.charge("token", NOW, is_graphql=False) is None


def test_every_token_has_its_own() -> None:
    quota = Quota(QuotaLimits(graphql_requests=1))
    assert quota.charge("one", NOW, is_graphql=True) is None
    assert quota.charge("other", NOW, is_graphql=True) is None
