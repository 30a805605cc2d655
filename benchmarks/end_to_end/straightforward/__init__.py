"""The straightforward build: what FastStream's and the Durable Task SDK's documentation teach, together."""
