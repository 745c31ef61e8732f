"""Fast tests without a server: a module each for what it tests."""
