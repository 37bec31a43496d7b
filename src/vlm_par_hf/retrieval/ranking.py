"""Scores of people for queries by name: one way for search, evaluation and benchmarks."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from vlm_par_hf.errors import ParValueError
from vlm_par_hf.labels.schema import AttributeSchema

from .queries import Query
from .scoring import (
    SCORINGS,
    SMALLEST_PROBABILITY,
    flat_probabilities,
    l1,
    label_weights,
    log_likelihood,
    weights_of_labels,
)
from .texts import encode_free_text


__all__ = ["rank_people", "text_vectors"]


def rank_people(
    scoring: str,
    queries: Sequence[Query] | np.ndarray,
    schema: AttributeSchema,
    *,
    probabilities: np.ndarray | None = None,
    image_embeds: np.ndarray | None = None,
    embeddings: np.ndarray | None = None,
    retriever: Any = None,
    model: Any = None,
    processor: Any = None,
) -> np.ndarray:
    """How well people fit queries; higher is better.

    Args:
        scoring: one of `SCORINGS`.
        queries: queries, or whole attribute vectors, integers `(Q, A)`, -100 = open.
        schema: the label space.
        probabilities: `(N, A, C)` or `(N, L)`, for log_likelihood, l1, and a head that reads them.
        image_embeds: `(N, D)` of the recogniser, for text, and for adapters without `embeddings`.
        embeddings: `(N, o)`, what `retriever.embed_images` gave.
        retriever: the head, for adapters.
        model, processor: the recogniser, for text.

    Returns:
        float `(Q, N)`.

    Raises:
        ValueError: another scoring, something that it needs is missing, or a shape does not fit.
    """
    if scoring not in SCORINGS:
        raise ParValueError(f"scoring {scoring!r}, expected {', '.join(SCORINGS)}")
    if scoring in ("log_likelihood", "l1"):
        _need(scoring, probabilities=probabilities)
        return _by_probabilities(scoring, queries, flat_probabilities(probabilities, schema), schema)
    if scoring == "text":
        _need(scoring, image_embeds=image_embeds, model=model, processor=processor)
        people = F.normalize(torch.as_tensor(image_embeds).float(), dim=-1)
        texts = text_vectors(queries, schema, model, processor)
        if texts.shape[1] != people.shape[1]:
            raise ParValueError(
                f"image_embeds have {people.shape[1]} entries and texts {texts.shape[1]}: the pooled pictures of this "
                "recogniser are not in the space of its text tower"
            )
        return (texts @ people.T).numpy()
    _need(scoring, retriever=retriever)
    if embeddings is None:
        _need(scoring, image_embeds=image_embeds)
        embeddings = retriever.embed_images(image_embeds, probabilities)
    part = {"adapters": retriever.parts[0], "adapters_hard": "hard", "adapters_soft": "soft"}[scoring]
    asked = retriever.embed_queries(queries, part=part)
    return (asked @ torch.as_tensor(embeddings).to(asked).T).cpu().numpy()


def _need(scoring: str, **given: Any) -> None:
    for name, value in given.items():
        if value is None:
            raise ParValueError(f"{name} is None, which scoring={scoring!r} needs")


def _by_probabilities(scoring, queries, flat: np.ndarray, schema: AttributeSchema) -> np.ndarray:
    if not isinstance(queries, np.ndarray):
        score = {"log_likelihood": log_likelihood, "l1": l1}[scoring]
        return np.stack([score(query, flat, schema) for query in queries])
    # Each condition names one label, so that all queries are one matrix product.
    flat = flat.astype(np.float64)
    values = np.log(np.clip(flat, SMALLEST_PROBABILITY, 1)) if scoring == "log_likelihood" else flat - 1
    return weights_of_labels(queries, schema).astype(np.float64) @ values.T


def text_vectors(
    queries: Sequence[Query] | np.ndarray, schema: AttributeSchema, model: Any, processor: Any
) -> torch.Tensor:
    """Queries in the space of pooled pictures: of the prompts of the labels that a query asks for the mean of the unit
    vectors, float32 `(Q, E)`. A sentence of them all would not fit into the text tower.

    Raises:
        ValueError: the recogniser has no text tower.
    """
    prompts = [prompt for attribute in schema for prompt in attribute.prompts]
    if isinstance(queries, np.ndarray):
        weights = weights_of_labels(queries, schema)
    else:
        weights = label_weights(queries, schema)
    return F.normalize(torch.from_numpy(weights) @ encode_free_text(prompts, model, processor), dim=-1)
