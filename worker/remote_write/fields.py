"""Length-delimited fields of protobuf: a tag, the length of the content, the content."""

from worker.series import varint


class Prefixes(dict[int, bytes]):
    """What stands before the content of a field, by the content's length; many are equally long."""

    def __init__(self, tag: bytes) -> None:
        super().__init__()
        self._tag = tag

    def __missing__(self, length: int) -> bytes:
        prefix = self[length] = self._tag + varint(length)
        return prefix


def field(tag: bytes, content: bytes) -> bytes:
    """The whole field; nothing where there is no content, as protobuf itself writes an empty string."""
    return tag + varint(len(content)) + content if content else b""
