"""What the commands share. ``environment`` and ``console`` run on a bare Python; the rest needs ``.venv``."""
