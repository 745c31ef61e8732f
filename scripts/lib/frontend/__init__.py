"""What TorchServe's frontend lacks: a Java agent, ``agent.jar``, of which the server's JVM is told.

The archived TorchServe bundles Netty 4.1.53, which takes forms of any number of fields
(CVE-2024-29025): one request of 31 MB made the frontend grow to 6 GB and killed a worker. It
answers ``OPTIONS /predictions/densenet`` with a description that is wrong. ``densenet/FrontendAgent.java``
tells how the agent changes that. ``python3 -m scripts.lib.frontend`` compiles it anew with javac 17; a
test compiles it and compares the bytes.
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
        command = [javac, "--release", "17", "-g:none", "-cp", str(frontend), "-d", temporary, *sources]
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
