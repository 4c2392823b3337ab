"""Our side as an OAuth client of authorization servers: fetching, metadata, proving who we are, asking for tokens."""
