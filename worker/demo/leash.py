"""Runs a program for as long as somebody holds the other end of its standard input.

    python leash.py GRACE_SECONDS PROGRAM [ARGUMENT...]

The end of standard input ends the program: by SIGTERM, and by SIGKILL where it is still there GRACE_SECONDS later. The
demo holds a pipe to it, which the operating system closes however the demo ends, kill -9 included, on Linux and macOS
alike. Exits with the program's own code. Imports nothing of the worker, so that it starts at once.
"""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence


def main(grace_seconds: float, command: Sequence[str]) -> int:
    """Run the command; return how it ended."""
    # Whoever ends the demo by a signal to everything of its kind must not cut the leash with it. Handlers, unlike
    # SIG_IGN, are not passed on to the program.
    for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)  # noqa: S603 - the demo's own command line
    threading.Thread(target=_end_with_input, args=(process, grace_seconds), daemon=True).start()
    return process.wait()


def _end_with_input(process: "subprocess.Popen[bytes]", grace_seconds: float) -> None:
    while os.read(sys.stdin.fileno(), 1024):
        pass
    process.terminate()
    try:
        process.wait(grace_seconds)
    except subprocess.TimeoutExpired:
        process.kill()


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]), sys.argv[2:]))
