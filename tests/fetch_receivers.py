"""Fetches the real receivers that end-to-end tests and benchmarks run against, and knows where they are.

On Debian the packages are downloaded and unpacked into .cache/receivers/<suite>/ without root: the machine's own apt
sources are read for the mirror, the suite's name in them is replaced, and apt works in a temporary folder. A program
that cannot be had this way is looked for on PATH. What is missing is said in one loud line; with CI=true it is a
failure.

Needs nothing but Python and apt; a complete cache is not looked at twice.
"""

import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "receivers"
APT_FOLDER = Path("/etc/apt")

# By these suites a source is recognised as a Debian mirror, which then has the other suites too.
DEBIAN_SUITES = frozenset(
    {"bookworm", "trixie", "forky", "duke", "sid", "oldoldstable", "oldstable", "stable", "testing", "unstable"}
)

APT_SECONDS = 300  # an index of 10 MB and a package of 18 MB over 1 Mbit/s take 230 s
VERSION_SECONDS = 30  # how long a program may take to tell its version; it takes 0.1 s

Version = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Program:
    """A program that tests or benchmarks start.

    suite, package: the Debian package that holds it.
    commands:       what it is called, in /usr/bin of the package and on PATH; the first one is Debian's.
    at_least:       the oldest version that will do; None where the program does not tell its version.
    below:          the first version that will not do any more.
    """

    suite: str
    package: str
    commands: tuple[str, ...]
    at_least: Version | None = None
    below: Version | None = None

    @property
    def cached(self) -> Path:
        """Where the fetched program is, or will be."""
        return CACHE / self.suite / self.commands[0]


VICTORIA_METRICS = ("victoria-metrics", "victoria-metrics-prod")

PROGRAMS: Mapping[str, Program] = {
    "prometheus-2.42": Program("bookworm", "prometheus", ("prometheus",), at_least=(2, 42), below=(3,)),
    "prometheus-3.5": Program("sid", "prometheus", ("prometheus",), at_least=(3, 5)),
    "victoria-metrics": Program("sid", "victoria-metrics", VICTORIA_METRICS),
    "victoria-metrics-1.79": Program("bookworm", "victoria-metrics", VICTORIA_METRICS),
    "promtool": Program("sid", "promtool", ("promtool",), at_least=(2, 42)),
    "vmagent": Program("sid", "victoria-metrics", ("vmagent", "vmagent-prod")),
}


class CannotFetchError(Exception):
    """A suite's packages cannot be had; the text says why."""


@functools.cache
def locate(name: str) -> Path | None:
    """The program of that name (a key of PROGRAMS): from the cache, else one on PATH of a version that will do."""
    program = PROGRAMS[name]
    if os.access(program.cached, os.X_OK):
        return program.cached
    for command in program.commands:
        found = shutil.which(command)
        if found is not None and why_unfit(program, Path(found)) is None:
            return Path(found)
    return None


def why_unfit(program: Program, path: Path) -> str | None:
    """Why the file at `path` will not do as `program`, found out by running it; None where it will do."""
    try:
        answer = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=VERSION_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"{path.name} does not run: {error}"
    if program.at_least is None:
        return None
    # Prometheus 3 writes to stdout, some builds of 2 to stderr: "prometheus, version 2.42.0+ds (branch: ..."
    match = re.search(r"version (\d+)\.(\d+)", answer.stdout + answer.stderr)
    if match is None:
        return f"{path.name} does not tell its version"
    version = (int(match[1]), int(match[2]))
    if version < program.at_least or (program.below is not None and version >= program.below):
        return f"{path.name} is {version[0]}.{version[1]}"
    return None


def main() -> int:
    """Fetch what the cache lacks; the exit code is 1 only where something is missing and CI=true."""
    wanted = [program for program in PROGRAMS.values() if not os.access(program.cached, os.X_OK)]
    reasons = []
    for suite in dict.fromkeys(program.suite for program in wanted):
        try:
            fetch(suite, [program for program in wanted if program.suite == suite])
        except CannotFetchError as error:
            reasons.append(f"{suite}: {error}")
    missing = [name for name in PROGRAMS if locate(name) is None]
    if not missing:
        return 0
    failing = os.environ.get("CI") == "true"
    fate = "with CI=true that is a FAILURE" if failing else "their tests are SKIPPED"
    say(f"!!! MISSING RECEIVERS: {', '.join(missing)}; {fate}. Put them on PATH. ({'; '.join(reasons)})")
    return 1 if failing else 0


