"""An evaluator in the form of the `evaluate` library: measures a model on a split in one call.

from vlm_par_hf.par_metrics.par_evaluator import ParEvaluator

ParEvaluator().compute("your-name/your-checkpoint", data["test"])["mA"]
"""

from collections.abc import Mapping, Sequence
from typing import Any

import evaluate
import numpy as np
from transformers import Pipeline, pipeline

from vlm_par_hf.errors import ParValueError

from . import PATH


__all__ = ["ParEvaluator"]


class ParEvaluator(evaluate.Evaluator):
    """The evaluator for the task "pedestrian-attributes"; `evaluate` has no way to register it under that name.

    `evaluate.evaluator("image-classification")` takes one label per image and refuses our pipeline.
    `vlm_par_hf.training.evaluate` does more: intervals, a table per attribute, a record of the run, and a check that
    data and model have the same attributes.

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
            metric: the metric of `PATH`, loaded with `inputs="probabilities"`; None: it is loaded with the model's
                schema.
            input_column: column of pictures, one person each.
            label_column: column of int64 `(A,)` per row, class index per attribute, -100 = unknown.
            kwargs: `subset`, `split` and `device` of `evaluate.Evaluator.compute`.

        Returns:
            The metrics, `total_time_in_seconds`, `samples_per_second` and `latency_in_seconds`.

        Raises:
            ValueError: there is no such column, the pipeline is for another task, `metric` expects logits, the labels
                have another number of attributes, or `strategy="bootstrap"`.
        """
        if kwargs.get("strategy", "simple") != "simple":
            raise ParValueError(
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
        # The inherited method uses TensorFlow classes of transformers, which version 5 does not have.
        pipe = model_or_pipeline
        if not isinstance(pipe, Pipeline):
            pipe = pipeline(self.task, **({} if pipe is None else {"model": pipe}), device=device)
        if pipe.task != self.task:
            raise ParValueError(f"model_or_pipeline is a pipeline for {pipe.task!r}, expected one for {self.task!r}")
        self._schema = pipe.model.config.schema
        return pipe

    def prepare_metric(self, metric):
        if metric is None:
            return evaluate.load(PATH, schema=self._schema, inputs="probabilities")
        if getattr(getattr(metric, "_metrics", None), "inputs", "probabilities") != "probabilities":
            raise ParValueError(
                'metric reads logits, but a pipeline answers with probabilities: load it with inputs="probabilities"'
            )
        return super().prepare_metric(metric)

    def predictions_processor(self, predictions: Sequence[Mapping[str, Any]], label_mapping) -> dict[str, np.ndarray]:
        """Probabilities `(N, A, C)` from the pipeline's answers; 0 past an attribute's own labels."""
        table = np.zeros((len(predictions), len(self._schema), self._schema.max_labels))
        for row, answer in enumerate(predictions):
            for column, attribute in enumerate(self._schema):
                probabilities = answer["attributes"][attribute.name]["probabilities"]
                table[row, column, : attribute.num_labels] = [probabilities[label] for label in attribute.labels]
        return {"predictions": table}
