"""What attackers send."""
