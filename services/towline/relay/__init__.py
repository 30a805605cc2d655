"""The relay: one resumable stream per run over SSE, HTTP in, the index of runs. See docs/architecture.md.

In: `consumer` reads lifecycle events and outcomes from Kafka, `projection` (pure) says what each means,
`store` writes it to Redis with the scripts in `scripts/`. Out: `hub` reads each run's stream once for all its
clients, `streaming` sends it, `index` answers lookups. `routes` is the HTTP door, `commands` publishes.
"""
