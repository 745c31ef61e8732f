#!/usr/bin/env python3
"""Run the default tier beside another copy of itself, and in surroundings that are not this project's.

python3 tests/endurance/neighbours.py               # twice in a row, half an hour on two cores
python3 tests/endurance/neighbours.py tests/unit    # of these tests

One copy goes as it is. The other goes backwards, with settings of a person in its environment, which lead
nowhere, and a proxy that isn't there. Ports 5000 to 5004 are taken, as they always are.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent))

from scripts.lib.console import say
from scripts.lib.environment import run
from scripts.lib.options import positive
from scripts.lib.paths import ROOT
from tests.endurance.command import new_parser

NOWHERE = "/nonexistent"
PERSON = {
    **dict.fromkeys(("DENSENET_CACHE", "DENSENET_RUN", "DENSENET_MODEL_STORE", "JAVA_HOME", "TORCH_HOME"), NOWHERE),
    **dict.fromkeys(("XDG_CACHE_HOME", "PYTHONPATH", "BASH_ENV"), NOWHERE),
    **dict.fromkeys(("DENSENET_WEIGHTS", "DENSENET_TORCH_INDEX", "DENSENET_LOG_SIZE", "MPLBACKEND"), "nonsense"),
    **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy"), "http://127.0.0.1:9"),
    **{"LC_ALL": "C", "TZ": "Pacific/Auckland", "COLUMNS": "40", "NO_COLOR": "1", "FORCE_COLOR": "1"},
    "JAVA_TOOL_OPTIONS": "-Dnothing=here",
}
"""What a person may have set."""
BACKWARDS = ("-p", "tests.support.backwards")
TAIL = 30
"""Lines of a run that failed."""


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``neighbours.py``."""
    parser = new_parser(__file__, __doc__)
    parser.add_argument("--rounds", type=positive, default=2, metavar="N", help="how often in a row (default 2)")
    parser.add_argument("tests", nargs="*", default=["tests"], metavar="FOLDER", help="which tests (default all)")
    return parser


def main(args: argparse.Namespace) -> int:
    """Run both copies to their end; 1 if a test failed, whose end of output is shown."""
    import os
    import subprocess
    import tempfile
    from contextlib import ExitStack

    command = [sys.executable, str(ROOT / "scripts" / "test.py"), *args.tests, "-q"]
    here = {**os.environ, "DENSENET_NO_VENV": "1"}
    failed = 0
    for number in range(1, args.rounds + 1):
        copies = [("as it is", command, here), ("backwards", [*command, *BACKWARDS], {**here, **PERSON})]
        with ExitStack() as stack:
            outputs = [stack.enter_context(tempfile.TemporaryFile("w+", errors="replace")) for _ in copies]
            running = [
                subprocess.Popen(line, stdout=output, stderr=subprocess.STDOUT, env=environment)
                for output, (_, line, environment) in zip(outputs, copies)
            ]
            for (name, _, _), output, copy in zip(copies, outputs, running):
                failed += copy.wait() != 0
                output.seek(0)
                say(f"round {number}, {name}: exit status {copy.returncode}")
                say("".join(output.readlines()[-(TAIL if copy.returncode else 3) :]))
    return 1 if failed else 0


if __name__ == "__main__":
    run(build_parser, main, development=True)
