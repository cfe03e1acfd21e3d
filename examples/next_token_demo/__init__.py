"""Parts of the next-token demonstration; ``examples/next_token.py`` is the command line."""
