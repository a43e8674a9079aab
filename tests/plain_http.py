"""What clients of `http://` addresses need not wait for."""

import ssl

NO_AUTHORITIES = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
"""Trusts nobody. Without it, httpx reads certifi's authorities for every client that is made: 25 ms."""
