"""The generated modules say what the .proto files say; without protoc, by comparing statement by statement."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor, FileDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto

from worker.remote_write.proto import remote_write_v1_pb2, remote_write_v2_pb2

PROTO = Path(__file__).parents[3] / "proto"
MODULES = {"remote_write_v1.proto": remote_write_v1_pb2, "remote_write_v2.proto": remote_write_v2_pb2}
TYPES = {
    FieldDescriptor.TYPE_DOUBLE: "double",
    FieldDescriptor.TYPE_INT64: "int64",
    FieldDescriptor.TYPE_UINT32: "uint32",
    FieldDescriptor.TYPE_STRING: "string",
}


def statements_of_file(path: Path) -> Iterator[str]:
    """Every statement without its comments, behind the names of the messages and enums that it stands in."""
    scope: list[str] = []
    for statement in re.findall(r"[^;{}]+[;{]|}", re.sub(r"//.*", "", path.read_text())):
        words = statement.rstrip(";{").split()
        if words == ["}"]:
            scope.pop()
            continue
        yield " ".join([*scope, *words])
        if statement.endswith("{"):
            scope.append(words[1])


def statements_of_descriptor(file: FileDescriptor) -> Iterator[str]:
    """What `statements_of_file` finds in the file that the descriptor was made of."""
    yield 'syntax = "proto3"'
    yield f"package {file.package}"
    for message in file.message_types_by_name.values():
        yield f"message {message.name}"
        yield from (f"{message.name} {statement}" for statement in statements_of_message(message))


def statements_of_message(message: Descriptor) -> Iterator[str]:
    for field in message.fields:
        referred = field.message_type or field.enum_type
        kind = TYPES[field.type] if referred is None else referred.name
        yield f"{'repeated ' if field.is_repeated else ''}{kind} {field.name} = {field.number}"
    for enum in message.enum_types:
        yield f"enum {enum.name}"
        yield from (f"{enum.name} {value.name} = {value.number}" for value in enum.values)
    proto = DescriptorProto()
    message.CopyToProto(proto)
    for numbers in proto.reserved_range:
        last = numbers.end - 1
        yield f"reserved {numbers.start}" if numbers.start == last else f"reserved {numbers.start} to {last}"


@pytest.mark.parametrize("name", MODULES)
def test_the_generated_module_is_what_its_file_describes(name: str) -> None:
    described = sorted(statements_of_file(PROTO / name))
    assert sorted(statements_of_descriptor(MODULES[name].DESCRIPTOR)) == described


def test_every_file_has_its_module() -> None:
    assert {path.name for path in PROTO.glob("*.proto")} == set(MODULES)


def test_neither_version_can_be_mistaken_for_the_other() -> None:
    first = remote_write_v1_pb2.WriteRequest.DESCRIPTOR.fields_by_number
    second = remote_write_v2_pb2.Request.DESCRIPTOR.fields_by_number
    assert list(first) == [1, 3]
    assert list(second) == [4, 5]
