"""The commands, and what is answered, against the real TorchServe."""
