"""The retrieval head of CLEAR (Bui et al., 2024, section 3.3): people and attribute queries in one space.

Three small adapters are trained on the vectors of a frozen recogniser: of pictures, of hard queries (the labels as
numbers) and of soft queries (a sentence, read by a frozen language model). Where the paper contradicts itself:

- The visual embedding has o entries and both queries o / 2 each. The visual one is split in halves [v_h; v_s], each of
  unit length, and so are h and s: the similarity of concatenated query and person is (cos(v_h, h) + cos(v_s, s)) / 2.
- Equation 8 has a parenthesis too few and applies sigma twice. It is ArcFace (Deng et al., 2019) with the margin on
  the positive query only: `softmax(sigma cos(alpha + gamma), sigma cos(alpha'), ...)` over all categories of the
  training split.
- E^p of equation 10 is E^v of equation 9, and its adapters are as in figure 3: f_text for soft queries, f_attr for
  hard ones.

Letters: B people, W width of an image vector, K categories, A attributes, L labels of all attributes, o embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from transformers.utils import ModelOutput

from vlm_par_hf.base.modeling import HUB_KEYS, check_keys, loading_weights
from vlm_par_hf.errors import ParValueError, check_folder, unreadable
from vlm_par_hf.hub.pushing import PushToHub
from vlm_par_hf.hub.remote_code import write_remote_code
from vlm_par_hf.labels.schema import UNKNOWN_LABEL
from vlm_par_hf.upstream import TransformersModel, init

from .configuration_retriever import RetrieverConfig
from .queries import Query
from .scoring import label_weights, weights_of_labels
from .templates import find_template
from .texts import TextEncoder


__all__ = ["PARTS", "AttributeRetriever", "RetrieverOutput", "margin_loss"]

PARTS = ("both", "hard", "soft")
_ROWS = 4096  # of queries that are embedded at a time


@dataclass
class RetrieverOutput(ModelOutput):
    """What `AttributeRetriever` returns.

    Args:
        loss: float32 scalar, equation 10; None without labels.
        embeddings: float32 `(B, o)`, of unit length.
    """

    loss: torch.Tensor | None = None
    embeddings: torch.Tensor | None = None


class Layer(nn.Linear):
    """A linear layer in front of a ReLU or at the end of an adapter."""

    def init_parameters(self) -> None:
        init.kaiming_normal_(self.weight, nonlinearity="relu")
        init.zeros_(self.bias)


class Adapter(nn.Module):
    """Three linear layers, in -> 4 o -> o -> o, with ReLU between them."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.first = Layer(width, 4 * size)
        self.second = Layer(4 * size, size)
        self.third = Layer(size, size)

    def finish(self, first: torch.Tensor) -> torch.Tensor:
        """All after the first linear layer."""
        return self.third(F.relu(self.second(F.relu(first))))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.finish(self.first(inputs))


def margin_loss(
    people: torch.Tensor,
    queries: torch.Tensor,
    target: torch.Tensor,
    *,
    scale: float,
    margin: float,
    ignored: torch.Tensor | None = None,
) -> torch.Tensor:
    """The additive angular margin of ArcFace, on the positive query only (equation 8).

    Args:
        people: `(B, o)`, of unit length.
        queries: `(K, o)`, of unit length: those of all categories.
        target: int64 `(B,)`, the category of each person.
        scale: sigma.
        margin: gamma, an angle.
        ignored: bool `(B, K)`, pairs that are neither positive nor negative.

    Returns:
        Scalar, the mean over people.
    """
    cosine = (people @ queries.T).clamp(-1, 1)
    positive = cosine.gather(1, target[:, None])
    sine = (1 - positive.square()).clamp_min(1e-8).sqrt()
    with_margin = positive * np.cos(margin) - sine * np.sin(margin)  # cos(angle + margin)
    logits = scale * cosine.scatter(1, target[:, None], with_margin)
    if ignored is not None:
        logits = logits.masked_fill(ignored.scatter(1, target[:, None], False), float("-inf"))
    return F.cross_entropy(logits, target)


