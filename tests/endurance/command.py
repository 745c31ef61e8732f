"""The shape of a command here: a server of its own, something that is done to it, figures, an exit code."""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from scripts.lib.environment import run
from scripts.lib.options import positive

if TYPE_CHECKING:
    from tests.endurance.promises import Report
    from tests.support.servers.running import Running

Judge = Callable[["Running", argparse.Namespace], "Report"]


def new_parser(file: str, description: str | None) -> argparse.ArgumentParser:
    """The command line of a command in ``file``, without options yet."""
    return argparse.ArgumentParser(
        prog=Path(file).name, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def run_on_server(
    judge: Judge,
    add_options: Callable[[argparse.ArgumentParser], object],
    workers: int = 2,
    apart: bool = False,
) -> None:
    """Run a command whose ``judge`` does something to a server of its own; exit with 1 if a promise wasn't kept.

    Args:
        judge: what is done; its module's docstring describes the command.
        add_options: adds the options that ``judge`` reads.
        workers: of the server, by default.
        apart: this process gets a core for itself, where there are several: what the client does takes nothing from
            the server, as if it were on another machine.
    """

    def build_parser() -> argparse.ArgumentParser:
        parser = new_parser(inspect.getfile(judge), inspect.getdoc(inspect.getmodule(judge)))
        _add_all(parser, add_options, workers)
        return parser

    def main(args: argparse.Namespace) -> int:
        import tempfile
        from contextlib import nullcontext

        from tests.support.machine.processes import core_of_its_own
        from tests.support.servers.running import serving

        with (
            core_of_its_own() if apart else nullcontext(lambda: None) as move,
            tempfile.TemporaryDirectory(prefix="densenet-endurance-") as store,
            serving(Path(store), "--workers", str(args.workers)) as server,
        ):
            move()
            report = judge(server, args)
        print(report.text())
        return 1 if report.broken() or report.slow() else 0

    run(build_parser, main, development=True)


def options(add_options: Callable[[argparse.ArgumentParser], object], *arguments: str) -> argparse.Namespace:
    """What a ``judge`` reads, as a command line gives it: for the short form, on a server that runs already."""
    parser = argparse.ArgumentParser()
    _add_all(parser, add_options, workers=2)
    return parser.parse_args(arguments)


def _add_all(
    parser: argparse.ArgumentParser, add_options: Callable[[argparse.ArgumentParser], object], workers: int
) -> None:
    add_options(parser)
    parser.add_argument(
        "--workers", type=positive, default=workers, metavar="N", help=f"of the server (default {workers})"
    )
