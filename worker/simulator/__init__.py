"""A Cloudflare API that is made up from a seed: REST, GraphQL Analytics, its limits, its delays and its faults.

For the demo, the tests and the benchmarks, and for anybody who wants to try the worker without a Cloudflare account:

    api = SimulatedApi(Fleet(seed=1, zones=5), SystemClock())
    async with serve(api) as url:                 # http://127.0.0.1:PORT/client/v4
        ...
    api.fleet.bucket(tag, start, 3600)            # what a worker must have seen of the zones' HTTP rollups, and
    api.events.truth(tag, dataset, start, 3600)   # of any dataset of the catalogue, without asking the API

In the order of reading: `traffic` invents one minute of a zone, `fleet` adds minutes up to the truth of any window;
`nodes` tells from a catalogue which other nodes there are and `scalars` and `pools` what their fields hold, `events`
invents what happens there; `settling` says how much of it can be seen when; `schema`, `filters`, `rollups`, `groups`
and `execution` answer GraphQL; `entitlements`, `quota` and `refusals` say no; `faults` breaks things on demand,
`oddities` in rows and `wire` on the way; `directory` answers REST; `api` puts it together, `stats` counts, `serving`
opens a port. The worker itself imports nothing of it.
"""

from importlib.util import find_spec

from worker.errors import UsageError

if find_spec("graphql") is None:
    message = (
        "The simulated Cloudflare API needs graphql-core, which is not installed.\n"
        "Install it with: pip install 'cloudflare-remote-write[simulator]'"
    )
    raise UsageError(message)