class AttributeRetriever(PushToHub, TransformersModel):
    """The retrieval head over the image vectors of a frozen recogniser of this package.

    Args:
        config: its `attributes` must be set.

    Raises:
        ValueError: `config.attributes` is None.
    """

    config_class = RetrieverConfig
    base_model_prefix = "retriever"
    main_input_name = "image_embeds"
    supports_gradient_checkpointing = False

    def __init__(self, config: RetrieverConfig) -> None:
        super().__init__(config)
        self.schema = config.schema
        self.template = find_template(self.schema, config.template)
        config.template = self.template.name
        size, num_labels = config.embedding_size, sum(self.schema.num_labels)
        width = config.image_width + (num_labels if config.uses_probabilities else 0)
        self.visual_adapter = Adapter(width, size)
        # An affine map of the inputs, set from the training split: pooled vectors are not normalised.
        self.register_buffer("input_mean", torch.zeros(width))
        self.register_buffer("input_scale", torch.ones(width))
        # The attribute vectors of the training split, which the loss compares with and which are called seen.
        self.register_buffer("categories", torch.zeros(config.num_categories, len(self.schema), dtype=torch.int64))
        if config.hard_weight:
            self.hard_adapter = Adapter(num_labels, size // 2)
        if config.soft_weight:
            if config.text_form == "flatten":
                self.soft_adapter = Adapter(config.text_length * config.text_width, size // 2)
            else:
                self.soft_adapter = Adapter(len(self.template.slots) * config.text_width, size // 2)
                self.register_buffer("word_embeds", torch.zeros(len(self.template.words), config.text_width))
        self.text_encoder: TextEncoder | None = None
        self._states: dict[str, torch.Tensor] = {}
        self.post_init()

    def init_parameters(self) -> None:
        init.zeros_(self.input_mean)
        init.ones_(self.input_scale)
        init.zeros_(self.categories)
        if hasattr(self, "word_embeds"):
            init.zeros_(self.word_embeds)

    @property
    def parts(self) -> tuple[str, ...]:
        """Of `PARTS` those that it was trained for."""
        if not self.config.hard_weight:
            return ("soft",)
        return PARTS if self.config.soft_weight else ("hard",)

    # Texts

    def set_text_encoder(self, encoder: TextEncoder, *, encode: bool = True) -> None:
        """Takes the language model of soft queries.

        Args:
            encoder: see `text_encoder`.
            encode: encode the words of the template now, for a fresh head; a loaded one has its words.

        Raises:
            ValueError: vectors of another width than the configuration's.
        """
        self.text_encoder = encoder
        self._states.clear()
        if not encode or not hasattr(self, "word_embeds"):
            return
        texts = [word.text for word in self.template.words]
        vectors = encoder.embed_words(texts) if self.config.text_form == "words" else encoder.encode(texts)
        if vectors.shape[1] != self.config.text_width:
            raise ParValueError(f"text_width={self.config.text_width}, and the encoder gives {vectors.shape[1]}")
        # A language model gives short texts much alike; what they have in common says nothing.
        vectors = vectors - vectors.mean(0)
        self.word_embeds.copy_(vectors / vectors.square().mean().sqrt().clamp_min(1e-6))

    # Embeddings

    def image_vectors(self, image_embeds: Any, probabilities: Any = None) -> torch.Tensor:
        """The input of the visual adapter, float32 `(B, W)`.

        Args:
            image_embeds: `(B, image_width)`, `ParOutput.image_embeds` of the recogniser, or numbers like it.
            probabilities: `(B, A, C)` or `(B, L)`, for `uses_probabilities`; else not looked at.

        Raises:
            ValueError: probabilities are missing, or a shape does not fit.
        """
        vectors = torch.as_tensor(image_embeds).to(self.device, torch.float32)
        if vectors.ndim != 2 or vectors.shape[1] != self.config.image_width:
            raise ParValueError(
                f"image_embeds have shape {tuple(vectors.shape)}, expected (B, {self.config.image_width}): is it the "
                f"recogniser that this head was trained on ({self.config.recognizer_type})?"
            )
        if not self.config.uses_probabilities:
            return vectors
        if probabilities is None:
            raise ParValueError("probabilities is None: this head reads them too, expected (B, A, C) or (B, L)")
        flat = torch.as_tensor(probabilities).to(self.device, torch.float32)
        if flat.ndim == 3:
            flat = flat[:, torch.from_numpy(self.schema.label_mask()).to(flat.device)]
        if flat.shape != (len(vectors), sum(self.schema.num_labels)):
            raise ParValueError(
                f"probabilities have shape {tuple(flat.shape)}, expected ({len(vectors)}, "
                f"{sum(self.schema.num_labels)})"
            )
        return torch.cat([vectors, flat], 1)

    def _see(self, vectors: torch.Tensor) -> torch.Tensor:
        """Visual embeddings `(B, o)`, each half of unit length."""
        return _unit_halves(self.visual_adapter((vectors - self.input_mean) * self.input_scale))

    @torch.no_grad()
    def embed_images(self, image_embeds: Any, probabilities: Any = None) -> torch.Tensor:
        """People in the space of queries: float32 `(B, o)`, of unit length.

        Args and errors as of `image_vectors`. The inner product with `embed_queries` is the similarity, and the one
        with another picture says how alike two people look, as far as attributes say it.
        """
        vectors = self.image_vectors(image_embeds, probabilities)
        return torch.cat([self._see(part) for part in vectors.split(_ROWS)]) / 2**0.5

    def _ask(self, labels: torch.Tensor, part: str) -> torch.Tensor:
        """Queries `(Q, L)` in one half of the space, `(Q, o / 2)`, of unit length."""
        if part == "hard":
            found = self.hard_adapter(labels)
        elif self.config.text_form == "flatten":
            found = self.soft_adapter(self._sentence_states(labels))
        else:
            found = self._ask_slots(labels)
        return F.normalize(found, dim=-1)

    def _ask_slots(self, labels: torch.Tensor) -> torch.Tensor:
        """The soft adapter on one vector per slot. Its first layer is linear and each slot holds shares of few words,
        so it is applied to the words, of which there are far fewer than queries times slots; the result is the same.
        """
        first = self.soft_adapter.first
        weight = first.weight.unflatten(1, (len(self.template.slots), -1))  # (4 o, slots, d)
        slots = torch.tensor([word.slot for word in self.template.words], device=weight.device)
        table = torch.einsum("owd,wd->wo", weight[:, slots], self.word_embeds)
        shares = torch.from_numpy(self.template.weights(labels.cpu().numpy())).to(table)
        return self.soft_adapter.finish(shares @ table + first.bias)

    def _sentence_states(self, labels: torch.Tensor) -> torch.Tensor:
        """The flattened states of each query's sentence, which are kept."""
        if self.text_encoder is None:
            raise ParValueError(
                "this head reads whole sentences (text_form='flatten') and has no text encoder: call "
                "set_text_encoder(text_encoder(retriever.config.text_model, model, processor), encode=False) first"
            )
        sentences = self.template.sentences(labels.cpu().numpy())
        missing = sorted({one for one in sentences if one not in self._states})
        for start in range(0, len(missing), 64):
            part = missing[start : start + 64]
            self._states.update(zip(part, self.text_encoder.states(part, self.config.text_length).flatten(1)))
        return torch.stack([self._states[one] for one in sentences]).to(labels)

    @torch.no_grad()
    def embed_queries(self, queries: Sequence[Query] | np.ndarray, *, part: str = "both") -> torch.Tensor:
        """Queries in the space of people: float32 `(Q, o)`, of unit length.

        Args:
            queries: of this label space; or whole attribute vectors, integers `(Q, A)`, -100 = open.
            part: `"hard"` or `"soft"`: this half alone, the other one is 0; `"both"`.

        Raises:
            ValueError: the head was not trained for that part, or a query is of another label space.
        """
        if part not in self.parts:
            raise ParValueError(f"part={part!r}, but this head was trained for {', '.join(self.parts)}")
        if isinstance(queries, np.ndarray):
            weights = weights_of_labels(queries, self.schema)
        else:
            weights = label_weights(queries, self.schema)
        labels = torch.from_numpy(weights).to(self.device)
        half = self.config.embedding_size // 2
        found = labels.new_zeros(len(labels), 2 * half)
        for place, one in enumerate(("hard", "soft")):
            if part in ("both", one):
                asked = [self._ask(rows, one) for rows in labels.split(_ROWS)]
                found[:, place * half : (place + 1) * half] = torch.cat(asked)
        return F.normalize(found, dim=-1)

    # Training

    def forward(
        self,
        image_embeds: torch.Tensor,
        probabilities: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        *,
        open_attributes: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> RetrieverOutput:
        """Embeddings of people and, with labels, the loss of equation 10.

        Args:
            image_embeds, probabilities: as for `image_vectors`.
            labels: int64 `(B, A)`: rows of `categories`, -100 = unknown, which a query leaves open. Other categories
                that agree with a person as far as both are known are no negatives.
            open_attributes: bool `(A,)`, what all queries of this step leave open beside. The paper's queries leave
                nothing open, and those of users nearly everything.

        Raises:
            ValueError: a row of labels is no category of the training split, or a shape does not fit.
        """
        vectors = self._see(self.image_vectors(image_embeds, probabilities))
        loss = None if labels is None else self._loss(vectors, labels.to(self.device), open_attributes)
        return RetrieverOutput(loss, vectors / 2**0.5)

    def _loss(self, vectors, labels, open_attributes) -> torch.Tensor:
        categories = self.categories
        if open_attributes is not None:
            open_attributes = open_attributes.to(self.device)
            labels = labels.masked_fill(open_attributes, UNKNOWN_LABEL)
            categories = categories.masked_fill(open_attributes, UNKNOWN_LABEL).unique(dim=0)
        same = (labels[:, None] == categories).all(-1)  # (B, K)
        if not bool(same.any(1).all()):
            row = int((~same.any(1)).nonzero()[0])
            raise ParValueError(f"labels of row {row} are no category of the training split (`categories`)")
        unknown = (labels == UNKNOWN_LABEL)[:, None] | (categories == UNKNOWN_LABEL)
        ignored = ((labels[:, None] == categories) | unknown).all(-1)
        target = same.int().argmax(1)
        queries = torch.from_numpy(weights_of_labels(categories.cpu().numpy(), self.schema)).to(self.device)
        config, halves = self.config, dict(zip(("hard", "soft"), vectors.chunk(2, -1)))
        options = {"scale": config.scale, "margin": config.margin, "ignored": ignored}
        weights = {"hard": config.hard_weight, "soft": config.soft_weight}
        losses = [
            weight * margin_loss(halves[part], self._ask(queries, part), target, **options)
            for part, weight in weights.items()
            if weight
        ]
        return torch.stack(losses).sum()

    @torch.no_grad()
    def fit_inputs(self, vectors: torch.Tensor) -> None:
        """Sets the affine map of the inputs: mean 0 and variance 1 over training vectors `(N, W)`."""
        self.input_mean.copy_(vectors.mean(0))
        self.input_scale.copy_(1 / vectors.std(0, correction=0).clamp_min(1e-4))

    # Saving and loading

    def _save_files(self, save_directory: str | Path, **kwargs: Any) -> None:
        classes = {"AutoConfig": "RetrieverConfig", "AutoModel": "AttributeRetriever"}
        self.config.auto_map = write_remote_code(save_directory, self.config.model_type, **classes)
        super()._save_files(save_directory, **kwargs)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, *model_args: Any, **kwargs: Any) -> Self:
        """As `PreTrainedModel.from_pretrained`.

        Raises:
            ValueError: the folder holds another kind of model, a tensor is missing or unknown, or a file is damaged.
            OSError: the checkpoint does not exist, or a file is missing.
        """
        name = pretrained_model_name_or_path
        with_info = kwargs.pop("output_loading_info", False)
        access = {key: kwargs[key] for key in HUB_KEYS if key in kwargs}
        check_folder(name)
        if kwargs.get("config") is None:
            with unreadable(name, "config.json"):
                saved, _ = RetrieverConfig.get_config_dict(name, **access)
            if saved.get("model_type") != RetrieverConfig.model_type:
                raise ParValueError(
                    f"{name} holds a {saved.get('model_type')!r} model, expected {RetrieverConfig.model_type!r}, as "
                    "`vlm-par train-retrieval` writes it"
                )
        with loading_weights(name) as report:
            try:
                model, info = super().from_pretrained(name, *model_args, output_loading_info=True, **kwargs)
            except RuntimeError as error:
                raise ParValueError(f"{name}: the weights do not fit the configuration: {error} {report}") from error
        check_keys(name, info["missing_keys"], info["unexpected_keys"])
        return (model, info) if with_info else model


def _unit_halves(vectors: torch.Tensor) -> torch.Tensor:
    return torch.cat([F.normalize(half, dim=-1) for half in vectors.chunk(2, -1)], -1)
