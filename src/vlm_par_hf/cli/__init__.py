"""The command `vlm-par`; each of its commands is a file."""

from .main import build_parser, main


__all__ = ["build_parser", "main"]
