"""Which dimensions never become a label, whatever a file of the catalogue says.

A label is kept for as long as the receiver keeps its series, and everybody who may query it sees it. So nothing that
points at a person becomes one: addresses, accounts of users, devices, fingerprints, sessions, and free text in which
such things stand (paths, query strings, mail headers, prompts). Names of hosts are not among them.
"""

import re

# Whole names of dimensions, in any case. The addresses of origins and upstreams are the customer's own servers.
_PERSONAL = re.compile(
    r"""
    (?!(?:origin|upstream)ip$) .*(?:ip|ips|ipv4|ipv6|address|subnet) | .*geohash | .*ptr
    | .*email | .*user(?:id|uuid|name)? | creator(?:id)? | customidentifier | (?:envelope|header)(?:from|to)
    | .*device(?:id|ids|name|tag) | useragent | ja3hash | ja4 | mtls(?:commonname|certserialid)
    | .*session(?:id|idhash|identifier) | (?:request|connection)id | .*ray(?:id|name)
    | .*(?:path|url|uri|referer|referrer|query) | body | headers | prompts.* | metadata(?:raw|keys|values)
    """,
    re.IGNORECASE | re.VERBOSE,
)


def is_personal(dimension: str) -> bool:
    """Whether a dimension of this name holds personal data, or text that may hold some."""
    return _PERSONAL.fullmatch(dimension) is not None
