"""What attackers send over gRPC: good, empty, wrong, oversized requests and garbage for every method of TorchServe's.

Nothing here removes the model that is served, or its workers.
"""

from __future__ import annotations

import contextlib
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import grpc

from tests.support.hostile import vocabulary
from tests.support.servers.torchserve_jar import Method, methods

INFERENCE = ("Ping", "Predictions", "StreamPredictions", "StreamPredictions2")
PROTOCOL = ("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer")
MANAGEMENT = ("DescribeModel", "ListModels", "RegisterModel", "ScaleWorker", "SetDefault", "UnregisterModel")
METHODS = (*INFERENCE, *PROTOCOL, *MANAGEMENT)
"""A test compares them with TorchServe's."""
OVERSIZED = 2**25 + 2**20
"""Bytes; TorchServe takes max_request_size, 32 MiB."""
TIMEOUT_S = 120
REFUSED = frozenset(
    {
        *("INVALID_ARGUMENT", "NOT_FOUND", "UNIMPLEMENTED", "RESOURCE_EXHAUSTED", "CANCELLED", "ALREADY_EXISTS"),
        "INTERNAL",  # what TorchServe says of most of a client's errors
    }
)
"""Statuses that blame the client. Others say that something has died (UNAVAILABLE), or hangs."""


@dataclass(frozen=True)
class Call:
    """A call: its kind, the method, and its requests as bytes; the client hangs up after ``patience`` seconds."""

    kind: str
    method: Method
    requests: tuple[bytes, ...]
    patience: float | None = None


@dataclass(frozen=True)
class Outcome:
    """What became of a call: the name of its status, what it says, and the answers as bytes."""

    status: str
    details: str
    answers: tuple[bytes, ...] = ()

    @property
    def is_proper(self) -> bool:
        """Served, or refused with the client's fault; an answer within that is a 5xx isn't.

        grpc-java says UNKNOWN, and nothing more, of bytes that are no message.
        """
        if self.status == "OK":
            return all(map(_is_no_fault, self.answers))
        return self.status in REFUSED or (self.status == "UNKNOWN" and not self.details)


def _is_no_fault(answer: bytes) -> bool:
    start = answer.find(b'{"code": ')
    return start < 0 or answer[start + 9 : start + 10] == b"4"


def call(channel: Any, one: Call) -> Outcome:
    """Make a call on a channel of grpcio."""
    make = channel.stream_stream if one.method.streams_in else channel.unary_stream
    send = make(one.method.path, request_serializer=bytes, response_deserializer=bytes)
    answers: list[bytes] = []
    try:
        sent = iter(one.requests) if one.method.streams_in else one.requests[0]
        answers.extend(send(sent, timeout=one.patience or TIMEOUT_S))
        return Outcome("OK", "", tuple(answers))
    except grpc.RpcError as error:
        status = error.code().name
        if one.patience and status == "DEADLINE_EXCEEDED":
            status = "CANCELLED"  # it was us who hung up
        return Outcome(status, str(error.details()), tuple(answers))


