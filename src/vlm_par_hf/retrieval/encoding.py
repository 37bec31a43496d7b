"""`PersonEncoder`: from pictures of people to what a gallery holds of them, and from queries to vectors."""

import hashlib
import json
import os
import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from vlm_par_hf.annotation.annotator import Annotator, Chunk, add_model
from vlm_par_hf.base.decisions import label_probabilities
from vlm_par_hf.errors import ParValueError, argument_in_errors
from vlm_par_hf.inference.predicting import predict_batch
from vlm_par_hf.utils import read_json_object

from .gallery import GalleryInfo
from .modeling_retriever import AttributeRetriever
from .queries import Query
from .texts import encode_free_text, text_encoder
from .vectors import model_hash


__all__ = ["PersonEncoder"]

_SENSITIVE_WORDS = re.compile(
    r"\b((wo)?m[ae]n|(fe)?males?|boys?|girls?|lad(y|ies)|gentlem[ae]n|guys?|child(ren)?|kids?|bab(y|ies)|toddlers?|"
    r"infants?|teen(ager)?s?|elderly|seniors?|grandmothers?|grandfathers?)\b",
    re.IGNORECASE,
)


class PersonEncoder(Annotator):
    """An `Annotator` that answers with `{"probabilities", "embedding", "height", "quality"}` for each person.

    Args:
        model: a recogniser (folder or repository), whose `image_embeds` are the vectors; or a retrieval head that
            `vlm-par train-retrieval` made, which names its recogniser. None: the embedded model.
        recognizer: the recogniser of a retrieval head that lies elsewhere now.
        options: of `Annotator`: `batch_size`, `device`, `dtype`, `detector`, `box_margin`, ...
    """

    def __init__(
        self, model: str | os.PathLike | None = None, *, recognizer: str | os.PathLike | None = None, **options: Any
    ):
        head = None if model is None else read_json_object(Path(model) / "config.json")
        self.retriever_name = None
        if head is not None and head.get("model_type") == "par_retriever":
            self.retriever_name = os.fspath(model)
            model = recognizer or head.get("recognizer")
            if model is None:
                raise ParValueError(f"{self.retriever_name} names no recogniser: pass it (recognizer=, --recognizer)")
        elif recognizer is not None:
            raise ParValueError(f"recognizer={os.fspath(recognizer)!r} is for a retrieval head, and {model!r} is none")
        super().__init__(model, **options)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "retriever"}

    @property
    def arguments(self) -> dict[str, Any]:
        found = super().arguments
        for name in self.answer_options:
            del found[name]
        if self.retriever_name is None:
            return found
        return {**found, "model": os.path.abspath(self.retriever_name), "recognizer": found["model"]}

    @cached_property
    def retriever(self) -> Any:
        """The retrieval head, loaded at the first use; None without one.

        Raises:
            ValueError: it was trained on another recogniser or label space.
        """
        if self.retriever_name is None:
            return None
        with argument_in_errors("model", self.retriever_name):
            head = AttributeRetriever.from_pretrained(self.retriever_name).eval()
        if [(one.name, one.labels) for one in head.schema] != [(one.name, one.labels) for one in self.schema]:
            raise ParValueError(
                f"{self.retriever_name} was trained for another label space than {self.model} has: "
                f"{'; '.join(head.schema.diff(self.schema)[:3])}"
            )
        if head.config.recognizer_hash not in (None, model_hash(self.pipe.model)):
            raise ParValueError(
                f"{self.retriever_name} was trained over {head.config.recognizer!r}, and {self.model!r} has other "
                "weights: pass the recogniser that it was trained over (recognizer=, --recognizer)"
            )
        if head.config.soft_weight and head.config.text_form == "flatten":  # it reads whole sentences
            encoder = text_encoder(head.config.text_model, self.pipe.model, self.pipe.processor)
            head.set_text_encoder(encoder, encode=False)
        return head.to(self.pipe.model.device)

    @property
    def schema(self):
        """The label space, with the thresholds that answers are decided by."""
        return self.pipe.label_space

    def info(self) -> GalleryInfo:
        """What the rows of a gallery are made with; loads the model."""
        model, processor = self.pipe.model, self.pipe.processor.image_processor
        settings = {key: value for key, value in processor.to_dict().items() if not key.startswith("_")}
        processor_digest = hashlib.blake2b(json.dumps(settings, sort_keys=True, default=str).encode(), digest_size=16)
        name = "embedded" if self.model is None else self.model
        fingerprint = _digest_of(model)
        if self.retriever is None:
            embedding = {"source": "image_embeds", "name": name, "fingerprint": fingerprint}
            size = self.embed([Image.new("RGB", (64, 128))]).shape[1]
        else:
            embedding = {"source": "retriever", "name": self.retriever_name, "fingerprint": _digest_of(self.retriever)}
            size = self.retriever.config.embedding_size
        return GalleryInfo(
            self.schema, name, fingerprint, processor_digest.hexdigest(), {**embedding, "size": size},
            model.config.decisions,
        )  # fmt: skip

    def answer(self, chunk: Chunk) -> list[dict[str, Any]]:
        outputs = predict_batch(self.pipe.model, chunk.inputs, embed=True, names=chunk.names)
        probabilities = label_probabilities(outputs["logits"], self.pipe.model.config.schema)
        vectors = outputs["image_embeds"]
        if self.retriever is not None:
            vectors = self.retriever.embed_images(vectors, probabilities).cpu()
        vectors = torch.nn.functional.normalize(vectors.float(), dim=-1)
        certainty = probabilities.amax(-1).mean(-1)
        return [
            {"probabilities": p, "embedding": v, "height": height, "quality": float(q)}
            for p, v, height, q in zip(probabilities.numpy(), vectors.numpy(), chunk.heights, certainty)
        ]

    def embed(self, images: Sequence[Any]) -> np.ndarray:
        """The vectors of pictures of one person each, float32 `(B, D)`, of length 1.

        Raises:
            ValueError: one cannot be read.
        """
        found = []
        for position, (people, error) in enumerate(self.stream(self.batches(images))):
            if error is not None:
                raise ParValueError(f"picture {position} cannot be read: {error}")
            if len(people) != 1:
                raise ParValueError(f"picture {position} has {len(people)} people, expected a picture of one")
            found.append(people[0]["embedding"])
        return np.stack(found)

    def embed_text(self, text: str, *, allow_sensitive: bool = False) -> np.ndarray:
        """The vector of words by the text tower of the model, float32 `(D,)`: comparable with `image_embeds` of a
        backbone that learned from pictures and texts.

        Args:
            text: words, such as "a person with a red scarf".
            allow_sensitive: admit words for gender and age, as far as a list of words knows them.

        Raises:
            ValueError: a word for gender or age; the gallery's vectors are those of a retrieval head, or the model has
                no text tower.
        """
        if self.retriever is not None:
            raise ParValueError(
                "free text is compared with the vectors of a backbone, and these are of a retrieval head: ask for "
                "attributes, or index with the recogniser itself as --model"
            )
        word = _SENSITIVE_WORDS.search(text)
        if word is not None and not allow_sensitive:
            raise ParValueError(
                f"the text says {word[0]!r}: searching people by perceived gender or age is a decision to take on "
                "purpose (allow_sensitive=True, --allow-sensitive)"
            )
        return encode_free_text([text], self.pipe.model, self.pipe.processor)[0].float().cpu().numpy()

    def embed_query(self, query: Query, scoring: str = "adapters") -> np.ndarray:
        """The vector of a query by the adapters of the retrieval head, float32 `(D,)`.

        Args:
            query: of this label space.
            scoring: `"adapters"`, `"adapters_hard"` or `"adapters_soft"`.

        Raises:
            ValueError: there is no retrieval head, or it was not trained for that part.
        """
        if self.retriever is None:
            raise ParValueError(
                f"score={scoring!r} needs a retrieval head, and {self.model or 'the embedded model'} is a recogniser: "
                "train one (vlm-par train-retrieval) and index with it"
            )
        return self.retriever.embed_queries([query], part=scoring.partition("_")[2] or "both")[0].float().cpu().numpy()


def _digest_of(model: torch.nn.Module) -> str:
    """A digest of weights and configuration."""
    digest = hashlib.blake2b(digest_size=16)
    add_model(digest, model)
    return digest.hexdigest()
