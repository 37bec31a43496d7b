"""`ParMetrics` as a module of `evaluate`: `evaluate.load(vlm_par_hf.par_metrics.PATH, schema=...)`.

`par_evaluator.ParEvaluator` is the evaluator for this task. `evaluate.evaluator(task)` only has evaluators for tasks
with one answer per image.
"""

from pathlib import Path


__all__ = ["PATH"]

PATH = str(Path(__file__).parent)
