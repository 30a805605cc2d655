"""One folder a pattern, each a module that a user could copy; `all` has them all."""
