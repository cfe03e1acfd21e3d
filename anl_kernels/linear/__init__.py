"""The classifier's head and its loss, fused over chunks of rows: the logits never exist whole."""
