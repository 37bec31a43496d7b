"""The command `vlm-par`: a file per command."""

from .main import build_parser, main


__all__ = ["build_parser", "main"]
