"""How large the requests to a destination may be: what is set, or less where it refuses more.

A receiver, or a proxy before it, may take less than the worker is set to send, and says so with 413 or 400. Neither
tells how much it takes. So the largest size that was taken is kept to, and doubled after a while to see whether it was
a mistake: after four requests at first, then after eight, sixteen, and so on.
"""

# At first a mistake is put right after as many requests; each further refusal doubles them.
_PATIENCE = 4


class RequestSize:
    """The largest request of one destination, in bytes before compression."""

    def __init__(self, most_bytes: int) -> None:
        """`most_bytes` is what is set: never more."""
        self.max_bytes = most_bytes
        """Most bytes of the next request."""
        self._most_bytes = most_bytes
        self._patience = _PATIENCE
        self._taken = 0

    def taken(self) -> None:
        """The receiver has accepted a request that was cut to size."""
        if self.max_bytes == self._most_bytes:
            return
        self._taken += 1
        if self._taken >= self._patience:
            self.max_bytes = min(self._most_bytes, 2 * self.max_bytes)
            self._taken = 0

    def refused(self, largest_taken_bytes: int) -> None:
        """A request was refused for its size alone; of its parts the largest that was taken had so many bytes."""
        if 0 < largest_taken_bytes < self.max_bytes:
            self.max_bytes = largest_taken_bytes
            self._patience *= 2
            self._taken = 0
