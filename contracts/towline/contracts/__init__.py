"""The wire contract: events, codec, topics, client. Knows no service."""
