"""`evaluate`'s evaluator for the task of this package: a model, a split and its metrics in one call.

from vlm_par_hf.par_metrics.par_evaluator import ParEvaluator

ParEvaluator().compute("your-name/your-checkpoint", data["test"])["mA"]
"""

from collections.abc import Mapping, Sequence
from typing import Any

import evaluate
import numpy as np
from transformers import Pipeline, pipeline

from . import PATH


__all__ = ["ParEvaluator"]


class ParEvaluator(evaluate.Evaluator):
    """`evaluate.evaluator("pedestrian-attributes")`, were it possible to register one.

    `evaluate.evaluator("image-classification")` takes one label per image and refuses our pipeline. What this leaves
    out is in `vlm_par_hf.training.evaluate`: intervals, the table per attribute, a record of the run, and a check that
    data and model mean the same attributes.

    Args:
        batch_size: images per forward pass.
    """

    def __init__(self, batch_size: int = 16):
        super().__init__("pedestrian-attributes")
        self.PIPELINE_KWARGS = {"batch_size": batch_size}
        self._schema = None

    def compute(
        self, model_or_pipeline=None, data=None, *, metric=None, input_column="image", label_column="labels", **kwargs
    ) -> dict[str, float]:
        """Measures a model.

        Args:
            model_or_pipeline: checkpoint folder or repository, or a pipeline of this task; None: the embedded model.
            data: split (`datasets.Dataset`), or the name of a data set on the Hub.
            metric: the metric of `PATH`, loaded with `inputs="probabilities"`; None: that, with the model's schema.
            input_column: pictures, one person each.
            label_column: int64 `(A,)` per row, class index per attribute, -100 = unknown.
            kwargs: `subset`, `split` and `device` of `evaluate.Evaluator.compute`.

        Returns:
            The metrics, `total_time_in_seconds`, `samples_per_second` and `latency_in_seconds`.

        Raises:
            ValueError: no such column; a pipeline for another task; `metric` reads logits; labels of another number of
                attributes; `strategy="bootstrap"`.
        """
        if kwargs.get("strategy", "simple") != "simple":
            raise ValueError(
                f"strategy={kwargs['strategy']!r}: expected 'simple'; vlm_par_hf.training.evaluate has the intervals"
            )
        return super().compute(
            model_or_pipeline,
            data,
            metric=metric,
            input_column=input_column,
            label_column=label_column,
            **kwargs,
        )

    def prepare_pipeline(self, model_or_pipeline, tokenizer=None, feature_extractor=None, device=None) -> Pipeline:
        # Not the inherited one: it asks transformers for TensorFlow classes, which version 5 has no more.
        pipe = model_or_pipeline
        if not isinstance(pipe, Pipeline):
            pipe = pipeline(self.task, **({} if pipe is None else {"model": pipe}), device=device)
        if pipe.task != self.task:
            raise ValueError(f"model_or_pipeline is a pipeline for {pipe.task!r}, expected one for {self.task!r}")
        self._schema = pipe.model.config.schema
        return pipe

    def prepare_metric(self, metric):
        if metric is None:
            return evaluate.load(PATH, schema=self._schema, inputs="probabilities")
        if getattr(getattr(metric, "_metrics", None), "inputs", "probabilities") != "probabilities":
            raise ValueError(
                'metric reads logits, but a pipeline answers with probabilities: load it with inputs="probabilities"'
            )
        return super().prepare_metric(metric)

    def predictions_processor(self, predictions: Sequence[Mapping[str, Any]], label_mapping) -> dict[str, np.ndarray]:
        """Probabilities `(N, A, C)` of the pipeline's answers; 0 past an attribute's own labels."""
        found = np.zeros((len(predictions), len(self._schema), self._schema.max_labels))
        for row, answer in enumerate(predictions):
            for column, attribute in enumerate(self._schema):
                probabilities = answer["attributes"][attribute.name]["probabilities"]
                found[row, column, : attribute.num_labels] = [probabilities[label] for label in attribute.labels]
        return {"predictions": found}
