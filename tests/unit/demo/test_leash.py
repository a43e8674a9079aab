import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from worker.demo import leash

OBEDIENT = "import sys, time; print('up', flush=True); time.sleep(600)"
STUBBORN = f"import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); {OBEDIENT}"


@contextmanager
def leashed(program: str, *, grace_seconds: float) -> Iterator["subprocess.Popen[bytes]"]:
    """A leash with a Python program on it that has printed `up`."""
    command = [sys.executable, leash.__file__, str(grace_seconds), sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
            yield process
        finally:
            process.kill()


def end_of_output(process: "subprocess.Popen[bytes]") -> bytes:
    """What else is printed; returns when nobody holds the output any more, neither the leash nor the program."""
    assert process.stdout is not None
    return process.stdout.read()


def let_go(process: "subprocess.Popen[bytes]") -> None:
    assert process.stdin is not None
    process.stdin.close()


def test_the_program_ends_when_the_leash_is_let_go() -> None:
    with leashed(OBEDIENT, grace_seconds=600) as process:
        let_go(process)
        assert end_of_output(process) == b""
        assert process.wait() == 256 - signal.SIGTERM


def test_a_program_that_ignores_sigterm_is_killed() -> None:
    with leashed(STUBBORN, grace_seconds=0.1) as process:
        let_go(process)
        assert end_of_output(process) == b""
        assert process.wait() == 256 - signal.SIGKILL


def test_signals_do_not_cut_the_leash() -> None:
    with leashed(OBEDIENT, grace_seconds=600) as process:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            process.send_signal(number)
        assert process.poll() is None
        let_go(process)
        assert end_of_output(process) == b""


def test_the_program_ends_when_whoever_holds_it_is_killed(tmp_path: Path) -> None:
    holder = tmp_path / "holder.py"
    holder.write_text(
        "import subprocess, sys, time\nsubprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE)\ntime.sleep(600)\n"
    )
    command = [sys.executable, str(holder), sys.executable, leash.__file__, "600", sys.executable, "-c", OBEDIENT]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.kill()
        assert end_of_output(process) == b""


def test_a_program_that_ends_by_itself_passes_on_its_code() -> None:
    with leashed("import sys; print('up'); sys.exit(7)", grace_seconds=600) as process:
        assert process.wait() == 7
