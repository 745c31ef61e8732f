"""The commands of the project, one verb a file; what they share is in ``scripts.lib``."""
