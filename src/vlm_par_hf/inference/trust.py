"""How far the answers of the models that ship can be trusted, in one sentence."""

from pathlib import Path
from typing import Any

from vlm_par_hf.utils import EMBEDDED_KINDS, embedded_path, read_json_object


__all__ = ["trust_note"]

_BETTER = (
    "Better on your pictures: heads trained on your own crops over a real SigLIP 2 backbone, "
    "`vlm-par train folder --root CROPS --backbone google/siglip2-base-patch16-naflex --out model`."
)


def trust_note(model: Any) -> str | None:
    """What was measured of a model that ships, and which command makes a better one; None for every other model.

    The warning of the pipeline, the answers of `vlm-par predict` and the captions of its pictures hold this sentence.

    Args:
        model: a model, of which `name_or_path` counts.
    """
    name = getattr(model, "name_or_path", None)
    folders = [embedded_path(kind) for kind in EMBEDDED_KINDS if kind.startswith("heads")]
    folder = next((one for one in folders if name and Path(name).resolve() == one.resolve()), None)
    if folder is None:
        return None
    record = read_json_object(folder / "metrics.json") or {}
    if "metrics" not in record:
        return f"Small embedded model, of which nothing was measured. {_BETTER}"
    metrics, data = record["metrics"], record["data"]
    if data["synthetic"]:
        measured = f"{data['images']:,} rendered people; nothing was measured on photographs"
    else:
        measured = f"{data['images']:,} test photographs of PA-100K"
        if "mA_min_positives" in metrics:
            measured += (
                f"; mA over the {len(record['min_positives']['attributes'])} attributes that enough of them show"
            )
    numbers = [
        f"{label} {100 * metrics[key]:.0f}"
        for key, label in (("mA_min_positives", "mA"), ("mA", "mA"), ("auc_macro", "AUC"))
        if metrics.get(key) is not None and not (key == "mA" and "mA_min_positives" in metrics)
    ]
    return f"Small embedded model: {', '.join(numbers)} (chance 50) on {measured}. {_BETTER}"
