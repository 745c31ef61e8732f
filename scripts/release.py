#!/usr/bin/env python3
"""Make the files of a release: the archive of the bundled model, its SHA-256, the SBOM, the image.

    python3 scripts/release.py               # into release/<version>
    python3 scripts/release.py --no-image    # where there is neither docker nor podman

Refuses a work tree with changes, a version without a dated section in CHANGELOG.md, a version whose tag is another
commit's, and a commit on which not everything was tested. The version stands in pyproject.toml.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.lib.console import CommandError, say
from scripts.lib.environment import run
from scripts.lib.paths import ROOT


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``release.py``."""
    parser = argparse.ArgumentParser(
        prog="release.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where they go (default release/<version>)")
    parser.add_argument("--no-image", action="store_true", help="leave the image out")
    return parser


def main(args: argparse.Namespace, root: Path = ROOT) -> int:
    """Check, then write the files."""
    from scripts.lib.releasing import engine, obstacles, write_files, write_image
    from scripts.lib.version import project_version

    version = project_version(root)
    builder = None if args.no_image else engine()
    if found := list(obstacles(root, version)):
        raise CommandError(f"{version} can't be released: {'; '.join(found)}")
    folder = args.out or root / "release" / version
    folder.mkdir(parents=True, exist_ok=True)
    write_files(root, folder)
    if builder:
        write_image(root, folder, version, builder)
    say(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
    say(f"release it: git tag -a v{version} -m v{version} && git push origin v{version}")
    return 0


if __name__ == "__main__":
    run(build_parser, main)
