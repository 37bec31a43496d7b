"""`ParMetrics` with the interface of `evaluate.Metric`. `evaluate` copies this file and imports the copy.

import evaluate
from vlm_par_hf.par_metrics import PATH

metric = evaluate.load(PATH, schema=model.config.schema)
for batch in batches:
    metric.add_batch(predictions=model(**batch).logits, references=batch["labels"])
metric.compute()["mA"]
"""

import datasets
import evaluate
import numpy as np

from vlm_par_hf.errors import ParValueError
from vlm_par_hf.labels.schema import AttributeSchema
from vlm_par_hf.labels.tables import get_schema
from vlm_par_hf.metrics.attributes import ParMetrics, one_array


_DESCRIPTION = "Metrics of pedestrian attribute recognition, each published convention under its own name."
_INPUTS = """
Args:
    predictions: logits `(N, A, C)`, or `(N, A)` where every attribute is binary.
    references: int64 `(N, A)`, class index per attribute, -100 = unknown.
Returns:
    mA, plain_accuracy, accuracy_macro, instance_accuracy, instance_precision, instance_recall, instance_f1_harmonic,
    instance_f1_mean, label_f1_macro, f1_micro, f1_weighted, auc_macro, average_precision_macro: floats in 0 to 1,
    larger is better.
"""


# Not `from evaluate import Metric`: `evaluate.load` takes the first metric class that it finds in this file's
# namespace.
class ParMetric(evaluate.Metric):
    """The same numbers as `ParMetrics(schema, preset, threshold, inputs=inputs)((predictions, references))`.

    Args:
        schema: `AttributeSchema`, a list of dicts, or the name of a schema of this package (`"pa100k"`).
        preset, threshold, inputs: as for `ParMetrics`.
        args, kwargs: as for `evaluate.Metric`.

    Raises:
        ValueError: no schema, or as for `ParMetrics`.
    """

    def __init__(self, *args, schema=None, preset="rethinking", threshold=None, inputs="logits", **kwargs):
        if schema is None:
            raise ParValueError('schema is None, expected one: evaluate.load(PATH, schema="pa100k" or a schema)')
        schema = get_schema(schema) if isinstance(schema, str) else AttributeSchema(schema)
        self._metrics = ParMetrics(schema, preset, threshold, inputs=inputs)
        super().__init__(*args, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        def features(predictions):
            return datasets.Features({"predictions": predictions, "references": labels})

        labels = datasets.List(datasets.Value("int64"))
        row = datasets.List(datasets.Value("float64"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_INPUTS,
            features=[features(datasets.List(row)), features(row)],
        )

    def add_batch(self, *, predictions=None, references=None, **kwargs):
        """Adds the logits and labels of a batch: arrays, tensors of any dtype and device, lists, or the output of a
        model."""
        if predictions is not None:
            predictions = one_array("predictions", predictions, ndim=3)
        if references is not None:
            references = one_array("references", references, ndim=2)
        super().add_batch(predictions=predictions, references=references, **kwargs)

    def add(self, *, prediction=None, reference=None, **kwargs):
        """Adds the logits and labels of one image."""
        if prediction is not None:
            prediction = one_array("prediction", prediction, ndim=2)
        if reference is not None:
            reference = one_array("reference", reference, ndim=1)
        super().add(prediction=prediction, reference=reference, **kwargs)

    def _compute(self, *, predictions, references):
        return self._metrics((np.asarray(predictions, dtype=np.float64), np.asarray(references, dtype=np.int64)))
