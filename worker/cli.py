"""The command line."""

import click


@click.group()
def main() -> None:
    """Push finalized Cloudflare analytics to Prometheus."""
