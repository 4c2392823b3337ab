"""Two MCP servers in one FastAPI app, governed by the six members, and an agent that calls them."""
