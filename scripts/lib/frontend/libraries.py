"""What lies in TorchServe's ``model-server.jar``, which holds all its libraries in one and names few of them."""

from __future__ import annotations

import hashlib
import re
import zipfile
from pathlib import Path
from typing import NamedTuple

from scripts.lib.console import CommandError

JAR_SHA256 = "ce340411ce54beaacd3dcfa31644a9aa369a83a36ed687172ba1088a13123dfe"
"""Of torchserve 0.12.0's: the one that was examined."""


class Library(NamedTuple):
    """A library by its Maven coordinates; ``inferred``: its version is that of the dates of its files."""

    group: str
    name: str
    version: str
    inferred: bool = False


_READ = (
    Library("com.google.code.gson", "gson", "2.10.1"),
    Library("io.grpc", "grpc-core", "1.50.0"),
    Library("io.grpc", "grpc-netty-shaded", "1.50.0"),
    Library("io.grpc", "grpc-protobuf", "1.50.0"),
    Library("io.grpc", "grpc-stub", "1.50.0"),
    Library("junit", "junit", "4.13.2"),
    Library("org.apache.ant", "ant", "1.10.11"),
    Library("org.apache.logging.log4j", "log4j-api", "2.17.1"),
    Library("org.apache.logging.log4j", "log4j-core", "2.17.1"),
    Library("org.apache.logging.log4j", "log4j-slf4j-impl", "2.17.1"),
    Library("org.codehaus.groovy", "groovy", "3.0.9"),
    Library("org.webjars", "jquery", "3.5.1"),
)
_INFERRED = (
    Library("com.beust", "jcommander", "1.78", True),
    Library("com.google.guava", "guava", "31.1-jre", True),
    Library("com.google.protobuf", "protobuf-java", "3.21.7", True),
    Library("com.lmax", "disruptor", "3.4", True),
    Library("commons-cli", "commons-cli", "1.3.1", True),
    Library("commons-io", "commons-io", "2.16.1", True),
    Library("io.prometheus", "simpleclient", "0.9.0", True),
    Library("io.prometheus", "simpleclient_servlet", "0.9.0", True),
    Library("org.apache.commons", "commons-compress", "1.25.0", True),
    Library("org.slf4j", "slf4j-api", "1.7.32", True),
    Library("org.testng", "testng", "7.4.0", True),
    Library("org.yaml", "snakeyaml", "2.1", True),
)


def bundled_libraries(jar: Path) -> list[Library]:
    """The libraries in ``model-server.jar``, sorted; Netty's modules are read from it.

    Left out are annotations, and what came with Groovy and TestNG and says no version.

    Raises:
        CommandError: it is another jar than the one that was examined.
    """
    if hashlib.sha256(jar.read_bytes()).hexdigest() != JAR_SHA256:
        raise CommandError(f"{jar} isn't the one of torchserve 0.12.0, whose libraries are known; install that release")
    with zipfile.ZipFile(jar) as packed:
        versions = packed.read("META-INF/io.netty.versions.properties").decode()
    netty = re.findall(r"^(netty-[a-z0-9-]+)\.version=(\S+)", versions, re.MULTILINE)
    return sorted([*_READ, *_INFERRED, *(Library("io.netty", name, version) for name, version in set(netty))])
