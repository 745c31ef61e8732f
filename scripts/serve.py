#!/usr/bin/env python3
"""Serve a DenseNet: build the archive if needed, start TorchServe, wait until it answers.

    python3 scripts/serve.py                          # Ctrl-C stops it
    python3 scripts/serve.py --detach                 # leaves it running; scripts/stop.py stops it
    python3 scripts/serve.py --weights runs/pets      # a model of your own

    python3 scripts/serve.py --weights densenet.mar   # a finished archive, as it is; from elsewhere with --sha256

Inference listens on --host (default 127.0.0.1) and --port; management, metrics and gRPC stay on
127.0.0.1, on the four ports above. Stopping answers the requests that are under way.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from scripts.lib.console import CommandError, duration, say
from scripts.lib.environment import java_home, run
from scripts.lib.options import add_port_option, add_runtime_options, add_sha256_option, add_weights_options, positive

if TYPE_CHECKING:
    from handler.card import ModelCard


def build_parser() -> argparse.ArgumentParser:
    """The command line of ``serve.py``."""
    parser = argparse.ArgumentParser(
        prog="serve.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_weights_options(parser, archive=True)
    add_sha256_option(parser, "DENSENET_SHA256")
    add_runtime_options(parser)
    add_port_option(parser)
    add = parser.add_argument
    add("--host", default="127.0.0.1", metavar="ADDRESS", help="where inference listens; 0.0.0.0 for every network")
    add(
        "--management-host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="where management listens; any but loopback needs --token (default 127.0.0.1)",
    )
    add(
        "--metrics-host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help="where metrics listen, which no token protects; 0.0.0.0 for every network (default 127.0.0.1)",
    )
    add(
        "--cors-origin",
        metavar="ORIGIN",
        help="let pages of this origin ask the server, as https://shop.example; '*' for all (default: of none)",
    )
    add("--workers", type=positive, metavar="N", help="workers (default: one a core that has the memory, or one a GPU)")
    add("--token", action="store_true", help="ask for TorchServe's tokens on every request (see docs/configuration.md)")
    add("--detach", action="store_true", help="leave the server running and return")
    return parser


def main(args: argparse.Namespace) -> int:
    """Serve until the server is told to stop, or return as soon as it is READY (--detach)."""
    import time

    from scripts.lib.machine import default_workers
    from scripts.lib.server import check_start, start_server, stop_server, wait_until_ready
    from scripts.lib.serving import announce, check_served, stop_on_signals, wait_for_end, warm_up

    stop_on_signals()
    if not args.token and args.management_host not in ("127.0.0.1", "localhost", "::1"):
        raise CommandError(
            f"--management-host {args.management_host} would let everybody in that network control the server; "
            "add --token, or leave management on 127.0.0.1"
        )
    check_start(args.port, args.host, args.management_host, args.metrics_host)
    home = java_home()
    with ExitStack() as reading:  # until the server has read the archive, no other command writes it
        archive, card, built = _archive(args, reading)
        what = f"{card.name}, {card.num_classes} classes, {card.runtime} {card.precision}"
        say(f"{'built' if built else 'using'} {archive}: {what}")
        started = time.monotonic()
        server = start_server(
            archive.parent,
            home,
            args.port,
            args.host,
            args.management_host,
            args.workers or default_workers(),
            args.token,
            {"name": card.name, "weights_sha256": card.weights_sha256},
            metrics_host=args.metrics_host,
            archive=archive.name,
            cors_origin=args.cors_origin,
        )
        try:
            wait_until_ready(server)
            check_served(server, card)
            reading.close()
            warm_up(server)
            announce(server, card, duration(time.monotonic() - started))
            if args.detach:
                say(f"it runs in the background; stop it with: python3 scripts/stop.py{_port(args.port)}")
                return 0
            say("Ctrl-C stops it")
            wait_for_end(server)
        except KeyboardInterrupt:
            say("stopping …")
            stop_server(server)
            if args.detach:
                raise
            say("stopped")
        except BaseException:
            stop_server(server)
            raise
    return 0


def _archive(args: argparse.Namespace, reading: ExitStack) -> tuple[Path, ModelCard, bool]:
    """The archive to serve, its card, and whether it was built now.

    One that commands write stays as it is until ``reading`` ends.
    """
    if args.weights.endswith(".mar"):
        given = [
            f"--{name}"
            for name in ("arch", "runtime", "precision", "pictures")
            if getattr(args, name) != _default(name)
        ]
        if given:
            raise CommandError(
                f"{given[0]} can't change the finished archive {args.weights}; give it to build_archive.py, "
                "or name the model's folder with --weights"
            )
        from scripts.lib.packed import check_archive, packed_card

        archive = Path(args.weights)
        if archive.is_symlink():  # as in a volume of Kubernetes; TorchServe is started on the file itself
            archive = archive.resolve()
        check_archive(archive, args.sha256)
        return archive, packed_card(archive), False
    if args.sha256:
        raise CommandError(f"--sha256 is of a finished archive, and --weights {args.weights} is none; leave it out")
    from scripts.lib.archive import archive_in_use, ensure_archive
    from scripts.lib.precision import Wanted
    from scripts.lib.weights import resolve_weights

    reading.enter_context(archive_in_use(args.model_store))
    return ensure_archive(resolve_weights(args.weights, args.arch), args.model_store, Wanted.of(args))


def _default(name: str) -> object:
    return build_parser().get_default(name)


def _port(port: int) -> str:
    return "" if port == 5000 else f" --port {port}"


if __name__ == "__main__":
    run(build_parser, main)
