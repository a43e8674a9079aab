"""Listings of the REST API: all of their pages, or none of it.

50 objects a page, and only believed when as many objects arrived as the API says there are: a listing that ends early
must not look like objects that disappeared. Knows nothing of what is listed.
"""

from collections.abc import Mapping
from typing import Generic, Protocol, TypeVar, assert_never

import msgspec

from worker.cloudflare.client import Answer, CloudflareClient, Refused
from worker.cloudflare.errors import ApiFailure, ErrorKind, one_line
from worker.cloudflare.quota import Priority

# The most that Cloudflare gives at once, for accounts as for zones.
PER_PAGE = 50
# More zones than one worker can serve; also the end, after 2,000 pages, of a listing that never ends.
MOST_OBJECTS = 100_000


class _Identified(Protocol):
    id: str


class ResultInfo(msgspec.Struct):
    """What the API says of the whole listing."""

    total_count: int


T = TypeVar("T")
Listed = TypeVar("Listed", bound=_Identified)


class Page(msgspec.Struct, Generic[T]):
    """One page of a listing; where there is nothing, some of Cloudflare's services say null."""

    result: list[T] | None
    result_info: ResultInfo | None = None


async def all_pages(
    client: CloudflareClient,
    path: str,
    params: Mapping[str, str],
    kind: type[Page[Listed]],
    *,
    is_counted: bool = True,
    most_objects: int = MOST_OBJECTS,
) -> list[Listed] | ApiFailure:
    """Every object of a listing, once.

    is_counted:   whether Cloudflare must say how many there are. Where it need not, and does not, there is one page.
    most_objects: of more than these none is returned.
    """
    objects: dict[str, Listed] = {}
    for number in range(1, -(-most_objects // PER_PAGE) + 1):
        page = await _page(client, path, {**params, "page": str(number), "per_page": str(PER_PAGE)}, kind)
        if isinstance(page, ApiFailure):
            return page
        before = len(objects)
        objects.update((each.id, each) for each in page.result or ())
        is_whole = page.result_info is None and number == 1 and not is_counted
        total = page.result_info.total_count if page.result_info else len(objects) if is_whole else None
        if total is None:
            return ApiFailure(ErrorKind.MALFORMED, f"{path} does not say how many objects there are")
        if total > most_objects:
            break
        if len(objects) == total:
            return list(objects.values())
        if len(objects) == before or len(objects) > total:
            text = f"{path} changed while it was listed: {len(objects)} of {total} arrived"
            return ApiFailure(ErrorKind.MALFORMED, text)
    return ApiFailure(ErrorKind.TOO_LARGE, f"{path} has more than {most_objects:,} objects")


async def _page(
    client: CloudflareClient, path: str, params: Mapping[str, str], kind: type[Page[Listed]]
) -> Page[Listed] | ApiFailure:
    match await client.get(path, params, priority=Priority.DISCOVERY):
        case Refused(failures):
            return failures[0]
        case Answer(body):
            return decoded(body, kind)
        case never:
            assert_never(never)


def decoded(body: bytes, kind: type[T]) -> T | ApiFailure:
    """An answer's body as what it should be."""
    try:
        return msgspec.json.decode(body, type=kind)
    except (ValueError, RecursionError) as error:
        return ApiFailure(ErrorKind.MALFORMED, one_line(f"the API's answer cannot be read: {error}"))
