"""What a team runs: image, front door, compose, monitoring, Kubernetes; each with the real programs."""
