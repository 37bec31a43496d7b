"""Needs vlm_par_hf (`pip install .` in a clone of its repository); after `import vlm_par_hf`, no trust_remote_code."""

from vlm_par_hf import VlmParModel


__all__ = ["VlmParModel"]
