"""Decoding: from the body of an answer to the samples of every window that was asked for.

Lenient about what it does not use, strict about what it does: every scope's part of every dataset either becomes
samples for all windows asked, or a failure that says what is wrong with it. What rows become is in
`worker.cloudflare.rows`; here is how an answer is taken apart. Knows nothing of HTTP and of asking again.
"""

from collections.abc import Mapping
from typing import assert_never

import msgspec

from worker.cloudflare.catalogue import ScopeKind
from worker.cloudflare.errors import ApiFailure, ErrorKind, one_line
from worker.cloudflare.query import Source, WindowsQuery, alias
from worker.cloudflare.rows import MalformedRowsError, Samples, ScopeBlocks, windows_of
from worker.cloudflare.scope import Scope
from worker.cloudflare.shape import Shape, shape_of

# About 250 bytes each with its place in a dict: 100,000 blocks are 25 MB and hold a thousand zones of a hundred series.
MAX_CACHED_BLOCKS = 100_000

Decoded = Mapping[int, Samples] | ApiFailure
"""The samples of every window asked, by its start; or why there are none."""

Answers = Mapping[tuple[str, str], Decoded]
"""What an answer says, by the scope's tag and the dataset's name."""

_Entry = dict[str, msgspec.Raw]


class Decoder:
    """Decodes answers; keeps the label blocks of recent scopes, so that a series is not serialized for every window."""

    def __init__(self, max_cached_blocks: int = MAX_CACHED_BLOCKS) -> None:
        self._max_cached_blocks = max_cached_blocks
        self._blocks: dict[tuple[int, Scope], ScopeBlocks] = {}  # least recently used first
        self._cached = 0

    def decode(self, body: bytes, query: WindowsQuery) -> Answers | ApiFailure:
        """What the answer to `query` says about each of its scopes and datasets; or why it says nothing at all."""
        entries = _entries(body, query)
        if isinstance(entries, ApiFailure):
            return entries
        shapes = [shape_of(source.dataset, source.grain) for source in query.sources]
        answers: dict[tuple[str, str], Decoded] = {}
        for scope in query.scopes:
            entry = entries[scope.tag]
            for number, (source, shape) in enumerate(zip(query.sources, shapes, strict=True)):
                rows = entry if isinstance(entry, ApiFailure) else entry.get(alias(number), _NO_ROWS)
                decoded = rows if isinstance(rows, ApiFailure) else self._rows(rows, scope, source, shape, query.starts)
                answers[scope.tag, source.dataset.name] = decoded
        return answers

    def _rows(self, rows: msgspec.Raw, scope: Scope, source: Source, shape: Shape, starts: range) -> Decoded:
        try:
            decoded = shape.rows.decode(rows)
        except (ValueError, RecursionError) as error:
            return _malformed(f"a row is not as it should be: {error}")
        if len(decoded) >= source.limit(len(starts)):
            text = f"{len(decoded)} rows for {len(starts)} windows: rows may have been cut off"
            return ApiFailure(ErrorKind.TRUNCATED, text)
        blocks = self._take_blocks(shape, scope)
        try:
            return windows_of(decoded, shape, blocks, starts)
        except MalformedRowsError as error:
            return _malformed(str(error))
        finally:
            self._put_blocks(shape, scope, blocks)

    def _take_blocks(self, shape: Shape, scope: Scope) -> ScopeBlocks:
        known = self._blocks.pop((shape.number, scope), None)
        if known is None:
            return ScopeBlocks(shape.dataset, scope)
        self._cached -= known.count
        return known

    def _put_blocks(self, shape: Shape, scope: Scope, blocks: ScopeBlocks) -> None:
        self._blocks[shape.number, scope] = blocks
        self._cached += blocks.count
        while self._cached > self._max_cached_blocks:
            least_recent = next(iter(self._blocks))
            self._cached -= self._blocks.pop(least_recent).count


def _entries(body: bytes, query: WindowsQuery) -> Mapping[str, _Entry | ApiFailure] | ApiFailure:
    """The part of every scope asked, by tag; or why no part can be told."""
    try:
        match query.kind:
            case ScopeKind.ZONE if query.account:
                accounts = _ZONES_OF_ACCOUNTS.decode(body).data.viewer.accounts
                entries = [zone for account in accounts for zone in account.zones]
            case ScopeKind.ZONE:
                entries = _ZONES.decode(body).data.viewer.zones
            case ScopeKind.ACCOUNT:
                entries = _ACCOUNTS.decode(body).data.viewer.accounts
            case never:
                assert_never(never)
    except (ValueError, RecursionError) as error:
        return _malformed(f"the answer cannot be read: {error}")
    found: dict[str, _Entry | ApiFailure] = {}
    absent = ApiFailure(
        ErrorKind.MISSING_ZONE,
        f"the answer leaves the {query.kind} out without an error: the token may lack permission to read its analytics",
    )
    for raw in entries:
        try:
            entry = _ENTRY.decode(raw)
            tag = _TAG.decode(entry.get(f"{query.kind}Tag", b""))
        except (ValueError, RecursionError) as error:
            absent = _malformed(f"the answer has an entry that belongs to no {query.kind}: {error}")
            continue
        found[tag] = _malformed(f"the answer has the {query.kind} twice") if tag in found else entry
    return {scope.tag: found.get(scope.tag, absent) for scope in query.scopes}


class _ZonesViewer(msgspec.Struct):
    zones: list[msgspec.Raw]


class _AccountsViewer(msgspec.Struct):
    accounts: list[msgspec.Raw]


class _ZonesOfAccountsViewer(msgspec.Struct):
    accounts: list[_ZonesViewer]


class _ZonesData(msgspec.Struct):
    viewer: _ZonesViewer


class _AccountsData(msgspec.Struct):
    viewer: _AccountsViewer


class _ZonesOfAccountsData(msgspec.Struct):
    viewer: _ZonesOfAccountsViewer


class _ZonesAnswer(msgspec.Struct):
    data: _ZonesData


class _AccountsAnswer(msgspec.Struct):
    data: _AccountsData


class _ZonesOfAccountsAnswer(msgspec.Struct):
    data: _ZonesOfAccountsData


_ZONES = msgspec.json.Decoder(_ZonesAnswer)
_ACCOUNTS = msgspec.json.Decoder(_AccountsAnswer)
_ZONES_OF_ACCOUNTS = msgspec.json.Decoder(_ZonesOfAccountsAnswer)
_ENTRY = msgspec.json.Decoder(_Entry)
_TAG = msgspec.json.Decoder(str)


def _malformed(text: str) -> ApiFailure:
    return ApiFailure(ErrorKind.MALFORMED, one_line(text))


_NO_ROWS = _malformed("the answer has no rows for the dataset, not even none")
