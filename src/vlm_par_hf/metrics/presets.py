"""Conventions for the metrics of pedestrian attribute recognition: thresholds, and what counts where nothing
occurs."""

from dataclasses import dataclass

from vlm_par_hf.errors import ParValueError


__all__ = ["METRIC_NAMES", "PRESETS", "MetricPreset"]

METRIC_NAMES = (
    "mA",
    "plain_accuracy",
    "accuracy_macro",
    "instance_accuracy",
    "instance_precision",
    "instance_recall",
    "instance_f1_harmonic",
    "instance_f1_mean",
    "label_f1_macro",
    "f1_micro",
    "f1_weighted",
    "auc_macro",
    "average_precision_macro",
)


@dataclass(frozen=True)
class MetricPreset:
    """One convention.

    Args:
        threshold: a binary attribute is predicted "yes" if its probability is strictly above it.
        empty_image: how an image counts without any true (or predicted) attribute. `"zero"`: its recall (or precision)
            is 0; without both, its accuracy and F1 are 0 too. `"skip"`: it is left out of the mean of that metric.
        absent_label: how mA counts a binary attribute of which one label never occurs in the ground truth. `"zero"`:
            that label's recall is 0, so mA is half of the other recall. `"skip"`: mA is the other recall.
        published_f1: the key of the metric that papers with this convention call F1.
        ranked_by: the key of the metric by which they rank methods.

    Raises:
        ValueError: a value is not allowed.
    """

    threshold: float = 0.5
    empty_image: str = "zero"
    absent_label: str = "zero"
    published_f1: str = "instance_f1_harmonic"
    ranked_by: str = "mA"

    def __post_init__(self):
        if not 0 <= self.threshold <= 1:
            raise ParValueError(f"threshold={self.threshold!r}, expected a probability in [0, 1]")
        for name in ("empty_image", "absent_label"):
            if getattr(self, name) not in ("zero", "skip"):
                raise ParValueError(f"{name}={getattr(self, name)!r}, expected 'zero' or 'skip'")
        for name in ("published_f1", "ranked_by"):
            if getattr(self, name) not in METRIC_NAMES:
                raise ParValueError(f"{name}={getattr(self, name)!r}, expected one of {', '.join(METRIC_NAMES)}")


PRESETS = {
    # Jia et al., "Rethinking of Pedestrian Attribute Recognition"; also used by fast-reid, SOLIDER-PAR, PaddleClas.
    "rethinking": MetricPreset(),
    # Li et al., RAP: the MATLAB evaluation published with the data set. For a label that never occurs, that code
    # replaces the denominator 0 by 1, so its recall is 0.
    "rap": MetricPreset(empty_image="skip"),
    # Cheng et al., VTB, and the projects built on its code: PromptPAR, SequencePAR, LLM-PAR, VTF.
    "vtb": MetricPreset(threshold=0.45, published_f1="instance_f1_mean"),
    # The PAR contests of MIVIA (CAIP 2023, 2025): the accuracy of each of five attributes over the images that have a
    # label of it, and the mean of the five.
    "mivia": MetricPreset(ranked_by="accuracy_macro"),
}
