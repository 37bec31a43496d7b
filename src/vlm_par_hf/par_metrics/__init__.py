"""`ParMetrics` as a module of `evaluate`: `evaluate.load(vlm_par_hf.par_metrics.PATH, schema=...)`.

`par_evaluator.ParEvaluator` is `evaluate`'s evaluator for the task; those of `evaluate.evaluator(task)` know only
tasks with one answer per image.
"""

from pathlib import Path


__all__ = ["PATH"]

PATH = str(Path(__file__).parent)
