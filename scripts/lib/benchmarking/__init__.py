"""The benchmark harness: ways to serve side by side, on the same weights, pictures and client.

``names`` reads ``--contenders``, ``registry`` makes them: ``torchserve`` (ours and the stock example),
``alternatives`` (programs in ``apps``, their packages from ``packages``) and ``bare`` (no server).
``subject`` is the model that all compute. ``measure`` takes the figures of one start, ``report`` turns
those of all starts into medians, ranges and ratios, ``plots`` draws them, ``session`` drives it all.

A further server is a subclass of ``HttpContender``, an entry in ``names`` and one in ``registry``; a
further figure is a key in the sample that ``measure`` returns and an entry in ``report.figures``.
"""
