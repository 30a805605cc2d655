"""The same job for each system: a message asks for a run, one agent answers, the result goes out on Kafka."""
