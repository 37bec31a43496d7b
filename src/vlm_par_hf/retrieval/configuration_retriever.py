"""Configuration of the retrieval head."""

from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from vlm_par_hf.base.configuration import LabelSpaceConfig, check_dtype, check_own_number
from vlm_par_hf.errors import ParValueError

from .templates import TEMPLATES


__all__ = ["TEXT_FORMS", "RetrieverConfig"]

TEXT_FORMS = ("slots", "words", "flatten")
LARGEST_WIDTH = 1 << 20  # of an input of an adapter; with the paper's sentence of 48 states of 384 it is 18,432
LARGEST_CATEGORIES = 1 << 20


@strict
class RetrieverConfig(LabelSpaceConfig, PreTrainedConfig):
    """Settings of `AttributeRetriever`; the defaults are CLEAR's, section 3.3, but for `text_form`.

    Args:
        attributes: the label space of the recogniser.
        image_width: of the recogniser's vector of a picture.
        uses_probabilities: whether the probability of each label is a part of the image vector too.
        embedding_size: o, of the visual embedding; those of hard and soft queries have half of it.
        template: of soft queries, see `find_template`; None: the paper's where there is one.
        text_form: how the words of a soft query become its vector. `"slots"`: one vector per slot of the sentence,
            encoded on its own; `"words"`: the same of the encoder's input embeddings (the paper's ablation W);
            `"flatten"`: the last states of `text_length` tokens of the whole sentence (the paper). One tag of two
            tokens shifts all states behind it, which slots do not suffer from, and their vectors are encoded once.
        text_width: d, of a vector or state of the text encoder.
        text_length: N_w, for `"flatten"`.
        text_model: a model of the Hub that encodes the texts; None: the recogniser's own text tower.
        scale: sigma of equation 8.
        margin: gamma of equation 8.
        hard_weight, soft_weight: beta 1 and 2 of equation 10.
        open_share: the share of training steps in which some attributes are open (see `AttributeRetriever.forward`);
            0: none, as in the paper, where every query names all attributes.
        num_categories: how many attribute vectors the training split has.
        recognizer: the checkpoint whose image vectors it was trained on; None: unknown.
        recognizer_type: its `model_type`.
        recognizer_hash: of its weights.

    Raises:
        ValueError, TypeError: a value out of its range; names the field.
    """

    model_type = "par_retriever"
    free_at_load = (*LabelSpaceConfig.free_at_load, "recognizer", "open_share")

    attributes: Any = None
    decisions: Any = None
    image_width: int = 2048
    uses_probabilities: bool = False
    embedding_size: int = 256
    template: str | None = None
    text_form: str = "slots"
    text_width: int = 384
    text_length: int = 48
    text_model: str | None = None
    scale: float | int = 12.0
    margin: float | int = 0.2
    hard_weight: float | int = 0.3
    soft_weight: float | int = 0.7
    open_share: float | int = 0.0
    num_categories: int = 0
    recognizer: str | None = None
    recognizer_type: str | None = None
    recognizer_hash: str | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        self._take_attributes(kwargs)
        super().__post_init__(**kwargs)
        check_dtype(type(self).__name__, self)
        for name, largest in (("image_width", LARGEST_WIDTH), ("text_width", LARGEST_WIDTH)):
            if not 1 <= getattr(self, name) <= largest:
                raise ParValueError(f"{name} must be a whole number from 1 to {largest:,}, got {getattr(self, name)}")
        check_own_number("embedding_size", self.embedding_size, 2)
        check_own_number("text_length", self.text_length, 1)
        if self.embedding_size % 2:
            raise ParValueError(f"embedding_size must be even, for two halves, got {self.embedding_size}")
        for name, choices in (("text_form", TEXT_FORMS), ("template", (None, *TEMPLATES))):
            if getattr(self, name) not in choices:
                raise ParValueError(
                    f"{name}={getattr(self, name)!r:.40}, expected one of {', '.join(map(str, choices))}"
                )
        for name, low, high in (
            ("scale", 1e-3, 1e3), ("margin", 0, 1.5), ("hard_weight", 0, 1e3), ("soft_weight", 0, 1e3),
            ("open_share", 0, 1), ("num_categories", 0, LARGEST_CATEGORIES),
        ):  # fmt: skip
            if not low <= getattr(self, name) <= high:
                raise ParValueError(
                    f"{name} must be a number from {low:g} to {high:g}, got {getattr(self, name)!r:.40}"
                )
        if self.hard_weight == self.soft_weight == 0:
            raise ParValueError("hard_weight and soft_weight are both 0: there is nothing to train")
