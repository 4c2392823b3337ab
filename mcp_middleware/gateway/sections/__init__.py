"""The sections of the gateway's file, each in the module of its name: its keys, what their values must be, and what is
made of them. ``keys`` puts them together; what several of them mean together is for ``config``."""
