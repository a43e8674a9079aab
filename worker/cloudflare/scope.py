"""What analytics are asked for: a zone or an account, as the rest of the package names and labels it."""

from dataclasses import dataclass

from worker.cloudflare.catalogue import ScopeKind


@dataclass(frozen=True, slots=True)
class Zone:
    """One zone of an account.

    tag:          Cloudflare's id of the zone; stays the same when the zone is renamed.
    name:         its domain name.
    account_tag:  id of the account that owns it; empty where the API does not say.
    account_name: name of that account; empty where it has none or the API does not say.
    plan:         Cloudflare's short name of its plan ("free", "pro", ...), for people only: what a zone is entitled
                  to is learnt from the API's answers, never from this.
    """

    tag: str
    name: str
    account_tag: str = ""
    account_name: str = ""
    plan: str = ""

    @property
    def kind(self) -> ScopeKind:
        """Which datasets are asked for it."""
        return ScopeKind.ZONE

    def labels(self) -> dict[str, str]:
        """The labels that every series of the zone carries; `account` is left out where it has no name."""
        labels = {"zone": self.name, "zone_id": self.tag}
        if self.account_name:
            labels["account"] = self.account_name
        return labels


@dataclass(frozen=True, slots=True)
class Account:
    """One account.

    tag:  Cloudflare's id of the account; stays the same when the account is renamed.
    name: what its owners call it; empty where the API does not say.
    """

    tag: str
    name: str = ""

    @property
    def account_tag(self) -> str:
        """Its own id: an account belongs to itself."""
        return self.tag

    @property
    def kind(self) -> ScopeKind:
        """Which datasets are asked for it."""
        return ScopeKind.ACCOUNT

    def labels(self) -> dict[str, str]:
        """The labels that every series of the account carries; `account` is left out where it has no name."""
        labels = {"account_id": self.tag}
        if self.name:
            labels["account"] = self.name
        return labels


Scope = Zone | Account


def counted_by(scope: Scope) -> str:
    """The tag that Cloudflare counts queries about it by, where it counts those of each account by themselves.

    That of its account, or where that is not known the zone's own. Only zones of which it is the same share a query
    then.
    """
    return scope.account_tag or scope.tag
