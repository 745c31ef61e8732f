"""Long tests, commands for people: each prints its figures and exits with 1 where a promise wasn't kept.

CI runs the short form of each (``tests/e2e``, ``tests/deployment``).
"""
