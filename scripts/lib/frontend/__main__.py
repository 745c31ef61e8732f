"""Compile ``agent.jar`` anew."""

from __future__ import annotations

import shutil
import sys

from scripts.lib.frontend import AGENT, build_agent, frontend_jar

javac = shutil.which("javac")
if not javac:
    sys.exit("error: no javac here; install a JDK 17, on Debian by: apt-get install openjdk-17-jdk-headless")
AGENT.write_bytes(build_agent(javac, frontend_jar()))
print(AGENT)
