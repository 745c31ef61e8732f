"""What TorchServe's frontend knows, read from the jar that is installed: its gRPC methods and its routes."""

from __future__ import annotations

import importlib.util
import re
import struct
import zipfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PROTOS = ("inference.proto", "management.proto", "open_inference_grpc.proto")
REST = "org/pytorch/serve/http/api/rest/"
_NOT_READ = re.compile(r'//[^\n]*|/\*.*?\*/|"[^"]*"|\b(?:syntax|option|import)\b[^;]*;', re.DOTALL)
_TOKEN = re.compile(r"[A-Za-z_][\w.]*|\d+|[{}();=<>,]")
_Field = descriptor_pb2.FieldDescriptorProto
_TYPES = {
    name: getattr(_Field, f"TYPE_{name.upper()}")
    for name in ("bool", "int32", "int64", "uint32", "uint64", "float", "double", "string", "bytes")
}


@dataclass(frozen=True)
class Method:
    """A method of a gRPC service: its path, the classes of its messages, and whether they come in streams."""

    path: str
    request: Any
    response: Any
    streams_in: bool
    streams_out: bool


@cache
def jar() -> zipfile.ZipFile:
    """TorchServe's jar."""
    spec = importlib.util.find_spec("ts")
    assert spec is not None and spec.origin is not None
    return zipfile.ZipFile(Path(spec.origin).parent / "frontend" / "model-server.jar")


@cache
def methods() -> dict[str, Method]:
    """Every method of TorchServe's gRPC services by its name, ``Predictions`` or ``ModelInfer``."""
    parsed = [_Protocol(jar().read(f"proto/{name}").decode()) for name in PROTOS]
    classes = message_factory.GetMessages([one.file for one in parsed], pool=descriptor_pool.DescriptorPool())
    return {
        name: Method(f"/{one.file.package}.{service}/{name}", classes[request], classes[response], *streams)
        for one in parsed
        for service, name, request, response, streams in one.methods
    }


def routes() -> list[str]:
    """The paths that TorchServe describes, ``/predictions/{model_name}``, and those that it compares with."""
    described = [
        text for text in strings("org/pytorch/serve/openapi/OpenApiUtils") if re.fullmatch(r"/[\w/{}:-]*", text)
    ]
    compared = [text for text in strings(f"{REST}OpenInferenceProtocolRequestHandler") if text.startswith("/v2")]
    return [*described, *compared]


def segments() -> list[str]:
    """The words with which TorchServe compares the parts of an inference request's path."""
    words = strings(f"{REST}InferenceRequestHandler") + strings(
        "org/pytorch/serve/workflow/api/http/WorkflowInferenceRequestHandler"
    )
    return [word for word in words if re.fullmatch(r":?[a-z][a-z0-9-]+", word)]


def strings(name: str) -> list[str]:
    """The string constants of a class (Java Virtual Machine Specification, 4.4)."""
    code = jar().read(f"{name}.class")
    texts: dict[int, str] = {}
    constants: list[int] = []
    (count,) = struct.unpack_from(">H", code, 8)
    at, index = 10, 1
    while index < count:
        tag = code[at]
        if tag == 1:
            (length,) = struct.unpack_from(">H", code, at + 1)
            texts[index] = code[at + 3 : at + 3 + length].decode("utf-8", "replace")
            at += 3 + length
        else:
            if tag == 8:
                constants += struct.unpack_from(">H", code, at + 1)
            at += {5: 9, 6: 9, 7: 3, 8: 3, 15: 4, 16: 3, 19: 3, 20: 3}.get(tag, 5)
        index += 2 if tag in (5, 6) else 1
    return [texts[constant] for constant in constants]


