"""See docs/architecture.md for what this part does and does not do."""
