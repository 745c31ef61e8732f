"""The benchmark harness: servers side by side, on the same weights, pictures and client.

``contenders`` starts and stops the servers, ``measure`` takes the figures of one start,
``report`` turns the figures of all starts into medians, ranges and ratios, ``session`` drives them.

A further contender is a subclass of ``Contender`` and an entry in ``CONTENDERS``; a further figure
is a key in the sample that ``measure`` returns and an entry in ``report.figures``.
"""
