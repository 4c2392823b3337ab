"""Governance for MCP servers as composable ASGI middleware."""
