"""What the gateway costs beside others that stand in front of a server: nginx, the FastMCP proxy, ContextForge."""
