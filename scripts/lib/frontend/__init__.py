"""What TorchServe's frontend lacks: a Java agent, ``agent.jar``, of which the server's JVM is told.

TorchServe is archived, so that what is wrong in it is mended here:

* a form may have any number of fields (CVE-2024-29025), and what can't be parsed stays in memory: ``FormDecoder``
* requests wait for ever where no worker can start or is free, and are computed for clients that are gone: ``Waiting``
* what a dead worker had is answered with 500, 507 or 413, and no 503 has a Retry-After: ``Answers``, ``Gate``
* a full queue is found out when the whole picture is in memory, and an idle connection stays: ``Gate``
* a request holds its worker until it is answered, however long that takes: ``DeferredJob``
* ``Connection: close`` and HTTP/1.0 are ignored, pipelined requests answered in any order: ``Gate``
* the queue counts requests, whatever their size, until the memory is full: ``Bodies``
* Java keeps what a burst of large bodies took of its heap: ``Waiting``
* an answer over gRPC that fails, by a stream or a client that is gone, ends its worker: ``GrpcJob``
* messages over gRPC arrive in any number, and fill the memory: ``GrpcGate``
* any folder of the machine is taken as a model, and a symbolic link is followed: ``StoredArchive``
* ``OPTIONS`` answers with a wrong description (``ModelDescription``), or with 500 (``PathDecoder``)
* what can't be decoded, such as a query, is answered with 403: ``Answers``

``densenet/FrontendAgent.java`` tells how these get in. ``python3 -m scripts.lib.frontend`` compiles them anew
with javac 17; a test compiles them and compares the bytes.
"""

from __future__ import annotations

import io
import subprocess
import tempfile
import zipfile
from pathlib import Path

FOLDER = Path(__file__).parent
AGENT = FOLDER / "agent.jar"
_EPOCH = (1980, 1, 1, 0, 0, 0)
_MANIFEST = b"Manifest-Version: 1.0\r\nPremain-Class: densenet.FrontendAgent\r\n\r\n"


def build_agent(javac: str, frontend: Path) -> bytes:
    """``agent.jar``, compiled from its sources; the same bytes from the same javac.

    Args:
        javac: the compiler, of a JDK 17.
        frontend: TorchServe's ``model-server.jar``.
    """
    with tempfile.TemporaryDirectory() as temporary:
        sources = sorted(map(str, (FOLDER / "densenet").glob("*.java")))
        command = [
            javac,
            "--release",
            "17",
            "-encoding",
            "UTF-8",
            "-g:none",
            "-cp",
            str(frontend),
            "-d",
            temporary,
            *sources,
        ]
        subprocess.run(command, check=True, capture_output=True)
        files = {"META-INF/MANIFEST.MF": _MANIFEST}
        for path in sorted(Path(temporary).rglob("*.class")):
            files[path.relative_to(temporary).as_posix()] = path.read_bytes()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as jar:
        for name, content in files.items():
            jar.writestr(zipfile.ZipInfo(name, _EPOCH), content)
    return buffer.getvalue()


def frontend_jar() -> Path:
    """TorchServe's Java half, in the installed package."""
    import importlib.util

    spec = importlib.util.find_spec("ts")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent / "frontend" / "model-server.jar"
