"""From a checkpoint's files to an engine. Trusts no byte of them; knows no request."""
