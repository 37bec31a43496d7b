"""Encoders of the words of soft queries and of free text: a recogniser's own text tower, or any model of the Hub."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoTokenizer

from vlm_par_hf.base.modeling import evaluation_mode
from vlm_par_hf.errors import ParValueError, argument_in_errors
from vlm_par_hf.utils import shorten


__all__ = ["BackboneTexts", "HubTexts", "TextEncoder", "encode_free_text", "text_encoder"]


class TextEncoder(ABC):
    """A frozen language model.

    Attributes:
        name: of the model on the Hub; None: the recogniser's own text tower.
    """

    name: str | None = None

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> torch.Tensor:
        """One vector per text, float32 `(T, d)`."""

    @abstractmethod
    def embed_words(self, texts: Sequence[str]) -> torch.Tensor:
        """The mean of the input embeddings of the tokens of each text, float32 `(T, d)`."""

    @abstractmethod
    def states(self, texts: Sequence[str], length: int) -> torch.Tensor:
        """The last states of `length` tokens of each text, float32 `(T, length, d)`; 0 behind its end.

        Raises:
            ValueError: a text has more tokens.
        """


def _check_length(texts: Sequence[str], counts: Sequence[int], length: int) -> None:
    for text, count in zip(texts, counts):
        if count > length:
            raise ParValueError(
                f"the sentence {shorten(text)} has {count} tokens, and text_length={length} is all that is kept: "
                "expected a larger text_length, fewer attributes, or text_form='slots', which has no such limit"
            )


class BackboneTexts(TextEncoder):
    """The text tower of a recogniser.

    Args:
        model: a recogniser over a vision-language backbone.
        processor: its processor.

    Raises:
        ValueError: it has no text tower.
    """

    def __init__(self, model: nn.Module, processor: Any) -> None:
        if not hasattr(getattr(model, "vlm", None), "text_model"):
            raise ParValueError(
                f"a {type(model).__name__} has no text tower: name a language model of the Hub for soft queries "
                "(text_model=, --text-model), or train with hard queries only (soft_weight=0, --soft-weight 0)"
            )
        self.model, self.processor = model, processor

    def _tokens(self, texts: Sequence[str]) -> torch.Tensor:
        return self.processor(text=list(texts), return_tensors="pt")["input_ids"].to(self.model.device)

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> torch.Tensor:
        with evaluation_mode(self.model):
            return self.model.get_text_features(self._tokens(texts)).pooler_output.float().cpu()

    @torch.no_grad()
    def embed_words(self, texts: Sequence[str]) -> torch.Tensor:
        ids = self._tokens(texts)
        kept = (ids != self.model.config.text_pad_token_id).unsqueeze(-1)
        vectors = self.model.vlm.text_model.get_input_embeddings()(ids).float() * kept
        return (vectors.sum(1) / kept.sum(1).clamp_min(1)).cpu()

    @torch.no_grad()
    def states(self, texts: Sequence[str], length: int) -> torch.Tensor:
        ids = self._tokens(texts)
        full = self.processor.tokenizer(list(texts), truncation=False)["input_ids"]
        room = min(length, ids.shape[1])
        _check_length(texts, [len(one) for one in full], room)
        with evaluation_mode(self.model):
            states = self.model.get_text_features(ids).last_hidden_state.float()
        states = states * (ids != self.model.config.text_pad_token_id).unsqueeze(-1)
        found = states.new_zeros(len(states), length, states.shape[-1])
        found[:, :room] = states[:, :room]
        return found.cpu()


class HubTexts(TextEncoder):
    """A language model of the Hub or of a folder; its vector of a text is the mean of its last states.

    Args:
        name: repository or folder.

    Raises:
        OSError: it cannot be loaded.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        with argument_in_errors("text_model", name):
            self.tokenizer = AutoTokenizer.from_pretrained(name)
            self.model = AutoModel.from_pretrained(name).eval()
        self.model = getattr(self.model, "text_model", self.model)  # of a CLIP or SigLIP, its text tower alone

    def _tokens(self, texts: Sequence[str], **options: Any) -> Any:
        return self.tokenizer(list(texts), padding=True, return_tensors="pt", **options)

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> torch.Tensor:
        tokens = self._tokens(texts, truncation=True)
        return _masked_mean(self.model(**tokens).last_hidden_state.float(), tokens["attention_mask"])

    @torch.no_grad()
    def embed_words(self, texts: Sequence[str]) -> torch.Tensor:
        tokens = self._tokens(texts, truncation=True)
        return _masked_mean(self.model.get_input_embeddings()(tokens["input_ids"]).float(), tokens["attention_mask"])

    @torch.no_grad()
    def states(self, texts: Sequence[str], length: int) -> torch.Tensor:
        tokens = self._tokens(texts)
        _check_length(texts, tokens["attention_mask"].sum(1).tolist(), length)
        states = self.model(**tokens).last_hidden_state.float() * tokens["attention_mask"].unsqueeze(-1)
        found = states.new_zeros(len(states), length, states.shape[-1])
        found[:, : states.shape[1]] = states[:, :length]
        return found


def _masked_mean(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    mask = mask.unsqueeze(-1).to(states.dtype)
    return (states * mask).sum(1) / mask.sum(1).clamp_min(1)


def text_encoder(name: str | None, model: nn.Module, processor: Any) -> TextEncoder:
    """The encoder of that name; None: the text tower of the recogniser `model`."""
    return BackboneTexts(model, processor) if name is None else HubTexts(name)


def encode_free_text(texts: Sequence[str], model: nn.Module, processor: Any) -> torch.Tensor:
    """Free text in the space of a recogniser's pooled pictures: unit vectors, float32 `(T, E)`, to be compared with
    `ParOutput.image_embeds`.

    Raises:
        ValueError: an empty text, or the recogniser has no text tower.
    """
    texts = [" ".join(text.split()) for text in texts]
    if not texts or not all(texts):
        raise ParValueError("texts holds an empty text, expected words such as 'a person in a red jacket'")
    return nn.functional.normalize(BackboneTexts(model, processor).encode(texts), dim=-1)
