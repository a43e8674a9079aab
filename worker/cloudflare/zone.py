"""A zone, as the rest of the package names and labels it."""

from dataclasses import dataclass


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

    def labels(self) -> dict[str, str]:
        """The labels that every series of the zone carries; `account` is left out where it has no name."""
        labels = {"zone": self.name, "zone_id": self.tag}
        if self.account_name:
            labels["account"] = self.account_name
        return labels
