"""Parts of the causal language model study; ``examples/causal_lm.py`` is the command line."""
