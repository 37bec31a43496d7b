"""Publishing on the Hub: pushing, model cards, and the small files by which transformers finds this package."""
