"""The rule from probabilities to answers, which metrics, processor and exported models follow, and what was fitted for
it.

The answer to a binary attribute is its second label if that label's probability is strictly above the attribute's
threshold, else its first label. The answer to an attribute with more labels is the most probable one, or, if biases
were fitted for its labels, the one with the largest sum of log probability and bias.
`vlm_par_hf.base.decisions.decide` is the same rule for torch tensors.

`Decisions` is what `vlm_par_hf.calibration` fits on labelled pictures: how scores become probabilities that can be
believed, thresholds and biases for several objectives, and how wide a set of answers must be to hold the right one.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from vlm_par_hf.errors import ParKeyError, ParTypeError, ParValueError
from vlm_par_hf.utils import shorten

from .schema import Attribute, AttributeSchema


__all__ = [
    "SMALLEST_HEIGHT",
    "UNKNOWN_ANSWER",
    "AttributeDecision",
    "CalibrationTables",
    "Decisions",
    "answer_text",
    "decide",
    "is_answered",
    "is_positive_answer",
    "is_unknown",
    "label_softmax",
    "read_thresholds",
]

LARGEST_SCORE = 1e4  # of gains, offsets and biases in a file
SMALLEST_PROBABILITY = 1e-6  # that isotonic maps give, so that logarithms stay finite
UNKNOWN_ANSWER = "unknown"  # the label of an answer that is left open
SMALLEST_HEIGHT = 24  # pixels of a person below which sets hold less than they promise (benchmarks/low_people.py)
_OWN_FIELDS = ("gain", "offset", "isotonic", "prior", "examples", "points", "quantiles", "promised")


def decide(
    probabilities: np.ndarray,
    schema: AttributeSchema,
    thresholds: np.ndarray | Sequence[float] | None = None,
    biases: np.ndarray | None = None,
) -> np.ndarray:
    """The class index of each answer.

    Args:
        probabilities: `(..., A, C)`, C the largest number of labels; 0 past an attribute's own labels.
        schema: the label space.
        thresholds: `(A,)`, used for binary attributes only; None: those of the schema.
        biases: `(A, C)`, added to the log probabilities of attributes with more labels (`Decisions.bias_table`); None:
            none.

    Returns:
        int64 `(..., A)`.
    """
    if thresholds is None:
        thresholds = [attribute.threshold for attribute in schema]
    binary = np.array([attribute.is_binary for attribute in schema])
    answers = probabilities.argmax(axis=-1)
    if biases is not None and biases.any():
        # Where a row has no bias its answer stays the plain one: a logarithm could merge close probabilities.
        with np.errstate(divide="ignore"):
            biased = (np.log(probabilities) + biases).argmax(axis=-1)
        answers = np.where(biases.any(axis=-1), biased, answers)
    positive = probabilities[..., 1] > np.asarray(thresholds, dtype=np.float64)
    answers[..., binary] = positive[..., binary]
    return answers


def read_thresholds(
    schema: AttributeSchema, threshold: float | str | Sequence[float] | Mapping[str, float] | None = None
) -> np.ndarray:
    """One threshold per attribute, float64 `(A,)`.

    Args:
        schema: the label space.
        threshold: None or `"schema"`: each attribute's own threshold; a number: the same for all; A numbers: one each;
            a dict: for the attributes that it names, while all others keep their own.

    Raises:
        ValueError: a threshold outside [0, 1], another text, or another number of them.
        KeyError: the dict names an unknown attribute.
    """
    own = np.array([attribute.threshold for attribute in schema], dtype=np.float64)
    if threshold is None or (isinstance(threshold, str) and threshold == "schema"):
        return own
    if isinstance(threshold, str):
        raise ParValueError(f"threshold={threshold!r}, expected None, 'schema', or numbers in [0, 1]")
    if isinstance(threshold, Mapping):
        values = own
        for name, value in threshold.items():
            values[schema.index(name)] = value
    else:
        values = np.asarray(threshold, dtype=np.float64)
        if values.ndim and values.shape != own.shape:
            raise ParValueError(f"threshold has shape {values.shape}, expected one number or {len(schema)}")
        values = np.broadcast_to(values, own.shape)
    wrong = ~((values >= 0) & (values <= 1))
    if wrong.any():
        position = int(wrong.argmax())
        raise ParValueError(
            f"threshold of attribute {schema.names[position]!r} must lie between 0 and 1, got {values[position]:g}"
        )
    return values


def is_positive_answer(label: str, attribute: Attribute | None = None) -> bool:
    """Whether an answer says that something is there, as opposed to "no".

    Args:
        label: the predicted label.
        attribute: if it is given and binary, its second label is the positive answer. Otherwise every label but "no"
            and "none" is positive.
    """
    if attribute is not None and attribute.is_binary:
        return label == attribute.labels[1]
    return label.strip().lower() not in ("no", "none")


def is_unknown(answer: Mapping[str, Any]) -> bool:
    """Whether an answer of `post_process_attributes` was left open. (An attribute may have a label "unknown".)"""
    return len(answer.get("set", ())) > 1


def is_answered(answer: Mapping[str, Any]) -> bool:
    """Whether an answer of `post_process_attributes` says something: it was not left open, and the question makes
    sense for this person."""
    return answer["label"] is not None and not is_unknown(answer)


def answer_text(answer: Mapping[str, Any]) -> str | None:
    """What an answer of `post_process_attributes` says, with the reason if it was left open for one: "unknown: 14
    pixels high". None: nothing, because the question makes no sense for this person."""
    reason = answer.get("reason")
    return answer["label"] if reason is None else f"{answer['label']}: {reason}"


