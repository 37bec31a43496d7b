"""Needs `pip install vlm-par-hf`. After `import vlm_par_hf`, loading needs no trust_remote_code."""

from vlm_par_hf import VlmParConfig


__all__ = ["VlmParConfig"]
