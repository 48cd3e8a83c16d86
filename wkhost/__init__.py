"""wkhost: a messaging server whose decisions are open to out-of-process plugins."""

__version__ = "0.1.0"
