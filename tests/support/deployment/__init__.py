"""Images, containers and manifests for tests."""
