"""Servers under test, and what they are made of."""
