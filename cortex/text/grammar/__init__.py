"""Structured output: from a wish (JSON Schema, regular expression, Lark) to masks over tokens."""
