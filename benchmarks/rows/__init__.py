"""The suite ``rows``: loss and gradient of given logits."""
