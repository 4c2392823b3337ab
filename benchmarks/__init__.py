"""What the members cost, measured against the same server without them and against one hop through nginx."""
