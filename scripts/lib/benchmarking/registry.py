"""A contender's name → the contender."""

from __future__ import annotations

from scripts.lib.benchmarking.alternatives import Alternative
from scripts.lib.benchmarking.bare import Bare
from scripts.lib.benchmarking.contenders import Contender
from scripts.lib.benchmarking.names import Wanted
from scripts.lib.benchmarking.torchserve import Ours, Stock


def make_contender(wanted: Wanted) -> Contender:
    """What ``wanted`` names. Without a number ours and stock have one worker, those after them one a core."""
    if wanted.kind in ("ours", "stock"):
        return (Ours if wanted.kind == "ours" else Stock)(wanted.name, wanted.workers or 1)
    if wanted.kind in ("ours-default", "stock-default"):
        return (Ours if wanted.kind == "ours-default" else Stock)(wanted.name, None)
    if wanted.kind == "bare":
        return Bare(wanted.name, wanted.workers)
    return Alternative(wanted.name, wanted.kind, wanted.workers)
