"""Everything that runs inside a TorchServe worker; packed into the model archive as it is.

The data flow, one module a step::

    request row ─ payload ─▶ picture bytes ─ images ─▶ RGB image ─ preprocessing ─▶ uint8 array
        ─ preprocessing ─▶ float tensor ─ network ─▶ logits ─ topk ─▶ predictions ─ responses ─▶ answer

Beside it, ``explanation`` tells where the network looked, and ``page`` is what browsers get.
``densenet_handler`` drives it, ``card`` says what the model is, ``errors`` says what went wrong.
Nothing in here imports from ``scripts``: the archive works without the repository.
"""
