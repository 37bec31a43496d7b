"""Opening pictures of any kind, and preparing them for a vision tower."""

from .opening import BACKGROUND, MAX_PIXELS, describe_image_source, is_image_file, open_image, open_images


__all__ = ["BACKGROUND", "MAX_PIXELS", "describe_image_source", "is_image_file", "open_image", "open_images"]
