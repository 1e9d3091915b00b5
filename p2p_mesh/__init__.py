"""meshnode: several machines, one OpenAI endpoint."""

__version__ = "0.1.0"
