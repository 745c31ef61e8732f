"""The report that people look at: figures, curves and mistakes of a model on one HTML page."""
