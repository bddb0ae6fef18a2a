"""A handful of GPU hosts as one OpenAI- and Anthropic-compatible API."""

__version__ = "0.1.0"
