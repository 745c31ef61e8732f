"""Tests: ``unit`` without a server, in seconds; ``e2e`` against the real TorchServe."""
