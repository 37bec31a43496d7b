"""Sharing: pushing to the Hub, model cards, and the files by which transformers finds this package."""
