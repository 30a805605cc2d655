"""A durable Durable Task scheduler for one machine: gRPC, SQLite. See docs/scheduler.md."""