def fetch(suite: str, programs: Sequence[Program]) -> None:
    """Put those programs of a suite into the cache that can be had, run and are of the right version.

    CannotFetchError where that is not all of them.
    """
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        message = "this machine has no apt"
        raise CannotFetchError(message)
    source = debian_source(APT_FOLDER, suite)
    if source is None:
        message = "no Debian mirror among this machine's apt sources"
        raise CannotFetchError(message)
    packages = list(dict.fromkeys(program.package for program in programs))
    say(f"fetching {', '.join(packages)} of Debian {suite} into {CACHE / suite}")
    CACHE.mkdir(parents=True, exist_ok=True)
    problems = []
    # Inside the cache, so that a program moves into its place within one file system: either whole or not at all.
    with tempfile.TemporaryDirectory(dir=CACHE, prefix=".fetching-") as name:
        folder = Path(name)
        apt = ["apt-get", "-q", "-c", str(_write_apt_configuration(folder, source))]
        run([*apt, "update"], folder)
        for package in packages:
            try:
                run([*apt, "download", package], folder)
            except CannotFetchError as error:
                problems.append(str(error))
        for archive in folder.glob("*.deb"):
            run(["dpkg", "-x", archive.name, "unpacked"], folder)
        for program in programs:
            unpacked = folder / "unpacked" / "usr" / "bin" / program.commands[0]
            problem = why_unfit(program, unpacked) if unpacked.exists() else f"no {unpacked.name} came of it"
            if problem is None:
                program.cached.parent.mkdir(exist_ok=True)
                unpacked.replace(program.cached)
            else:
                problems.append(problem)
    if problems:
        raise CannotFetchError(", ".join(problems))


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def run(command: Sequence[str], folder: Path) -> None:
    """Run `command` in `folder`; CannotFetchError with its own reason where it fails."""
    try:
        subprocess.run(
            command,
            cwd=folder,
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=APT_SECONDS,
            check=True,
        )
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines() or ["it said nothing"]
        reason = next((line for line in lines if line.startswith("E:")), lines[-1])
        message = f"{command[0]} {command[-1]} failed: {reason}"
        raise CannotFetchError(message) from error
    except subprocess.TimeoutExpired as error:
        message = f"{command[0]} {command[-1]} took longer than {APT_SECONDS} s"
        raise CannotFetchError(message) from error


def _write_apt_configuration(folder: Path, source: str) -> Path:
    """Make apt use one source and keep what it writes below `folder`; apt reads the file after the machine's own."""
    sources = folder / "sources"
    sources.mkdir()
    (sources / "receivers.sources").write_text(source)
    configuration = folder / "apt.conf"
    configuration.write_text(
        f'Dir::Etc::sourcelist "/dev/null";\n'
        f'Dir::Etc::sourceparts "{sources}";\n'
        f'Dir::State "{folder / "state"}";\n'
        f'Dir::Cache "{folder / "cache"}";\n'
        # An index that cannot be had is otherwise no error to apt.
        f'APT::Update::Error-Mode "any";\n'
        # apt as root drops its privileges to a user who may not write here.
        f'APT::Sandbox::User "";\n'
        # The hooks of the machine are about its own lists and caches.
        f"#clear APT::Update::Post-Invoke;\n"
        f"#clear APT::Update::Post-Invoke-Success;\n"
    )
    for needed in ("state/lists/partial", "cache/archives/partial"):
        (folder / needed).mkdir(parents=True)
    return configuration


def debian_source(apt_folder: Path, suite: str) -> str | None:
    """The machine's first source of Debian packages as a deb822 stanza, with its suite replaced by `suite`."""
    for stanza in _sources(apt_folder):
        fields = {name.lower(): value for name, value in stanza.items()}
        if fields.get("enabled", "yes").strip().lower() in {"no", "false", "off", "0"}:
            continue
        if "deb" in fields.get("types", "").split() and DEBIAN_SUITES & set(fields.get("suites", "").split()):
            fields |= {"types": "deb", "suites": suite, "components": "main", "targets": "Packages"}
            return "".join(f"{name}: {value}\n" for name, value in fields.items())
    return None


def _sources(apt_folder: Path) -> Iterator[Mapping[str, str]]:
    parts = sorted((apt_folder / "sources.list.d").glob("*"))
    for path in [apt_folder / "sources.list", *parts]:
        if path.suffix == ".sources":
            yield from _deb822_stanzas(path.read_text())
        elif path.suffix == ".list" and path.exists():
            yield from _classic_stanzas(path.read_text())


def _deb822_stanzas(text: str) -> Iterator[Mapping[str, str]]:
    """Fields of each stanza; a value that goes on over several lines keeps its line breaks."""
    lines = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for stanza in re.split(r"\n\s*\n", lines):
        yield {match[1]: match[2].rstrip() for match in re.finditer(r"(?m)^([^\s:]+):[ \t]*(.*(?:\n[ \t].*)*)", stanza)}


def _classic_stanzas(text: str) -> Iterator[Mapping[str, str]]:
    """The one-line format, `deb [option=value ...] uri suite component ...`, as fields of the other."""
    for match in re.finditer(r"(?m)^\s*(deb)\s+(?:\[(.*?)\]\s+)?(\S+)\s+(\S+)\s+(\S.*)$", text):
        kind, options, uri, suite, components = match.groups()
        stanza = {"types": kind, "uris": uri, "suites": suite, "components": components}
        for option in (options or "").split():
            name, _, value = option.partition("=")
            stanza["architectures" if name == "arch" else name] = value.replace(",", " ")
        yield stanza


if __name__ == "__main__":
    sys.exit(main())
