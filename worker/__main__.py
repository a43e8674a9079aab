"""The command `cfrw`; `python -m worker` is the same.

Owns only the first half second, in which the command line is imported: Ctrl-C ends it then, too, without a traceback.
"""

import sys


def main() -> None:
    """Run the command of this process's arguments; exit 130, as a shell has it for SIGINT, where Ctrl-C cuts it off."""
    try:
        from worker.cli import main as command  # noqa: PLC0415 - importing it is what takes the time

        command(prog_name="cfrw")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
