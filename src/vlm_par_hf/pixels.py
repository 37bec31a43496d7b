"""`preprocess_images` under its public name; see `vlm_par_hf.images.preprocessing`."""

from vlm_par_hf.images.preprocessing import preprocess_images


__all__ = ["preprocess_images"]
