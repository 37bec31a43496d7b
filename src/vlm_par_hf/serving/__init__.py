"""A service over HTTP: `vlm-par serve`, of the extra `serve`. Handler, batcher and tensors know nothing of HTTP."""
