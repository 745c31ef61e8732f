"""The agent in TorchServe's frontend: what lies in git is what its sources say."""

from __future__ import annotations

import zipfile

from scripts.lib.frontend import AGENT, FOLDER, build_agent, frontend_jar
from tests.support.machine.programs import program


def test_the_jar_is_compiled_from_its_sources() -> None:
    javac = program("javac", package="openjdk-17-jdk-headless")
    assert AGENT.read_bytes() == build_agent(javac, frontend_jar()), (
        "compile it anew with JDK 17: .venv/bin/python -m scripts.lib.frontend"
    )


def test_every_source_is_in_the_jar() -> None:
    with zipfile.ZipFile(AGENT) as jar:
        names = set(jar.namelist())
    assert {f"densenet/{source.stem}.class" for source in (FOLDER / "densenet").glob("*.java")} <= names