def label_softmax(logits: np.ndarray, schema: AttributeSchema) -> np.ndarray:
    """Softmax over each attribute's own labels, float64 `(..., A, C)`, exactly 0 past them."""
    masked = np.where(schema.label_mask(), np.asarray(logits, dtype=np.float64), -np.inf)
    exponents = np.exp(masked - masked.max(axis=-1, keepdims=True))
    return exponents / exponents.sum(axis=-1, keepdims=True)


@dataclass(frozen=True)
class AttributeDecision:
    """What was fitted for one attribute of K labels.

    Calibrated logits are `gain * logits + offset`; with `isotonic`, the probability of each label then goes through a
    monotone map of its own, and the labels are normalised to sum 1.

    Args:
        gain: above 0; 1 over the temperature.
        offset: K numbers.
        isotonic: per label a pair of lists (probabilities in, probabilities out), both increasing, in [0, 1]; linear
            between its points and constant outside. None: no maps.
        prior: share of each label where it was fitted; None: unknown.
        examples: how many pictures of each label it was fitted on; None: unknown.
        points: by objective, the threshold of a binary attribute (strictly between 0 and 1), or K biases.
        quantiles: per label, for each of `Decisions.levels`, the largest 1 - p with which the label still belongs into
            a set of answers; None in a place: at any p. None: no sets.
        promised: per label, whether enough examples stand behind its quantiles for the promise of the level.
    """

    gain: float = 1.0
    offset: tuple[float, ...] = (0.0, 0.0)
    isotonic: tuple[tuple[tuple[float, ...], tuple[float, ...]], ...] | None = None
    prior: tuple[float, ...] | None = None
    examples: tuple[int, ...] | None = None
    points: Mapping[str, float | tuple[float, ...]] = field(default_factory=dict)
    quantiles: tuple[tuple[float | None, ...], ...] | None = None
    promised: tuple[bool, ...] | None = None

    @property
    def num_labels(self) -> int:
        return len(self.offset)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; fields without a value are left out."""
        found = {name: _plain(getattr(self, name)) for name in _OWN_FIELDS}
        return {name: value for name, value in found.items() if value is not None}

    @classmethod
    def from_dict(cls, name: str, data: Any, num_levels: int) -> "AttributeDecision":
        """What `to_dict` made.

        Raises:
            TypeError, ValueError: names attribute and field.
        """
        where = f"decisions of attribute {shorten(name)}"
        if not isinstance(data, Mapping):
            raise ParTypeError(f"{where} must be a dict, got {shorten(data)}")
        unknown = [key for key in data if key not in _OWN_FIELDS]
        if unknown:
            raise ParValueError(f"{where}: unknown key {shorten(unknown[0])}, expected {', '.join(_OWN_FIELDS)}")
        gain = _number(f"{where}: gain", data.get("gain", 1.0), 0, LARGEST_SCORE, strict=True)
        offset = _numbers(f"{where}: offset", data.get("offset"), -LARGEST_SCORE, LARGEST_SCORE)
        K = len(offset)
        if K < 2:
            raise ParValueError(f"{where}: offset must hold a number for each of at least 2 labels, got {K}")
        isotonic = data.get("isotonic")
        if isotonic is not None:
            isotonic = tuple(_read_map(f"{where}: isotonic", one) for one in _list(f"{where}: isotonic", isotonic, K))
        prior = data.get("prior")
        if prior is not None:
            prior = _numbers(f"{where}: prior", _list(f"{where}: prior", prior, K), 0, 1)
        examples = data.get("examples")
        if examples is not None:
            examples = _list(f"{where}: examples", examples, K)
            if not all(isinstance(one, int) and not isinstance(one, bool) and one >= 0 for one in examples):
                raise ParValueError(f"{where}: examples must be numbers of pictures, got {shorten(examples)}")
        points = data.get("points", {})
        if not isinstance(points, Mapping) or not all(isinstance(key, str) for key in points):
            raise ParTypeError(f"{where}: points must be a dict of objectives, got {shorten(points)}")
        read = {}
        for key, value in points.items():
            what = f"{where}: points[{shorten(key)}]"
            if K == 2:
                read[key] = _number(what, value, 0, 1, strict=True)
                if read[key] >= 1:
                    raise ParValueError(f"{what} must lie strictly between 0 and 1, got {value!r:.40}")
            else:
                read[key] = _numbers(what, _list(what, value, K), -LARGEST_SCORE, LARGEST_SCORE)
        quantiles, promised = data.get("quantiles"), data.get("promised")
        if quantiles is not None:
            rows = [
                _list(f"{where}: quantiles", row, num_levels) for row in _list(f"{where}: quantiles", quantiles, K)
            ]
            quantiles = tuple(
                tuple(None if one is None else _number(f"{where}: quantiles", one, 0, 1) for one in row)
                for row in rows
            )
            promised = _list(f"{where}: promised", promised, K)
            if not all(isinstance(one, bool) for one in promised):
                raise ParValueError(f"{where}: promised must be true or false per label, got {shorten(promised)}")
        return cls(
            gain, offset, isotonic, prior, None if examples is None else tuple(examples), read, quantiles,
            None if quantiles is None else tuple(promised),
        )  # fmt: skip


@dataclass(frozen=True)
class CalibrationTables:
    """The calibration of a whole label space as arrays, for numpy and torch.

    Attributes:
        gain: float64 `(A, 1)`; offset: float64 `(A, C)`, 0 past an attribute's own labels.
        start, slope, width, first: of isotonic maps: float64 `(A, C, M)` and `(A, C)`. A probability p becomes
            `first + sum(slope * clip(p - start, 0, width))`. None if no attribute has such maps.
        mapped: bool `(A,)`, which attributes have them.
    """

    gain: np.ndarray
    offset: np.ndarray
    mapped: np.ndarray
    start: np.ndarray | None = None
    slope: np.ndarray | None = None
    width: np.ndarray | None = None
    first: np.ndarray | None = None


@dataclass(frozen=True)
class Decisions:
    """What was fitted for the attributes of a label space; `config.decisions` holds its `to_dict`.

    Entries belong to attributes by name and number of labels. An attribute without one keeps its scores.

    Args:
        attributes: by name.
        objective: which of the points the thresholds of the schema were taken from, and which biases are in use.
        levels: the coverages that `AttributeDecision.quantiles` are for, increasing.
        record: where it comes from: data, split, number of pictures, date; plain JSON.
    """

    attributes: Mapping[str, AttributeDecision]
    objective: str | None = None
    levels: tuple[float, ...] = ()
    record: Mapping[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "objective": self.objective,
            "levels": list(self.levels),
            "attributes": {name: one.to_dict() for name, one in self.attributes.items()},
            "record": dict(self.record),
        }

    @classmethod
    def from_dict(cls, data: Any) -> "Decisions":
        """What `to_dict` made.

        Raises:
            TypeError, ValueError: names the attribute, the value and what was expected.
        """
        if not isinstance(data, Mapping):
            raise ParTypeError(f"decisions must be a dict, got {shorten(data)}")
        known = ("objective", "levels", "attributes", "record")
        unknown = [key for key in data if key not in known]
        if unknown:
            raise ParValueError(f"decisions: unknown key {shorten(unknown[0])}, expected {', '.join(known)}")
        attributes, objective = data.get("attributes"), data.get("objective")
        if not isinstance(attributes, Mapping) or not all(isinstance(name, str) for name in attributes):
            raise ParTypeError(f"decisions: attributes must be a dict of names, got {shorten(attributes)}")
        if objective is not None and not isinstance(objective, str):
            raise ParTypeError(f"decisions: objective must be text, got {shorten(objective)}")
        levels = _numbers("decisions: levels", data.get("levels", []), 0, 1)
        if list(levels) != sorted(set(levels)):
            raise ParValueError(f"decisions: levels must increase, got {shorten(list(levels))}")
        record = data.get("record", {})
        if not isinstance(record, Mapping):
            raise ParTypeError(f"decisions: record must be a dict, got {shorten(record)}")
        read = {name: AttributeDecision.from_dict(name, one, len(levels)) for name, one in attributes.items()}
        return cls(read, objective, levels, dict(record))

    def of(self, attribute: Attribute) -> AttributeDecision | None:
        """The entry of an attribute; None if it has none, or one for another number of labels."""
        found = self.attributes.get(attribute.name)
        return found if found is not None and found.num_labels == attribute.num_labels else None

    def limited_to(self, schema: AttributeSchema) -> "Decisions":
        """Only the entries of the attributes of `schema`."""
        return replace(self, attributes={one.name: self.of(one) for one in schema if self.of(one) is not None})

    # Calibration

    def tables(self, schema: AttributeSchema) -> CalibrationTables:
        """The calibration as arrays, attributes and labels in the order of `schema`."""
        A, C = len(schema), schema.max_labels
        gain, offset, mapped = np.ones((A, 1)), np.zeros((A, C)), np.zeros(A, bool)
        maps: dict[tuple[int, int], tuple] = {}
        for a, attribute in enumerate(schema):
            own = self.of(attribute)
            if own is None:
                continue
            gain[a], offset[a, : own.num_labels] = own.gain, own.offset
            if own.isotonic is not None:
                mapped[a] = True
                maps.update({(a, k): one for k, one in enumerate(own.isotonic)})
        if not maps:
            return CalibrationTables(gain, offset, mapped)
        M = max(len(x) for x, _ in maps.values())
        start, slope, width = np.zeros((3, A, C, M))
        first = np.zeros((A, C))
        for place, (x, y) in maps.items():
            x, y = np.asarray(x), np.asarray(y)
            first[place] = y[0]
            start[place][: len(x)], width[place][: len(x) - 1] = x, np.diff(x)
            slope[place][: len(x) - 1] = np.diff(y) / np.diff(x)
        return CalibrationTables(gain, offset, mapped, start, slope, width, first)

    def calibrate(self, logits: np.ndarray, schema: AttributeSchema) -> np.ndarray:
        """Calibrated probabilities.

        Args:
            logits: `(..., A, C)`, what a model without decisions gives. A model whose configuration holds decisions
                gives calibrated logits already.
            schema: the label space.

        Returns:
            float64 `(..., A, C)`, 0 past an attribute's own labels.
        """
        tables = self.tables(schema)
        mask = schema.label_mask()
        logits = np.where(mask, logits, 0.0).astype(np.float64)
        probabilities = label_softmax(logits * tables.gain + tables.offset, schema)
        if tables.start is None:
            return probabilities
        steps = np.clip(probabilities[..., None] - tables.start, 0, tables.width) * tables.slope
        found = np.where(mask, np.clip(tables.first + steps.sum(-1), SMALLEST_PROBABILITY, 1.0), 0.0)
        found /= found.sum(-1, keepdims=True)
        return np.where(tables.mapped[:, None], found, probabilities)

    # Answers

    def thresholds(self, objective: str | None = None) -> dict[str, float]:
        """The fitted threshold of each binary attribute for an objective; None: the one in use.

        Raises:
            KeyError: the objective was not fitted.
        """
        objective = self._check_objective(objective)
        return {
            name: one.points[objective]
            for name, one in self.attributes.items()
            if one.num_labels == 2 and objective in one.points
        }

    def settle(self, schema: AttributeSchema, objective: str | None = None) -> AttributeSchema:
        """The schema with the thresholds of an objective; attributes without a fitted one keep theirs.

        Raises:
            KeyError: the objective was not fitted.
        """
        found = self.thresholds(objective) if self.points() else {}
        return AttributeSchema(
            replace(one, threshold=found[one.name]) if one.name in found and self.of(one) is not None else one
            for one in schema
        )

    def points(self) -> list[str]:
        """The objectives that were fitted, in their order."""
        return list(dict.fromkeys(key for one in self.attributes.values() for key in one.points))

    def bias_table(self, schema: AttributeSchema, objective: str | None = None) -> np.ndarray:
        """Biases of the labels of attributes with more than two, float64 `(A, C)`; 0 where nothing was fitted.

        Raises:
            KeyError: the objective was not fitted.
        """
        table = np.zeros((len(schema), schema.max_labels))
        if objective is None and self.objective is None:
            return table
        objective = self._check_objective(objective)
        for a, attribute in enumerate(schema):
            own = self.of(attribute)
            if own is not None and not attribute.is_binary and objective in own.points:
                table[a, : own.num_labels] = own.points[objective]
        return table

    def apply(self, logits: np.ndarray, schema: AttributeSchema) -> tuple[np.ndarray, np.ndarray]:
        """Calibrated probabilities `(..., A, C)` and answers `(..., A)`; binary attributes by the schema's thresholds.

        Args:
            logits: `(..., A, C)`, as for `calibrate`.
            schema: the label space, with the thresholds in use (`settle`).

        Raises:
            ValueError: wrong shape, or a score that is not finite.
        """
        logits = np.asarray(logits)
        expected = (len(schema), schema.max_labels)
        if logits.ndim < 2 or logits.shape[-2:] != expected:
            raise ParValueError(f"logits have shape {logits.shape}, expected (..., {expected[0]}, {expected[1]})")
        wrong = ~np.isfinite(logits) & schema.label_mask()
        if wrong.any():
            *_, a, _ = np.argwhere(wrong)[0]
            raise ParValueError(f"a score of attribute {schema.names[a]!r} is not finite, expected a number")
        probabilities = self.calibrate(logits, schema)
        return probabilities, decide(probabilities, schema, None, self.bias_table(schema))

    def answer_sets(
        self, probabilities: np.ndarray, schema: AttributeSchema, level: float, *, allow_empty: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Sets of labels that hold the right one in at least a share `level` of pictures like those fitted on.

        Split-conformal sets: a label belongs into the set if its probability is not lower than that of all but a share
        `1 - level` of the fitted pictures of that label (Vovk et al., 2005; Sadinle et al., 2019). A set that would be
        empty holds the most probable label, so easy attributes are covered more often than promised. An attribute
        without quantiles has all labels in its sets.

        Args:
            probabilities: calibrated, `(..., A, C)`.
            schema: the label space.
            level: above 0, at most the largest of `levels`; between two of them the higher one is used.
            allow_empty: leave empty sets as they are.

        Returns:
            bool `(..., A, C)`, and bool `(A, C)`: the labels for which the promise holds.

        Raises:
            ValueError: no such level, or no sets were fitted.
        """
        level = _number("level", level, 0, 1, strict=True)
        if not self.levels:
            raise ParValueError("no sets of answers were fitted for this model: fit them (vlm-par calibrate)")
        if level > self.levels[-1] + 1e-9:
            raise ParValueError(f"level={level:g}, expected at most {self.levels[-1]:g}: more was not fitted")
        place = next(i for i, one in enumerate(self.levels) if one >= level - 1e-9)
        mask = schema.label_mask()
        largest, promised = np.where(mask, np.inf, -np.inf), np.zeros(mask.shape, bool)
        for a, attribute in enumerate(schema):
            own = self.of(attribute)
            if own is None or own.quantiles is None:
                continue
            for k, row in enumerate(own.quantiles):
                largest[a, k] = np.inf if row[place] is None else row[place]
            promised[a, : own.num_labels] = own.promised
        sets = (1 - probabilities <= largest + 1e-12) & mask
        if allow_empty:
            return sets, promised
        top = np.arange(probabilities.shape[-1]) == probabilities.argmax(-1)[..., None]
        return np.where(sets.any(-1, keepdims=True), sets, top), promised

    def _check_objective(self, objective: str | None) -> str:
        objective = self.objective if objective is None else objective
        fitted = self.points()
        if objective not in fitted:
            raise ParKeyError(f"objective {objective!r} was not fitted; fitted: {', '.join(fitted) or 'none'}")
        return objective


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, tuple) else value


