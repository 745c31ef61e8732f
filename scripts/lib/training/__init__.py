"""Training: ``dataset`` (folders → pictures → splits), ``features`` (frozen features), ``trainer`` (epochs)."""
