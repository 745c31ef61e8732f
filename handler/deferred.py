"""Heavy imports that TorchServe and torchvision make for one name each, put off until that name is used.

torchvision imports ``torch._dynamo`` (and with it sympy and ``torch.distributed``) for a question that
``roi_align`` asks; TorchServe imports captum (and with it matplotlib) for its explanations, and
OpenVINO's backend of ``torch.compile`` where OpenVINO is installed. A worker here needs none of
them: half of its imports' time and 175 MB. OpenVINO itself is imported where it computes.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

HEAVY = {
    "torch._dynamo.utils": "is_compile_supported",
    "captum.attr": "IntegratedGradients",
    "openvino.torch": "backend",
    "openvino": "torch",  # `import openvino.torch` imports the package, too
}
"""Module to the one name that is taken from it."""


@contextmanager
def deferred() -> Iterator[None]:
    """While it lasts, the names in ``HEAVY`` are imported as functions that import the real ones when called.

    A package that is there already is left alone, and nothing remains in ``sys.modules``.
    """
    stand_ins = {}
    for module, name in HEAVY.items():
        if (module.rpartition(".")[0] or module) not in sys.modules:
            stand_ins[module] = ModuleType(module)
            setattr(stand_ins[module], name, _caller(module, name))
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for module, stand_in in stand_ins.items():
            if sys.modules.get(module) is stand_in:
                del sys.modules[module]


def _caller(module: str, name: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        return getattr(importlib.import_module(module), name)(*args, **kwargs)

    return call
