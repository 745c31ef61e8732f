"""Everything that runs inside a TorchServe worker; packed into the model archive as it is.

The data flow, one module a step::

    request row ─ payload ─▶ picture bytes ─ images ─▶ RGB image ─ preprocessing ─▶ uint8 array
        ─ preprocessing ─▶ float tensor ─ network ─▶ logits ─ topk ─▶ predictions ─ responses ─▶ answer

Beside it, ``explanation`` tells where the network looked, and ``page`` is what browsers get.
``densenet_handler`` drives it, ``card`` says what the model is, ``errors`` says what went wrong.
Nothing in here imports from ``scripts``: the archive works without the repository.
"""

import sys

# OpenVINO and NNCF do without this package, by which they would report every start to Google Analytics. The line stands
# here because the block must come before any import of them, whoever makes it.
sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]
