"""The Dockerfile, taken apart for tests of the image and of what is deployed with it."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction: its keyword in capitals, and the rest with continuation lines joined."""

    keyword: str
    arguments: str


def stages() -> list[list[Instruction]]:
    """The instructions of each build stage, FROM first; what stands before the first FROM is left out."""
    found: list[list[Instruction]] = []
    for instruction in _instructions():
        if instruction.keyword == "FROM":
            found.append([])
        if found:
            found[-1].append(instruction)
    return found


def arguments_of(keyword: str, stage: int = -1) -> list[str]:
    """The arguments of every such instruction of a stage, the last one unless told otherwise."""
    return [instruction.arguments for instruction in stages()[stage] if instruction.keyword == keyword]


def image_environment() -> dict[str, str]:
    """The environment variables that the image sets."""
    pairs = (pair for arguments in arguments_of("ENV") for pair in arguments.split())
    return dict(pair.split("=", 1) for pair in pairs)


def health_check_command() -> list[str]:
    """The program that the container runtime runs to learn about the worker's health, with its arguments."""
    (arguments,) = arguments_of("HEALTHCHECK")
    command: list[str] = json.loads(arguments[arguments.index("[") :])
    return command


def build_argument_defaults() -> dict[str, str]:
    """The defaults of the arguments that stand before the first FROM."""
    return dict(instruction.arguments.split("=", 1) for instruction in _instructions() if instruction.keyword == "ARG")


def _instructions() -> Iterator[Instruction]:
    lines = (REPOSITORY / "Dockerfile").read_text().splitlines()
    text = "\n".join(line for line in lines if not line.lstrip().startswith("#"))
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        if line.strip():
            keyword, _, arguments = line.strip().partition(" ")
            yield Instruction(keyword.upper(), arguments.strip())
