"""The gRPC server around engine and store."""
