"""``python -m mcp_middleware.gateway``: the same as ``mcp-gateway``."""

import sys

from .cli import main

sys.exit(main())