@contextlib.contextmanager
def channels(port: int) -> Iterator[Callable[[Call], Outcome]]:
    """Calls to the server whose inference address has this port."""
    options = (("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1))
    with (
        grpc.insecure_channel(f"127.0.0.1:{port + 3}", options) as inference,
        grpc.insecure_channel(f"127.0.0.1:{port + 4}", options) as management,
    ):
        yield lambda one: call(management if "Management" in one.method.path else inference, one)


def calls(seed: int) -> Iterator[Call]:
    """Hostile calls without an end, the same from the same seed."""
    choose = random.Random(seed)
    while True:
        yield _call(choose)


def _call(choose: random.Random) -> Call:
    name = choose.choice(("Predictions", "Predictions", "ModelInfer", "ModelInfer", *METHODS))
    method = methods()[name]
    how = choose.choice(("words", "words", "words", "empty", "garbage", "damaged", "gone", "oversized"))
    if how == "oversized" and choose.random() < 0.9:
        how = "words"  # 33 MB each
    count = choose.choice((0, 1, 2, 5)) if method.streams_in else 1
    if how == "empty":
        requests = [b""] * count
    elif how == "garbage":
        requests = [choose.randbytes(choose.choice((1, 20, 1000))) for _ in range(count)]
    elif how == "oversized":
        requests = [bytes(OVERSIZED)] * count
    else:
        requests = [_request(choose, name, method).SerializeToString() for _ in range(count)]
    if how == "damaged":
        requests = [_damaged(choose, one) for one in requests]
    if name in MANAGEMENT and how in ("damaged", "garbage") and name not in ("DescribeModel", "ListModels"):
        requests = [b"\xff" + one for one in requests]  # what could still be read must not remove the model
    patience = choose.choice((0.001, 0.01, 0.05)) if how == "gone" else None
    return Call(f"grpc-{name}-{how}", method, tuple(requests), patience)


def _damaged(choose: random.Random, data: bytes) -> bytes:
    whole = bytearray(data or b"\0")
    for _ in range(choose.choice((1, 4))):
        whole[choose.randrange(len(whole))] = choose.randrange(256)
    return bytes(whole[: choose.choice((len(whole), len(whole) // 2))])


def _request(choose: random.Random, name: str, method: Method) -> Any:
    """A message of a method, with hostile values."""
    request = method.request()
    if name == "ModelInfer":
        _fill_infer(choose, request)
    elif name.endswith(("Predictions", "Predictions2")):
        request.model_name = choose.choice(("densenet",) * 8 + ("", "no-such", "é\0"))
        request.model_version = choose.choice(("", "", "", "1.0", "9.9", "\0"))
        for key, _, content in vocabulary.message(choose).parameters:
            request.input[key] = content
        if choose.random() < 0.5:
            request.sequence_id = choose.choice(("", "1", "x" * 5000))
    elif name == "RegisterModel":
        request.url = choose.choice(("", "no-such.mar", "../../etc/passwd", "/etc", "http://127.0.0.1:9/x.mar", "\0"))
        request.batch_size = choose.choice((-1, 0, 2**31 - 1))
    else:
        # management's of models that aren't there; the served one is described alone
        names = ("no-such", "", "é\0", "x" * 5000)
        for field in request.DESCRIPTOR.fields:
            if field.name in ("model_name", "name"):
                setattr(request, field.name, choose.choice(names if name in MANAGEMENT[3:] else (*names, "densenet")))
            elif field.cpp_type == field.CPPTYPE_STRING:
                setattr(request, field.name, choose.choice(("", "1.0", "9.9", "\0")))
            elif field.cpp_type == field.CPPTYPE_INT32:
                setattr(request, field.name, choose.choice((-1, 0, 1, 2**31 - 1)))
            else:
                setattr(request, field.name, choose.random() < 0.5)
    return request


def _fill_infer(choose: random.Random, request: Any) -> None:
    request.model_name = choose.choice(("densenet",) * 8 + ("", "no-such"))
    request.model_version = choose.choice(("", "", "", "1.0", "9.9"))
    request.id = choose.choice(("", "7", "\0", "\u202e", "x" * 5000))
    for _ in range(choose.choice((1, 1, 1, 0, 2, 70))):
        tensor = request.inputs.add(
            name=choose.choice(("image", "image", "pixels", "", "\0")),
            datatype=choose.choice(("BYTES", "BYTES", "UINT8", "FP32", "INT64", "BOOL", "FP64", "", "\0")),
            shape=choose.choice(([1], [1], [1, 1, 1, 3], [], [0], [-1], [2**62] * 9)),
        )
        contents = tensor.contents
        contents.bytes_contents.append(choose.choice((vocabulary.PICTURE, b"", b"no picture")))
        contents.fp32_contents.append(choose.choice((0.5, float("nan"), float("inf"))))
        contents.fp64_contents.append(choose.choice((0.5, float("nan"), -float("inf"))))
        contents.int64_contents.append(2**63 - 1)
        contents.uint_contents.extend(choose.choice(([1, 2, 3], [2**32 - 1], [])))
        contents.bool_contents.append(True)
    if choose.random() < 0.3:
        request.raw_input_contents.append(choose.choice((b"", vocabulary.PICTURE)))
    request.parameters[choose.choice(vocabulary.KEYS)].string_param = choose.choice(vocabulary.WORDS)


def good(picture: bytes, name: str = "Predictions") -> Call:
    """A prediction that is served."""
    method = methods()[name]
    if name == "ModelInfer":
        request = method.request(model_name="densenet", id="7")
        request.inputs.add(name="image", datatype="BYTES", shape=[1]).contents.bytes_contents.append(picture)
    else:
        request = method.request(model_name="densenet", input={"data": picture})
    return Call(f"grpc-{name}-good", method, (request.SerializeToString(),))


def answer(one: Call, outcome: Outcome) -> Any:
    """The last answer to a call, read; of a prediction its JSON."""
    message = one.method.response.FromString(outcome.answers[-1])
    return json.loads(message.prediction) if hasattr(message, "prediction") else message
