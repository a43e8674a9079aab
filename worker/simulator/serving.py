"""Opening a port for the simulated API, in the event loop that it is called from.

Uvicorn's protocol speaks HTTP on asyncio's own server. Uvicorn's server would take over the process (signals, logging)
and be slow to stop; here, stopping ends every connection at once, because whoever stops the simulator is done with it.
"""

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator, Callable

import uvicorn
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from worker.clock import Clock
from worker.simulator.api import BASE_PATH, SimulatedApi
from worker.simulator.fleet import Fleet
from worker.simulator.wire import CUT, End

# A client may keep its connection over long pauses.
_KEEP_ALIVE_SECONDS = 3_600
# SO_LINGER on, for 0 seconds: closing such a socket sends a reset.
_RESET = struct.pack("ii", 1, 0)


@contextlib.asynccontextmanager
async def serve(api: SimulatedApi, host: str = "127.0.0.1", port: int = 0) -> AsyncIterator[str]:
    """Serve until the block ends; gives the base URL, like http://127.0.0.1:40111/client/v4. Port 0 takes a free one.

    The admin endpoints are at /admin/faults and /admin/stats of the same origin. OSError where the port is taken.
    """
    state = ServerState()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        scope[CUT] = lambda end: _cut(state, scope["client"], end)
        # A request is only cancelled once its connection is gone, which uvicorn takes for an ordinary end.
        with contextlib.suppress(asyncio.CancelledError):
            await api(scope, receive, send)

    config = uvicorn.Config(
        app,
        lifespan="off",
        log_config=None,
        date_header=False,
        access_log=False,
        # A client's address must stay the one of its connection.
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
    )
    config.load()
    server = await asyncio.get_running_loop().create_server(
        lambda: H11Protocol(config=config, server_state=state, app_state={}), host, port
    )
    try:
        address, bound_port = server.sockets[0].getsockname()[:2]
        yield f"http://{address}:{bound_port}{BASE_PATH}"
    finally:
        server.close()
        await _end_all(state)
        await server.wait_closed()


async def simulate(
    fleet: Fleet, clock: Clock, announce: Callable[[str], object], *, host: str = "127.0.0.1", port: int = 0
) -> None:
    """Serve a fleet until cancelled; `announce` is called with the base URL once the port is open."""
    async with serve(SimulatedApi(fleet, clock), host, port) as url:
        announce(url)
        await asyncio.Event().wait()


async def _end_all(state: ServerState) -> None:
    """End requests in flight and connections, so that nothing outlives the port."""
    for connection in list(state.connections):
        connection.transport.abort()
    # The protocols hear of it in the next turn of the loop.
    await asyncio.sleep(0)
    tasks = list(state.tasks)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _cut(state: ServerState, client: tuple[str, int], end: End) -> None:
    """End the connection of a client, told by its address."""
    for connection in list(state.connections):
        if not isinstance(connection, H11Protocol) or connection.client != client:
            continue
        match end:
            case End.CLOSED:
                connection.transport.close()
            case End.RESET:
                accepted = connection.transport.get_extra_info("socket")
                accepted.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
                connection.transport.abort()
