"""How well people fit a query, from the probabilities of a recogniser's answers. NumPy only.

Everything here takes the probabilities as `(N, A, C)`, as the models give them (0 past an attribute's own labels), or
as `(N, L)`, one column per label of the schema, attribute after attribute.
"""

from collections.abc import Sequence

import numpy as np

from vlm_par_hf.errors import ParValueError
from vlm_par_hf.labels.decisions import decide
from vlm_par_hf.labels.schema import UNKNOWN_LABEL, AttributeSchema, check_label_range

from .queries import Condition, Query


__all__ = [
    "DEFAULT_SCORING",
    "SCORINGS",
    "SMALLEST_PROBABILITY",
    "condition_probabilities",
    "excluding_conditions",
    "flat_probabilities",
    "l1",
    "label_names",
    "label_weights",
    "log_likelihood",
    "matches",
    "weights_of_labels",
]

# The names of all ways to score people, the default first.
SCORINGS = ("log_likelihood", "l1", "adapters", "adapters_hard", "adapters_soft", "text")
DEFAULT_SCORING = SCORINGS[0]  # what benchmarks/retrieval.py says is best
SMALLEST_PROBABILITY = 1e-6  # so that one sure error does not decide alone, and logarithms stay finite


def label_names(schema: AttributeSchema) -> tuple[str, ...]:
    """The names of the columns of `(N, L)`: "UpperColor=red"."""
    return tuple(f"{attribute.name}={label}" for attribute in schema for label in attribute.labels)


def flat_probabilities(probabilities: np.ndarray, schema: AttributeSchema) -> np.ndarray:
    """Probabilities `(N, A, C)` as `(N, L)`; `(N, L)` as they are.

    Raises:
        ValueError: another shape, or a value that is not finite.
    """
    probabilities = np.asarray(probabilities)
    mask = schema.label_mask()
    if probabilities.ndim == 3 and probabilities.shape[1:] == mask.shape:
        probabilities = probabilities[:, mask]
    elif probabilities.ndim != 2 or probabilities.shape[1] != mask.sum():
        raise ParValueError(
            f"probabilities have shape {probabilities.shape}, expected (N, {mask.shape[0]}, {mask.shape[1]}) or (N, "
            f"{mask.sum()}), a column per label"
        )
    if not np.isfinite(probabilities).all():
        raise ParValueError("probabilities has entries that are not finite, which cannot be ranked")
    return probabilities


def condition_probabilities(query: Query, probabilities: np.ndarray, schema: AttributeSchema) -> np.ndarray:
    """The probability that a person meets each condition, float64 `(N, conditions)` in the order of
    `query.conditions`: the sum over the accepted labels, or 1 minus that over the unwanted ones."""
    flat = flat_probabilities(probabilities, schema).astype(np.float64)
    first = np.concatenate([[0], np.cumsum(schema.num_labels)])
    found = np.empty((len(flat), len(query.conditions)))
    for position, (name, labels, is_wanted) in enumerate(query.conditions):
        place = schema.index(name)
        total = flat[:, [first[place] + k for k in _label_indices(schema, name, labels)]].sum(1)
        found[:, position] = total if is_wanted else 1 - total
    return found


def log_likelihood(query: Query, probabilities: np.ndarray, schema: AttributeSchema) -> np.ndarray:
    """The logarithm of the probability that a person meets all conditions, if the attributes are independent of each
    other, float64 `(N,)`, 0 at most. It is what it says as far as the probabilities are calibrated."""
    met = condition_probabilities(query, probabilities, schema)
    return np.log(np.clip(met, SMALLEST_PROBABILITY, 1)).sum(1)


def l1(query: Query, probabilities: np.ndarray, schema: AttributeSchema) -> np.ndarray:
    """Minus the distance of UPAR's baseline, `sum p + q (1 - 2 p)` over the conditions, float64 `(N,)`: p is the
    probability of the labels that a condition names, q is 1 where they are wanted and 0 where not."""
    return -(1 - condition_probabilities(query, probabilities, schema)).sum(1)


def matches(query: Query, people: np.ndarray, schema: AttributeSchema) -> dict[Condition, np.ndarray]:
    """Who meets which condition: for each condition bool `(N,)`.

    Args:
        query: the query.
        people: probabilities, from which the answers are decided by the thresholds of the schema; or answers or
            labels, integers `(N, A)`, -100 = unknown, which meets no condition.
        schema: the label space.

    Raises:
        ValueError: another shape, or a label that its attribute does not have.
    """
    people = np.asarray(people)
    if people.dtype.kind in "iu":
        if people.ndim != 2 or people.shape[1] != len(schema):
            raise ParValueError(f"answers have shape {people.shape}, expected (N, {len(schema)})")
        check_label_range(people, schema, "answers")
        answers = people
    else:
        mask = schema.label_mask()
        probabilities = np.zeros((len(people), *mask.shape))
        probabilities[:, mask] = flat_probabilities(people, schema)
        answers = decide(probabilities, schema)
    found = {}
    for condition in query.conditions:
        column = answers[:, schema.index(condition.attribute)]
        named = np.isin(column, _label_indices(schema, condition.attribute, condition.labels))
        found[condition] = named if condition.wanted else ~named & (column != UNKNOWN_LABEL)
    return found


def excluding_conditions(met: dict[Condition, np.ndarray]) -> dict[Condition, dict[str, int]]:
    """How many people each condition excludes, for the message of a query that matches nobody.

    Args:
        met: what `matches` returned.

    Returns:
        For each condition `excludes`, the people who do not meet it, and `alone`, those who meet all others.
    """
    table = np.stack(list(met.values()))
    unmet = (~table).sum(0)
    return {
        condition: {"excludes": int((~row).sum()), "alone": int((~row & (unmet == 1)).sum())}
        for condition, row in met.items()
    }


def _label_indices(schema: AttributeSchema, name: str, labels: tuple[str, ...]) -> list[int]:
    own = schema[name].labels
    for label in labels:
        if label not in own:
            raise ParValueError(f"the query has the label {label!r} for {name!r}, which has {list(own)}")
    return [own.index(label) for label in labels]


def label_weights(queries: Sequence[Query], schema: AttributeSchema) -> np.ndarray:
    """How much of each query each label is, float32 `(Q, L)`: 1 for the only label that is accepted of an attribute,
    equal shares of 1 for several, 0 for attributes that are open."""
    first = np.concatenate([[0], np.cumsum(schema.num_labels)])
    found = np.zeros((len(queries), first[-1]), np.float32)
    for row, query in enumerate(queries):
        for name, labels, is_wanted in query.conditions:
            place = schema.index(name)
            named = set(_label_indices(schema, name, labels))
            accepted = [k for k in range(schema.num_labels[place]) if (k in named) == is_wanted]
            found[row, [first[place] + k for k in accepted]] = 1 / len(accepted)
    return found


def weights_of_labels(labels: np.ndarray, schema: AttributeSchema) -> np.ndarray:
    """`label_weights` of the queries for exactly these labels, int `(Q, A)`, -100 = open."""
    first = np.concatenate([[0], np.cumsum(schema.num_labels)])
    rows, places = np.nonzero(np.asarray(labels) != UNKNOWN_LABEL)
    found = np.zeros((len(labels), first[-1]), np.float32)
    found[rows, first[places] + np.asarray(labels)[rows, places]] = 1
    return found