class _Protocol:
    """The messages and methods of a .proto file, as far as TorchServe's use the language."""

    def __init__(self, text: str) -> None:
        self._tokens = iter(_TOKEN.findall(_NOT_READ.sub(" ", text)))
        self.file = descriptor_pb2.FileDescriptorProto(syntax="proto3")
        self.methods: list[tuple[str, str, str, str, tuple[bool, bool]]] = []
        for token in self._tokens:
            if token == "package":
                self.file.package = next(self._tokens)
                self.file.name = f"{self.file.package}.proto"
            elif token == "message":
                self._message(self.file.message_type.add(name=next(self._tokens)), f".{self.file.package}")
            elif token == "service":
                self._service(next(self._tokens))
        self._resolve(self.file.message_type, f".{self.file.package}")

    def _message(self, message: Any, outer: str, one_of: int | None = None) -> None:
        """The fields up to the closing brace; the types of messages stay names for now."""
        if one_of is None:
            assert next(self._tokens) == "{"
        for token in self._tokens:
            if token == "}":
                return
            if token == "message":
                self._message(message.nested_type.add(name=next(self._tokens)), f"{outer}.{message.name}")
            elif token == "oneof":
                message.oneof_decl.add(name=next(self._tokens))
                assert next(self._tokens) == "{"
                self._message(message, outer, len(message.oneof_decl) - 1)
            else:
                self._field(message, token, one_of, outer)

    def _field(self, message: Any, token: str, one_of: int | None, outer: str) -> None:
        repeated, kind = token == "repeated", token
        if token in ("repeated", "optional"):
            kind = next(self._tokens)
        if kind == "map":
            rest = [next(self._tokens) for _ in range(5)]  # < key , value >
            kind, repeated = self._entry(message, rest[1], rest[3], outer), True
        name, _, number, _ = (next(self._tokens) for _ in range(4))  # NAME = NUMBER ;
        self._add(message, name, int(number), kind, repeated)
        if one_of is not None:
            message.field[-1].oneof_index = one_of

    def _entry(self, message: Any, key: str, value: str, outer: str) -> str:
        """A map is a repeated message of key and value."""
        entry = message.nested_type.add(name=f"Entry{len(message.nested_type)}", options={"map_entry": True})
        self._add(entry, "key", 1, key, False)
        self._add(entry, "value", 2, value, False)
        return f"{outer}.{message.name}.{entry.name}"

    def _add(self, message: Any, name: str, number: int, kind: str, repeated: bool) -> None:
        label = _Field.LABEL_REPEATED if repeated else _Field.LABEL_OPTIONAL
        if kind.startswith("google."):
            kind = "bytes"  # a message's bytes, unread
        if kind in _TYPES:
            message.field.add(name=name, number=number, label=label, type=_TYPES[kind])
        else:
            message.field.add(name=name, number=number, label=label, type=_Field.TYPE_MESSAGE, type_name=kind)

    def _resolve(self, messages: Any, outer: str) -> None:
        """The full names of types: of the message itself first, then of the file."""
        for message in messages:
            own = {nested.name for nested in message.nested_type}
            for field in message.field:
                if field.type_name and not field.type_name.startswith("."):
                    inside = f".{message.name}" if field.type_name in own else ""
                    field.type_name = f"{outer}{inside}.{field.type_name}"
            self._resolve(message.nested_type, outer)

    def _service(self, service: str) -> None:
        assert next(self._tokens) == "{"
        for token in self._tokens:
            if token == "}":
                return
            assert token == "rpc"
            name = next(self._tokens)
            (request, streams_in), returns, (response, streams_out) = self._type(), next(self._tokens), self._type()
            assert (returns, next(self._tokens), next(self._tokens)) == ("returns", "{", "}")
            self.methods.append((service, name, request, response, (streams_in, streams_out)))

    def _type(self) -> tuple[str, bool]:
        """``( TYPE )`` or ``( stream TYPE )``."""
        words = list(iter(self._tokens.__next__, ")"))[1:]
        if words[-1].startswith("google."):
            self._empty()
            words[-1] = "Empty"
        return f"{self.file.package}.{words[-1]}", words[0] == "stream"

    def _empty(self) -> None:
        """Instead of google.protobuf.Empty a message of our own: both have no bytes."""
        if not any(message.name == "Empty" for message in self.file.message_type):
            self.file.message_type.add(name="Empty")
