"""Compile ``limits.jar`` anew."""

from __future__ import annotations

import shutil
import sys

from scripts.lib.frontend import LIMITS, build_limits, frontend_jar

javac = shutil.which("javac")
if not javac:
    sys.exit("error: no javac here; install a JDK 17, on Debian by: apt-get install openjdk-17-jdk-headless")
LIMITS.write_bytes(build_limits(javac, frontend_jar()))
print(LIMITS)
