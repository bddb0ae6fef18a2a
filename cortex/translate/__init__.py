"""Dialects to conversations and back, pure and sans-IO.

Owns the conversation (ordered blocks in, ordered events out), what each dialect makes of it, and
the words of each dialect's errors. Knows no sockets, no models, no tokenizers.
"""
