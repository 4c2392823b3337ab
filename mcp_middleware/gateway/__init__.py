"""The standalone gateway: the members stacked in front of a forwarder, one endpoint for many agents and many servers."""
