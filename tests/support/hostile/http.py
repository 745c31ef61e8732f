"""What attackers send: bombs, damaged pictures, wrong JSON, wrong HTTP. Everything is made on the spot.

``bombs`` are the cases that were found to hurt, each with the answer that it gets. ``inputs`` makes
any number of different requests, the same ones from the same seed, as bytes on the wire.
"""

from __future__ import annotations

import base64
import json
import random
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from urllib.parse import urlencode

from PIL import Image

from tests.support.hostile import vocabulary
from tests.support.pictures import made
from tests.support.pictures.golden import PACKAGED
from tests.support.pictures.made import jpeg, png, png_chunk, save

GREY_ROWS = (b"\0" + bytes(64)) * 64
"""The pixels of a PNG of 64 × 64 px, 8 bits grey."""
LAST_PERCENT = 100


@dataclass(frozen=True)
class Bomb:
    """A picture that costs far more than it weighs, and its answer: "served" or the type of the error."""

    name: str
    data: bytes
    answer: str


def _segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def jpeg_of_scans(side: int, scans: int) -> bytes:
    """A progressive JPEG of ``side`` × ``side`` px, grey, in which each scan says in a few bytes: nothing changes.

    Decoding takes a pass over the whole picture for each (ITU-T T.81, G.1.2: runs of empty blocks).
    """
    blocks = ((side + 7) // 8) ** 2
    runs = "".join("0" + "1" * 14 for _ in range((blocks + 32766) // 32767))  # each: the next 32,767 blocks are empty
    bits = runs + "1" * (-len(runs) % 8)
    nothing = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    return b"".join(
        [
            b"\xff\xd8",
            _segment(0xDB, b"\0" + bytes([1] * 64)),
            _segment(0xC2, struct.pack(">BHHB", 8, side, side, 1) + b"\1\x11\0"),
            _segment(0xC4, b"\0" + bytes([1] + [0] * 15) + b"\0"),
            _segment(0xC4, b"\x10" + bytes([1] + [0] * 15) + b"\xe0"),
            _segment(0xDA, b"\1\1\0\0\0\0") + bytes((blocks + 7) // 8),
            *[_segment(0xDA, b"\1\1\0\1\x3f\0") + nothing] * (scans - 1),
            b"\xff\xd9",
        ]
    )


def jpeg_of_segments(count: int, content: bytes = b"") -> bytes:
    """A good JPEG with so many more segments of metadata."""
    whole = jpeg()
    return whole[:2] + _segment(0xED, content) * count + whole[2:]


def jpeg_of_exif(length: int) -> bytes:
    """A JPEG whose EXIF spreads over segments, and whose 5,000 tags each point at all of its ``length`` bytes."""
    tags = b"".join(struct.pack("<HHII", 2000 + i, 7, length, 0) for i in range(5000))
    exif = b"II*\0" + struct.pack("<IH", 8, 5000) + tags + bytes(length)
    whole = jpeg()
    parts = (_segment(0xE1, b"Exif\0\0" + exif[at : at + 65_000]) for at in range(0, len(exif), 65_000))
    return whole[:2] + b"".join(parts) + whole[2:]


def png_of_chunks(count: int, kind: bytes = b"teSt", content: bytes = b"") -> bytes:
    """A good PNG with so many more chunks."""
    return png(64, 64, 8, 0, GREY_ROWS, png_chunk(kind, content) * count)


def png_of_frames(count: int) -> bytes:
    """An animated PNG that announces ``count`` frames and has the control chunks of all."""
    frames = (png_chunk(b"fcTL", struct.pack(">IIIIIHHBB", i, 64, 64, 0, 0, 1, 1, 0, 0)) for i in range(count))
    return png(64, 64, 8, 0, GREY_ROWS, png_chunk(b"acTL", struct.pack(">II", count, 0)) + b"".join(frames))


def tiff_of_tags(count: int, length: int) -> bytes:
    """A TIFF of 64 × 64 px whose tags each point at the same ``length`` bytes."""
    base = [(256, 3, 1, 64), (257, 3, 1, 64), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, 8)]
    base += [(277, 3, 1, 1), (278, 3, 1, 64), (279, 4, 1, 4096)]
    tags = base + [(1000 + i, 7, length, 0) for i in range(count)]
    directory = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + directory + bytes(4 + length)


def tiff_of_tile(width: int, height: int) -> bytes:
    """A TIFF of 64 × 64 px whose one tile is far larger."""
    tile = zlib.compress(bytes(1000))
    tags = [(256, 3, 1, 64), (257, 3, 1, 64), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1), (277, 3, 1, 1)]
    tags += [(322, 4, 1, width), (323, 4, 1, height), (324, 4, 1, 8), (325, 4, 1, len(tile))]
    directory = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(tile)) + tile + struct.pack("<H", len(tags)) + directory + bytes(4)


def gif_of_extensions(count: int) -> bytes:
    """A GIF with so many graphic control extensions before its first frame."""
    whole = save(made.halves(), "GIF")
    colours = 3 * 2 ** ((whole[10] & 7) + 1) if whole[10] & 0x80 else 0
    return whole[: 13 + colours] + b"\x21\xf9\4\0\0\0\0\0" * count + whole[13 + colours :]


@cache
def bombs() -> tuple[Bomb, ...]:
    """Pictures that were found to cost a worker its time or memory, or that could."""
    zeros = zlib.compress(bytes(100_000_000), 9)
    megabyte = zlib.compress(bytes(900_000))
    texts = b"".join(png_chunk(b"zTXt", b"k%d\0\0" % i + megabyte) for i in range(100))
    return (
        Bomb("scans", jpeg_of_scans(2000, 2000), "served"),
        Bomb("segments", jpeg_of_segments(200_000), "served"),
        Bomb("exif-tags-that-overlap", jpeg_of_exif(3_000_000), "served"),
        Bomb("chunks", png_of_chunks(200_000), "served"),
        Bomb("frames", png_of_frames(50_000), "served"),
        Bomb("compressed-text", png_of_chunks(1, b"zTXt", b"k\0\0" + zeros), "served"),
        Bomb("compressed-international-text", png_of_chunks(1, b"iTXt", b"k\0\1\0\0\0" + zeros), "served"),
        Bomb("compressed-profile", png_of_chunks(1, b"iCCP", b"k\0\0" + zeros), "served"),
        Bomb("many-compressed-texts", png(64, 64, 8, 0, GREY_ROWS, texts), "served"),
        Bomb("tiff-tags-that-overlap", tiff_of_tags(60_000, 1_000_000), "served"),
        Bomb("tiff-tile", tiff_of_tile(65_520, 65_520), "InvalidImage"),
        Bomb("tiff-tile-as-large-as-can-be", tiff_of_tile(2**31 - 16, 16), "InvalidImage"),
        Bomb("gif-extensions", gif_of_extensions(200_000), "served"),
        Bomb("plain-text-pixels", b"P3 500 500 255\n" + b"1 " * 750_000, "served"),
        Bomb("pixels-by-the-piece", b"P6 500 500 254\n" + b"\1" * 750_000, "served"),
        Bomb("pixels", made.bomb(10_000), "served"),
        Bomb("too-many-pixels", made.bomb(13_000), "ImageTooLarge"),
        Bomb("transparent-palette", save(Image.new("P", (9000, 9000)), "PNG", transparency=0), "served"),
    )


# ---- HTTP ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Input:
    """One hostile request: its kind, and the bytes on the wire.

    ``complete``: HTTP says that an answer is due; else the server may wait for more, or close. ``answers``: how many
    requests ``raw`` holds. ``later``: further requests on the connection, each sent when the answer before is there.
    ``ending``: the client closes its half ("half") or all ("gone") when it has sent everything.
    """

    kind: str
    raw: bytes
    complete: bool = True
    answers: int = 1
    later: tuple[bytes, ...] = ()
    ending: str = ""


PATH = "/predictions/densenet"


def request(body: bytes, *headers: str, method: str = "POST", path: str = PATH, length: str | None = "") -> bytes:
    """A request on the wire. ``length``: of the body by default; None: no such header."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", *headers]
    if length is not None:
        lines.append(f"Content-Length: {length or len(body)}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + body


JSON = "Content-Type: application/json"
MULTIPART = "Content-Type: multipart/form-data; boundary=b"
FORM = "Content-Type: application/x-www-form-urlencoded"


def _part(name: str, content: bytes, extra: str = "") -> bytes:
    return f'--b\r\nContent-Disposition: form-data; name="{name}"{extra}\r\n\r\n'.encode() + content + b"\r\n"


def form_of(content: bytes) -> bytes:
    """A form of one field, as ``curl -F`` sends it."""
    return _part("file", content, '; filename="x"') + b"--b--\r\n"


@cache
def samples() -> tuple[bytes, ...]:
    """Good pictures of every format and mode, and photographs."""
    return tuple(s.data for s in made.samples()) + tuple(g.path.read_bytes() for g in PACKAGED)


_EXTREMES = (b"\0\0", b"\xff\xff", b"\x7f\xff", b"\x80\0", b"\0\1", b"\xff\xfe")


def damaged(choose: random.Random) -> bytes:
    """A good picture with bytes changed, cut out, repeated or set to extreme numbers, most of them near its head."""
    data = bytearray(choose.choice(samples()))
    for _ in range(choose.choice((1, 1, 2, 4, 16, 64))):
        at = int(len(data) * choose.random() ** choose.choice((1, 3)))
        how = choose.randrange(6)
        if how == 0:
            data[at : at + 1] = bytes([choose.randrange(256)])
        elif how == 1:
            extreme = choose.choice(_EXTREMES) * choose.choice((1, 2, 4))
            data[at : at + len(extreme)] = extreme
        elif how == 2:
            del data[at : at + choose.choice((1, 4, 100))]
        elif how == 3:
            data[at:at] = data[at : at + choose.choice((1, 12, 500))]
        elif how == 4:
            data[at:at] = choose.randbytes(choose.choice((1, 4, 64)))
        else:
            data[at : at + 1] = bytes([data[at] ^ 1 << choose.randrange(8)]) if at < len(data) else b"\0"
    return bytes(data)


def polyglot(choose: random.Random) -> bytes:
    """The head of one thing on the rest of another."""
    first, second = choose.choice(samples()), choose.choice(samples())
    other = choose.choice(
        (b"<html><script>", b"%PDF-1.7\n", b"PK\3\4" + bytes(30), b"\x7fELF", b"GIF89a", b"MZ", second)
    )
    return choose.choice(
        (other + first, first + other, first[: choose.choice((4, 8, 16, 64, 200))] + second, second[:12] + first[12:])
    )


def _deep(choose: random.Random) -> bytes:
    depth = choose.choice((10, 500, 1500, 50_000, 1_000_000))
    opening, closing = choose.choice(((b"[", b"]"), (b'{"data":', b"}"), (b'{"instances":[', b"]}")))
    return opening * depth + b"1" + closing * (depth if choose.random() < 0.5 else 0)


def _value(choose: random.Random, depth: int = 0) -> object:
    """A random JSON value in which the words of the contract occur."""
    small = base64.b64encode(choose.choice(samples()[:20])[:3000]).decode()
    leaves: list[object] = [
        None,
        True,
        0,
        -1,
        1e308,
        10**400,
        "",
        "\ud800",
        "\0",
        "é" * 500,
        "data:,",
        small,
        small[:-1],
    ]
    if depth > 4 or choose.random() < 0.4:
        return choose.choice(leaves)
    keys = ("data", "b64", "instances", "topk", "file", "body", "model_name", "inputs", "parameters", "", "__proto__")
    if choose.random() < 0.5:
        return [_value(choose, depth + 1) for _ in range(choose.choice((0, 1, 3, 70)) if depth < 2 else 1)]
    return {choose.choice(keys): _value(choose, depth + 1) for _ in range(choose.randrange(4))}


def _json(choose: random.Random) -> bytes:
    text = json.dumps(_value(choose)).encode()
    return choose.choice(
        (text, text, text[: len(text) // 2], text + b"}", b"\xff\xfe" + text, text.replace(b'"', b"'"))
    )


def _multipart(choose: random.Random) -> bytes:
    names = ("file", "data", "body", "topk", "x", "", "content-type", "accept", "describe", "a" * 5000, "ü", "../../x")
    pieces = (choose.choice(samples()[:20]), b"", b"5", b"-1", b"\xff\xfe", b"1" * 5000)
    extras = [
        *("", '; filename="x"', "\r\nContent-Type: application/json", "\r\nContent-Type: text/plain; charset=x"),
        *("\r\nContent-Transfer-Encoding: 7bit", "\r\nContent-Transfer-Encoding: base65", '; filename="' + "x" * 9000),
    ]
    parts = [
        _part(choose.choice(names), choose.choice(pieces), choose.choice(extras)) for _ in range(choose.randrange(5))
    ]
    return b"".join(parts) + choose.choice((b"--b--\r\n", b"--b--\r\n", b"--b", b"", b"--c--\r\n"))


def _chunked(choose: random.Random, body: bytes) -> bytes:
    size = choose.choice((1, 100, 65_536))
    body = body[: 50 * size]
    pieces = (body[at : at + size] for at in range(0, len(body), size))
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"


def _http(choose: random.Random) -> Input:
    """Framing, headers, methods and routes that are wrong."""
    body = choose.choice(samples()[:20])
    length = len(body)
    chunked = "Transfer-Encoding: chunked"
    long = choose.choice((100, 5000, 100_000))
    name = choose.choice(("method", "path", "header", "value", "version"))
    closed = "Connection: close"
    made: tuple[Callable[[], Input], ...] = (
        lambda: Input("length-too-long", request(body, length=str(length + 5)), False),
        lambda: Input("length-too-short", request(body, closed, length=str(max(length - 5, 1)))),
        lambda: Input("length-negative", request(body, length="-1")),
        lambda: Input("length-huge", request(body, length="9" * 30)),
        lambda: Input("length-no-number", request(body, length="ten")),
        lambda: Input("length-twice", request(body, f"Content-Length: {length + 1}")),
        lambda: Input("length-and-chunked", request(_chunked(choose, body), chunked)),
        lambda: Input("length-above-limit", request(b"", length=str(2**25 + 1))),
        lambda: Input("chunked", request(_chunked(choose, body), chunked, length=None)),
        lambda: Input("chunk-size-wrong", request(b"zz\r\n" + body, chunked, length=None)),
        lambda: Input("chunk-size-huge", request(b"ffffffffffffffff\r\n" + body, chunked, length=None)),
        lambda: Input("chunk-size-negative", request(b"-5\r\n" + body, chunked, length=None)),
        lambda: Input("chunks-without-end", request(b"5\r\nabcde\r\n", chunked, length=None), False),
        lambda: Input("chunk-of-control-characters", request(_chunked(choose, body), "Transfer-Encoding:\x0bchunked")),
        lambda: Input("coding-unknown", request(body, "Transfer-Encoding: gzip")),
        lambda: Input("headers-many", request(body, *(f"X-{i}: {i}" for i in range(long // 10)))),
        lambda: Input("header-long", request(body, f"X-Long: {'x' * long}")),
        lambda: Input("path-long", request(body, path=PATH + "/" + "x" * long)),
        lambda: Input("header-without-colon", request(body, "what is this")),
        lambda: Input("header-folded", request(body, "X-Folded: a\r\n b")),
        lambda: Input("header-binary", request(body, "X-Binary: " + bytes(range(128, 256)).decode("latin-1"))),
        lambda: Input("type-odd", request(body, f"Content-Type: {choose.choice(_TYPES)}")),
        lambda: Input("encoding-gzip", request(zlib.compress(body, wbits=31), "Content-Encoding: gzip")),
        lambda: Input("accept-odd", request(body, f"Accept: {choose.choice(_ACCEPTS)}")),
        lambda: Input("expect", request(body, f"Expect: {choose.choice(('100-continue', '200-ok'))}")),
        lambda: Input(
            "upgrade", request(body, "Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: x")
        ),
        lambda: Input("method-odd", request(body, method=choose.choice(_METHODS))),
        lambda: Input("path-odd", request(body, path=choose.choice(_PATHS))),
        lambda: Input("path-without-slash", request(body, path=choose.choice(("*", "", "predictions")))),
        lambda: Input("http-2-preface", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9), False),
        lambda: Input("tls-hello", b"\x16\3\1\2\0\1\0\1\xfc\3\3" + choose.randbytes(200) + b"\r\n\r\n", False),
        lambda: Input("no-http", choose.randbytes(choose.choice((1, 100, 10_000))) + b"\r\n\r\n", False),
        lambda: Input(f"control-character-in-{name}", _with_control(choose, name, body)),
        lambda: _pipelined(choose, body),
        lambda: Input(
            "keep-alive", request(body), later=tuple(_small(choose) for _ in range(choose.choice((1, 3, 20))))
        ),
        lambda: Input("http-1.0", _http_1_0(request(body, *choose.choice(((), ("Connection: keep-alive",)))))),
        lambda: Input("http-1.0-chunked", _http_1_0(request(_chunked(choose, body), chunked, length=None)), False),
        lambda: Input("half-closed", request(body), ending="half"),
        lambda: Input("half-closed-in-the-body", request(body)[:-1], False, ending="half"),
        lambda: Input("gone", request(body), False, ending="gone"),
        lambda: Input("gone-in-the-body", request(body)[: -choose.randrange(1, length)], False, ending="gone"),
        lambda: Input("gone-while-pipelined", request(body) * 20, False, ending="gone"),
        lambda: Input("stopped-in-the-header", request(body)[: choose.randrange(1, 60)], False),
        lambda: Input("stopped-in-the-body", request(body)[:-1], False),
        lambda: Input("form-many-fields", request(b"a&" * long, FORM)),
        lambda: Input("form-of-a-picture", request(body, FORM)),
        lambda: Input("form-broken", request(choose.choice((b"%", b"%zz=%f", b"=&=&=", b"a=%00%ff")), FORM)),
        lambda: Input(
            "multipart-many-fields", request(b"".join(_part(str(i), b"") for i in range(long // 10)), MULTIPART)
        ),
        lambda: Input("multipart-without-boundary", request(_multipart(choose), "Content-Type: multipart/form-data")),
    )
    return choose.choice(made)()


def _http_1_0(raw: bytes) -> bytes:
    return raw.replace(b" HTTP/1.1", b" HTTP/1.0", 1)


def _small(choose: random.Random) -> bytes:
    """A proper request that costs little."""
    return choose.choice(
        (request(b"", method="GET", path="/ping"), request(b""), request(b"{}", JSON), request(samples()[0]))
    )


def _pipelined(choose: random.Random, body: bytes) -> Input:
    """Several requests at once; the last asks for the connection to be closed."""
    count = choose.choice((1, 3, 10))
    raw = b"".join(_small(choose) for _ in range(count)) + request(body, "Connection: close")
    return Input("pipelined", raw, answers=count + 1)


def _words(choose: random.Random) -> Input:
    """A request of the server's own words, as a body, or as a form where it has several fields."""
    made = vocabulary.message(choose)
    query = f"?{urlencode(made.query)}" if made.query else ""
    headers = [f"{name}: {value}".rstrip() for name, value in made.headers]
    if [name for name, _, _ in made.parameters] == ["body"]:
        ((_, kind, content),) = made.parameters
        return Input("words", request(content, f"Content-Type: {kind}", *headers, path=made.path + query))
    parts = (
        _part(name, content, f"\r\nContent-Type: {kind}" if kind else "") for name, kind, content in made.parameters
    )
    return Input(
        "words-in-a-form", request(b"".join(parts) + b"--b--\r\n", MULTIPART, *headers, path=made.path + query)
    )


_TYPES: list[str] = [
    *("", "/", "text/plain", "text/plain; charset=utf-16", "text/html; charset=no-such", "image/", "a" * 5000),
    *("application/json; charset=utf-7", "multipart/mixed; boundary=b", "multipart/form-data; boundary=" + "b" * 5000),
    *('multipart/form-data; boundary="', "APPLICATION/JSON", "application/cloudevents+json", "application/grpc"),
]
_ACCEPTS = ("text/plain;q=nan", "text/plain;q=1e999", ";;;,,,", "text/plain" * 500, "*/*;q=-1", "text/html", "\xff")
_METHODS = ("GET", "PUT", "DELETE", "OPTIONS", "HEAD", "TRACE", "CONNECT", "PATCH", "BREW", "get", "")
_PATHS: list[str] = [
    *("/", "//", "/../../etc/passwd", "/%00", "/%", "/%2e%2e/", "/predictions", "/predictions/", PATH + "/9.9"),
    *(PATH + "%00", "/predictions/%ff", "/v1/models/densenet:predict", "/v2/models/densenet/infer", "/invocations"),
    *("/models", "/models/densenet", "/metrics", "/token?type=management", "/api-description", "http://[/", "/?a=%"),
    *("/models?url=http://127.0.0.1:9/x.mar", "/workflows", "/wfpredict/x", "/explanations/densenet", "/ping"),
]


def _with_control(choose: random.Random, where: str, body: bytes) -> bytes:
    """A request with a control character where none may be (CVE-2021-43797 is about those in header names)."""
    bad = choose.choice("\0\x01\x0b\x0c\x1f\x7f\x85\xa0")
    parts = {"method": "POST", "path": PATH, "version": "HTTP/1.1", "header": "X-Name", "value": "x"}
    at = choose.randrange(len(parts[where]) + 1)
    parts[where] = parts[where][:at] + bad + parts[where][at:]
    head = f"{parts['method']} {parts['path']} {parts['version']}\r\nHost: x\r\n{parts['header']}: {parts['value']}\r\n"
    return (head + f"Connection: close\r\nContent-Length: {len(body)}\r\n\r\n").encode("latin-1") + body


def _picture(choose: random.Random, kind: str, data: bytes) -> Input:
    """A picture in any of the forms in which one may be sent."""
    form = choose.randrange(8)
    if form == 0:
        return Input(kind, request(form_of(data), MULTIPART))
    if form == 1:
        return Input(kind, request(json.dumps({"data": base64.b64encode(data).decode()}).encode(), JSON))
    if form == 2:
        instances = {"instances": [{"b64": base64.b64encode(data).decode()}]}
        return Input(kind, request(json.dumps(instances).encode(), JSON, path="/v1/models/densenet:predict"))
    return Input(kind, request(data, method=choose.choice(("PUT", "POST"))))


def inputs(seed: int, heavy: bool = False) -> Iterator[Input]:
    """Hostile requests without an end: first each sample cut off at every 1 %, in a random order, then all kinds.

    Args:
        seed: the same seed makes the same requests.
        heavy: with bombs, which take up to seconds each: one in 500.
    """
    choose = random.Random(seed)
    cuts = [(data, percent) for data in samples() for percent in range(LAST_PERCENT)]
    choose.shuffle(cuts)
    makers: tuple[Callable[[], Input], ...] = (
        lambda: _picture(choose, "damaged", damaged(choose)),
        lambda: _picture(choose, "damaged", damaged(choose)),
        lambda: _picture(choose, "polyglot", polyglot(choose)),
        lambda: Input("json", request(_json(choose), JSON)),
        lambda: Input("multipart", request(_multipart(choose), MULTIPART)),
        lambda: _http(choose),
        lambda: _words(choose),
        lambda: _words(choose),
    )
    while True:
        if heavy and choose.random() < 0.002:
            bomb = choose.choice(bombs())
            yield _picture(choose, f"bomb-{bomb.name}", bomb.data)
        elif cuts and choose.random() < 0.4:
            data, percent = cuts.pop()
            yield _picture(choose, "truncated", data[: len(data) * percent // LAST_PERCENT])
        elif choose.random() < 0.02:
            yield Input("json-deep", request(_deep(choose), JSON))
        else:
            yield choose.choice(makers)()