def _number(what: str, value: Any, low: float, high: float, *, strict: bool = False) -> float:
    """A finite number in [low, high]; with `strict` in (low, high]."""
    good = not isinstance(value, bool) and isinstance(value, (int, float)) and math.isfinite(value)
    if not good or not low <= value <= high or (strict and value == low):
        opening = "(" if strict else "["
        raise ParValueError(f"{what} must be a number in {opening}{low:g}, {high:g}], got {shorten(value)}")
    return float(value)


def _numbers(what: str, values: Any, low: float, high: float) -> tuple[float, ...]:
    if not isinstance(values, (list, tuple)):
        raise ParTypeError(f"{what} must be a list of numbers, got {shorten(values)}")
    return tuple(_number(what, one, low, high) for one in values)


def _list(what: str, values: Any, length: int) -> list:
    if not isinstance(values, (list, tuple)) or len(values) != length:
        raise ParValueError(f"{what} must be a list of {length} entries, got {shorten(values)}")
    return list(values)


def _read_map(what: str, pair: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    x, y = (_numbers(what, one, 0, 1) for one in _list(what, pair, 2))
    rising = len(x) == len(y) >= 1 and all(a < b for a, b in zip(x, x[1:])) and list(y) == sorted(y)
    if not rising:
        raise ParValueError(f"{what} must be pairs of two increasing lists of one length, got {shorten(pair)}")
    return x, y
