"""The worker: hosts a user's app and publishes what its runs do. See docs/guide/apps.md."""
