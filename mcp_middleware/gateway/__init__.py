"""The standalone gateway: the members stacked before a forwarder, one endpoint for many agents and many servers."""
