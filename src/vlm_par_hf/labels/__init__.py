"""The label space: attributes, published tables, checks of labels, and the rule from scores to answers. NumPy only."""
