"""Tool calls in generated text: a table of formats, a reader for the body of each, one streaming
machine that drives them. Knows text only; which tools exist and what they do is not its business.

A new family of models is a row in `formats` and, where its body is new, a class beside `hermes`.
"""
