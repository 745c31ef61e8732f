"""Tests: ``unit`` without a server, ``e2e`` against the real TorchServe, ``deployment`` of what runs around it.

``support`` is what they are made of, ``endurance`` long runs for people.
"""
