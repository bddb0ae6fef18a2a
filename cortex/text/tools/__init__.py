"""Tool calls in generated text: a table of formats, a reader for each way to write a call, one
streaming machine that drives them, and the grammars that force calls. Knows text only.

A new family of models is a row in `formats` and, where it writes calls as no other does, a reader.
"""
