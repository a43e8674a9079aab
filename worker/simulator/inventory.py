"""What zones and accounts have set up besides traffic: certificates, load balancers with their pools, tunnels.

Owns the invention of them, in the form that REST gives them: pure functions of whose they are and of the time, so that
a test asks them what a worker must have read. Certificates are renewed, and pools and tunnels are ill now and then.
"""

import hashlib
from datetime import UTC, datetime
from typing import Any

from worker.simulator.fleet import Account, Plan, Zone

Item = dict[str, Any]

_HOUR_SECONDS = 3_600
_DAY_SECONDS = 86_400
# Certificates are valid for 90 days and replaced 30 days before they expire, each at a time of its own.
_VALIDITY_SECONDS = 90 * _DAY_SECONDS
_RENEWAL_SECONDS = 30 * _DAY_SECONDS
_LIFETIME_SECONDS = _VALIDITY_SECONDS - _RENEWAL_SECONDS
_POOLS = 3
_TUNNELS = 3
# One hour of sixteen.
_ILLNESS = 16


def certificate_packs(zone: Zone, now: float) -> list[Item]:
    """The zone's certificates: the universal one, and an advanced one where the plan is not free."""
    packs = [_pack(zone, "universal", "google", now)]
    if zone.plan is not Plan.FREE:
        packs.append(_pack(zone, "advanced", "lets_encrypt", now))
    return packs


def load_balancers(zone: Zone) -> list[Item]:
    """The zone's load balancers: one over all pools of its account, none where the plan is free."""
    if zone.plan is Plan.FREE:
        return []
    pools = _ids(zone.account.tag, "pool", _POOLS)
    return [
        {
            "id": _id(zone.tag, "load balancer"),
            "name": f"www.{zone.name}",
            "enabled": True,
            "proxied": True,
            "ttl": 30,
            "steering_policy": "random",
            "default_pools": pools[:-1],
            "fallback_pool": pools[-1],
            "session_affinity": "none",
        }
    ]


def pools(account: Account, now: float) -> list[Item]:
    """The account's pools with their origins; one is without origins that work in some hours."""
    return [
        {
            "id": pool,
            "name": f"pool-{place + 1}",
            "enabled": True,
            "healthy": not _is_ill(pool, now),
            "minimum_origins": 1,
            "monitor": _id(pool, "monitor"),
            "origins": [
                {
                    "name": f"origin-{place + 1}-{origin + 1}",
                    "address": f"origin{place + 1}{origin + 1}.example",
                    "enabled": True,
                    "healthy": not _is_ill(pool, now),
                    "weight": (origin + 1) / 4,
                }
                for origin in range(2)
            ],
        }
        for place, pool in enumerate(_ids(account.tag, "pool", _POOLS))
    ]


def tunnels(account: Account, now: float) -> list[Item]:
    """The account's tunnels."""
    return [
        {
            "id": tunnel,
            "account_tag": account.tag,
            "name": f"tunnel-{place + 1}",
            "status": _tunnel_status(tunnel, place, now),
            "tun_type": "cfd_tunnel",
            "remote_config": True,
            "created_at": "2025-01-01T00:00:00Z",
            "deleted_at": None,
            "connections": [],
        }
        for place, tunnel in enumerate(_ids(account.tag, "tunnel", _TUNNELS))
    ]


def _pack(zone: Zone, kind: str, authority: str, now: float) -> Item:
    pack = _id(zone.tag, kind)
    phase = int(pack[:8], 16) % _LIFETIME_SECONDS
    issued = int(now) - (int(now) - phase) % _LIFETIME_SECONDS
    hosts = [zone.name, f"*.{zone.name}"]
    certificate = {
        "id": _id(pack, str(issued)),
        "hosts": hosts,
        "issuer": authority,
        "signature": "ECDSAWithSHA256",
        "status": "active",
        "bundle_method": "ubiquitous",
        "uploaded_on": _text(issued),
        "expires_on": _text(issued + _VALIDITY_SECONDS),
    }
    return {
        "id": pack,
        "type": kind,
        "hosts": hosts,
        "status": "active",
        "certificate_authority": authority,
        "validation_method": "txt",
        "validity_days": _VALIDITY_SECONDS // _DAY_SECONDS,
        "primary_certificate": certificate["id"],
        "certificates": [certificate],
    }


def _tunnel_status(tunnel: str, place: int, now: float) -> str:
    # The last one was set up and never started.
    if place == _TUNNELS - 1:
        return "inactive"
    return "degraded" if _is_ill(tunnel, now) else "healthy"


def _is_ill(what: str, now: float) -> bool:
    return int(_id(what, str(now // _HOUR_SECONDS))[:8], 16) % _ILLNESS == 0


def _ids(owner: str, kind: str, count: int) -> list[str]:
    return [_id(owner, f"{kind}/{place}") for place in range(count)]


def _id(owner: str, kind: str) -> str:
    return hashlib.blake2b(f"{owner}/{kind}".encode(), digest_size=16).hexdigest()


def _text(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
