"""Registers the model families with transformers' Auto classes, and the task; `import vlm_par_hf` does this."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
)

from vlm_par_hf.errors import ParError, ParValueError
from vlm_par_hf.families import FAMILIES, find_family, trainable_families
from vlm_par_hf.inference.pipelines import register_pipeline
from vlm_par_hf.retrieval.configuration_retriever import RetrieverConfig
from vlm_par_hf.retrieval.modeling_retriever import AttributeRetriever
from vlm_par_hf.upstream import refuse_auto_class


__all__ = ["get_family", "register", "register_families"]

# Auto classes whose models answer with one label of a picture -> what to take besides `AutoModel`.
UNFIT = {
    AutoModelForImageClassification: "",
    AutoModelForZeroShotImageClassification: "; attributes in words of your own are given in a call of that "
    "pipeline, attributes=['wearing a red scarf', ...]",
}


def get_family(name: str) -> tuple[type, type, type]:
    """Configuration, model and processor class of a family that can be trained.

    Args:
        name: its `model_type`, one of `trainable_families()`.

    Raises:
        ValueError: there is no such family.
    """
    if name not in trainable_families():
        raise ParValueError(f"family={name!r}: expected one of {', '.join(trainable_families())}")
    return find_family(name).load()


def register() -> None:
    """Makes the families and the task known to transformers. A second call changes nothing."""
    register_families()
    register_pipeline()


def register_families() -> None:
    """Registers every family with `AutoConfig`, `AutoModel` and `AutoProcessor`, and has Auto classes that do not fit
    name those that do; and the retrieval head. A second call changes nothing."""
    AutoConfig.register(RetrieverConfig.model_type, RetrieverConfig, exist_ok=True)
    AutoModel.register(RetrieverConfig, AttributeRetriever, exist_ok=True)
    for family in FAMILIES:
        config_class, model_class, processor_class = family.load()
        AutoConfig.register(family.model_type, config_class, exist_ok=True)
        AutoModel.register(config_class, model_class, exist_ok=True)
        if processor_class is not None:
            AutoProcessor.register(config_class, processor_class, exist_ok=True)
        for unfit, hint in UNFIT.items():
            # No ValueError or TypeError: pipeline() collects these and shows them under tracebacks.
            error = ParError(
                f"{unfit.__name__} is for models that give a picture one label, and a {family.model} gives each "
                "person one label per attribute: load it with AutoModel.from_pretrained(...), or with "
                f'pipeline("pedestrian-attributes", model=...){hint}'
            )
            refuse_auto_class(unfit, config_class, error)
