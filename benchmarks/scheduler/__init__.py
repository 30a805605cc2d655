"""The durable scheduler beside the SDK's in-memory backend: one machine, one run, the same stock worker."""
