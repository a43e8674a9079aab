"""How large the requests to a destination may be: what is set, or less where it refuses more.

A receiver, or a proxy before it, may take less than the worker is set to send, and says so with 413 or 400. Neither
tells how much it takes. So the largest size that was taken is kept to, and doubled after a while to see whether it was
a mistake: after four requests at first, then after eight, sixteen, and so on.
"""

# At first a mistake is put right after as many requests; each further refusal doubles them, up to a thousand: of what
# goes to a receiver that does take less, one request in a thousand is too large.
_PATIENCE = 4
_MOST_PATIENCE = 1024


class RequestSize:
    """The largest request of one destination, in bytes before compression."""

    def __init__(self, most_bytes: int) -> None:
        """`most_bytes` is what is set: never more."""
        self.max_bytes = most_bytes
        """Most bytes of the next request."""
        self._most_bytes = most_bytes
        self._largest_taken = 0
        self._patience = _PATIENCE
        self._taken = 0

    def taken(self, size_bytes: int) -> None:
        """The receiver has accepted a request of this size."""
        self._largest_taken = max(self._largest_taken, size_bytes)
        if self.max_bytes == self._most_bytes:
            self._patience = _PATIENCE
            return
        self._taken += 1
        if self._taken >= self._patience:
            self.max_bytes = min(self._most_bytes, 2 * self.max_bytes)
            self._taken = 0

    def refused(self, size_bytes: int, largest_part_bytes: int, *, said_so: bool) -> bool:
        """A request of this size was refused, and parts of it up to the other were taken; whether that was news.

        It is not where as large a request has been taken before: then something else was the matter; except if the
        receiver said that it was the size.
        """
        if said_so:
            self._largest_taken = 0
        if size_bytes <= self._largest_taken or largest_part_bytes >= self.max_bytes:
            return False
        self.max_bytes = max(largest_part_bytes, self._largest_taken)
        self._patience = min(2 * self._patience, _MOST_PATIENCE)
        self._taken = 0
        return True
