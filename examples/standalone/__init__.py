"""The gateway as processes of its own, and how to replace them while calls go on.

``gateway.yaml``, ``policy.yaml``   what you would copy
``__main__.py``                     two replicas and a rolling deployment: ``python -m examples.standalone``
``library.py``                      the same gateway as an ASGI application in a process of yours
"""
