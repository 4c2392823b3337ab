"""A server's own credential, per upstream: never the caller's token (F1)."""
