"""Between messages and tokens: tokenizer, chat template, and the one pipeline from generated tokens
to what a client is told (content, reasoning, tool calls).

Knows neither torch nor HTTP nor trio; it reads files only where a directory is opened. Everything
that comes from a checkpoint (tokenizer, template) is treated as untrusted.
"""
