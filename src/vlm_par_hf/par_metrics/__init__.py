"""`ParMetrics` as a module of `evaluate`: `evaluate.load(vlm_par_hf.par_metrics.PATH, schema=...)`."""

from pathlib import Path


__all__ = ["PATH"]

PATH = str(Path(__file__).parent)
