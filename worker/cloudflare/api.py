"""Cloudflare's analytics API as the worker uses it: one object, outcomes as values.

Puts the parts of this package together; has no rules of its own. Safe to use from several tasks at once.
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import httpx

from worker.clock import Clock
from worker.cloudflare import discovery
from worker.cloudflare.catalogue import Dataset, FactSet
from worker.cloudflare.client import DEADLINE_SECONDS, Answer, CloudflareClient, OnRequest, Refused, unobserved
from worker.cloudflare.decode import Answers, Decoder
from worker.cloudflare.discovery import AccountList, TokenAccepted, TokenCheck, TokenRefused, TokenUnknown, ZoneList
from worker.cloudflare.entitlements import Denied, Narrowed, entitled
from worker.cloudflare.errors import ApiFailure, ErrorKind
from worker.cloudflare.facts import read_facts
from worker.cloudflare.fetch import Fetch, ScopeAnswer
from worker.cloudflare.limits import Limits
from worker.cloudflare.query import Source, WindowsQuery
from worker.cloudflare.quota import Priority, Quota, RateLimitType
from worker.cloudflare.rows import Samples
from worker.cloudflare.scope import Scope, Zone, counted_by
from worker.cloudflare.settings_node import read_entitlements

_UNKNOWN = ApiFailure(ErrorKind.MALFORMED, "the settings do not name the node")


class CloudflareApi:
    """The API at one address, with one token.

    api_url:          for example https://api.cloudflare.com/client/v4.
    token:            an API token of a user or of an account.
    on_request:       told of every exchange: which API, what it was for, "ok" or the kind of error, seconds.
    deadline_seconds: for one exchange, on the machine's own clock.
    quota:            for tests; otherwise Cloudflare's own limits.
    transport:        stands in for the network, in tests.
    """

    def __init__(
        self,
        *,
        api_url: str,
        token: str,
        clock: Clock,
        on_request: OnRequest = unobserved,
        deadline_seconds: float = DEADLINE_SECONDS,
        quota: Quota | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.quota = quota or Quota(clock)
        self.last_token_ok: bool | None = None
        """Whether Cloudflare accepted the token when it last judged it; None before it has."""
        self._clock = clock
        self._client = CloudflareClient(
            api_url=api_url,
            token=token,
            clock=clock,
            quota=self.quota,
            on_request=on_request,
            deadline_seconds=deadline_seconds,
            transport=transport,
        )
        self._limits = Limits(clock, are_accounts_apart=self.quota.rate_limit_type is RateLimitType.ACCOUNT)
        self._decoder = Decoder()
        # Decoding an answer of 36,000 samples must not stop the event loop meanwhile. One thread, because two would
        # neither be faster nor leave the decoder's cache alone.
        self._decoding = ThreadPoolExecutor(max_workers=1, thread_name_prefix="cloudflare-decode")

    @property
    def ahead_seconds(self) -> float | None:
        """How far this machine's clock is ahead of Cloudflare's, to about a second; None before the first answer."""
        return self._client.ahead_seconds

    async def verify_token(self) -> TokenCheck:
        """Ask Cloudflare about the token itself."""
        check = await discovery.verify_token(self._client)
        match check:
            case TokenAccepted():
                self.last_token_ok = True
            case TokenRefused():
                self.last_token_ok = False
            case TokenUnknown():
                pass
        return check

    async def list_zones(
        self, *, accounts: Sequence[str] = (), zones: Sequence[str] = (), exclude_zones: Sequence[str] = ()
    ) -> ZoneList | ApiFailure:
        """The active zones that the token can see and these settings (ids or names) allow."""
        return await discovery.list_zones(self._client, accounts=accounts, zones=zones, exclude_zones=exclude_zones)

    async def list_accounts(
        self, *, accounts: Sequence[str] = (), zones: Sequence[Zone] = ()
    ) -> AccountList | ApiFailure:
        """The accounts that the token can see and the setting (ids or names) allows, and those that own the zones."""
        return await discovery.list_accounts(self._client, accounts=accounts, zones=zones)

    async def discover(
        self,
        datasets: Sequence[Dataset],
        width_seconds: int,
        scopes: Sequence[Scope],
        *,
        priority: Priority = Priority.DISCOVERY,
    ) -> dict[tuple[str, str], Narrowed | Denied | ApiFailure]:
        """What the scopes, all of one kind, may be asked for, by the dataset's name and the scope's tag.

        Later fetches leave out what is not among it; an ApiFailure says that it is not known. Costs one query for ten
        zones (of one account, where Cloudflare counts each by itself), or one account, and 25 nodes.
        """
        sources = [Source(dataset, dataset.grain(width_seconds)) for dataset in datasets]
        nodes = list(dict.fromkeys(source.grain.node for source in sources))
        found = await read_entitlements(self._client, scopes, nodes, priority=priority) if scopes and nodes else {}
        verdicts: dict[tuple[str, str], Narrowed | Denied | ApiFailure] = {}
        for scope in scopes:
            for source in sources:
                pair = (source.dataset.name, scope.tag)
                entitlement = found[scope.tag].get(source.grain.node, _UNKNOWN)
                if isinstance(entitlement, ApiFailure):
                    verdicts[pair] = entitlement
                    continue
                verdict = verdicts[pair] = entitled(source.dataset, width_seconds, entitlement)
                self._limits.learn_entitlement(source, scope, entitlement, verdict)
        return verdicts

    async def read_facts(self, fact_set: FactSet, scope: Scope) -> Samples | ApiFailure:
        """What Cloudflare says of a scope, of the kind that the facts are of, at this moment.

        What it says of the token here is about one permission, and no judgement of the token.
        """
        return await read_facts(self._client, fact_set, scope)

    async def fetch(
        self,
        datasets: Sequence[Dataset],
        width_seconds: int,
        scopes: Sequence[Scope],
        starts: Sequence[int],
        *,
        priority: Priority = Priority.LIVE,
    ) -> list[ScopeAnswer]:
        """Final numbers of a run of windows of some datasets and scopes.

        datasets: different ones, all for the kind of scope that is asked; ValueError otherwise.
        starts:   unix seconds, aligned, ascending, without a gap; ValueError otherwise. The caller asks only for
                  windows that are final.
        priority: of its queries among all that wait for the quota.

        For every scope, and for every dataset of it, in the orders given: one Answered with the windows that were
        answered, if there are any, and a Failed for every run of windows that was not. Each window asked is in exactly
        one of them.

        Costs one query for five datasets, ten zones (or one account) and sixty windows, where those are not too many
        rows, and where Cloudflare refuses queries at most worker.cloudflare.fetch.RETRIES_PER_GROUP more for each such
        group. Waits while the quota is used up.
        """
        sources = [Source(dataset, dataset.grain(width_seconds)) for dataset in datasets]
        if not sources or not scopes or not starts:
            return []
        kinds = {dataset.scope for dataset in datasets} | {scope.kind for scope in scopes}
        if len(kinds) > 1 or len({dataset.name for dataset in datasets}) < len(datasets):
            message = f"different datasets for the same kind of scope are asked for together, not {datasets}"
            raise ValueError(message)
        run = range(starts[0], starts[-1] + width_seconds, width_seconds)
        if starts[0] % width_seconds or list(starts) != list(run):
            message = f"the starts of {width_seconds} s windows must be aligned, ascending and without a gap: {starts}"
            raise ValueError(message)

        async def send(query: WindowsQuery) -> Answer | Refused:
            return await self._send(query, priority)

        fetch = Fetch(send=send, decode=self._decoded, limits=self._limits, clock=self._clock)
        return await fetch.run(sources, scopes, run)

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.aclose()
        self._decoding.shutdown(wait=False)

    async def _send(self, query: WindowsQuery, priority: Priority) -> Answer | Refused:
        # Their account, too: it may be its quota that is used up.
        tags = dict.fromkeys(tag for scope in query.scopes for tag in (scope.tag, scope.account_tag) if tag)
        # A query for several accounts' zones is counted against none of them.
        account, *others = {counted_by(scope) for scope in query.scopes}
        outcome = await self._client.graphql(
            query.payload(), priority=priority, scopes=list(tags), account="" if others else account
        )
        match outcome:
            case Answer():
                self.last_token_ok = True
            case Refused(failures) if any(failure.kind is ErrorKind.TOKEN for failure in failures):
                self.last_token_ok = False
            case Refused():
                pass
        return outcome

    async def _decoded(self, body: bytes, query: WindowsQuery) -> Answers | ApiFailure:
        return await asyncio.get_running_loop().run_in_executor(self._decoding, self._decoder.decode, body, query)
