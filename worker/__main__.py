"""`python -m worker` is the same as `cfrw`."""

from worker.cli import main

main(prog_name="cfrw")
