#!/usr/bin/env python3
"""Put a new model beside the one that is served, check it, and make it the default; no request is lost.

    python3 scripts/build_archive.py --weights runs/pets --model-version 2.0
    python3 scripts/deploy.py model_store/densenet-2.0.mar --golden golden.csv
    python3 scripts/deploy.py model_store/densenet-3.0.mar --golden golden.csv --sha256 HEX   # from elsewhere
    python3 scripts/deploy.py --list
    python3 scripts/deploy.py --rollback
    python3 scripts/deploy.py --remove 1.0

The golden pictures are a CSV file with the columns path,label,probability: pictures, relative to the file, with
the label and the least probability (0 to 1) that a good model gives them. An archive that fails one is removed
again, and the old one goes on serving. The server is one that serve.py started on this machine.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.lib.console import CommandError, say
from scripts.lib.environment import run
from scripts.lib.options import add_port_option, add_sha256_option, version_number


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``deploy.py``."""
    parser = argparse.ArgumentParser(
        prog="deploy.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("archive", type=Path, nargs="?", help="archive in the server's model store")
    what.add_argument("--list", action="store_true", help="print the versions")
    what.add_argument("--rollback", action="store_true", help="make the version the default that was it before")
    what.add_argument("--remove", type=version_number, metavar="VERSION", help="end a version that isn't the default")
    parser.add_argument("--golden", type=Path, metavar="FILE", help="CSV with the golden pictures; an archive needs it")
    add_sha256_option(parser)
    add_port_option(parser)
    return parser


def main(args: argparse.Namespace) -> int:
    """Deploy, list, roll back or remove."""
    from scripts.lib.deployment import deploy, read_golden, remove, roll_back
    from scripts.lib.server import find_server

    if bool(args.archive) != bool(args.golden):
        build_parser().error("an archive and --golden FILE belong together: no version is deployed unchecked")
    server = find_server(args.port)
    if server is None:
        raise CommandError(
            f"no server of this project runs on port {args.port}; start one with: python3 scripts/serve.py, "
            "or name its --port"
        )
    if args.list:
        default = server.management.status().version
        for model in server.management.versions():
            mark = "default" if model.version == default else "beside it"
            workers = f"{model.ready} of {len(model.workers)} workers READY"
            say(f"{model.version}\t{mark}\t{workers}\t{model.archive}")
    elif args.rollback:
        now, before = roll_back(server)
        say(f"version {now} is the default again; {before} is kept, --rollback changes back")
    elif args.remove:
        remove(server, args.remove)
        say(f"version {args.remove} is removed; its archive stays in the model store")
    else:
        version = deploy(server, args.archive, read_golden(args.golden), args.sha256)
        say(f"version {version} is the default; the one before is kept: --rollback changes back, --remove ends it")
        elsewhere = f" --sha256 {args.sha256}" if args.sha256 else ""
        say(f"after a restart, too: python3 scripts/serve.py --weights {args.archive}{elsewhere}")
    return 0


if __name__ == "__main__":
    run(build_parser, main)
