"""Two MCP servers in one FastAPI app, governed by the six members, and agents that call them.

``servers.py``                the two MCP servers, which know nothing of all this
``app.py``, ``policy.yaml``   the members around them: what you would write
``agent.py``, ``story.py``    the agents, and what they do
``__main__.py``               runs it all, with ``examples/authorization_server`` in place of your identity provider
"""
