"""The command `cfrw`; `python -m worker` is the same.

Owns only the first half second, in which the command line is imported: Ctrl-C ends it then, too, without a traceback.
"""

import gc
import sys


def main() -> None:
    """Run the command of this process's arguments; exit 130, as a shell has it for SIGINT, where Ctrl-C cuts it off."""
    try:
        # Nothing of what is imported is ever garbage, and looking for some takes a seventh of the time.
        gc.disable()
        from worker.cli import main as command  # noqa: PLC0415 - importing it is what takes the time

        gc.freeze()
        gc.enable()
        command(prog_name="cfrw")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
