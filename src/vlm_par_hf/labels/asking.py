"""What a user asks for: some of a model's attributes, others in words, and with which thresholds they are decided."""

import difflib
import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from vlm_par_hf.errors import ParKeyError, ParTypeError, ParValueError
from vlm_par_hf.utils import shorten

from .schema import Attribute, AttributeSchema


__all__ = ["Asked", "check_threshold", "check_thresholds", "chosen_thresholds", "read_asked"]


class Asked(NamedTuple):
    """The attributes that are asked for.

    Attributes:
        schema: the attributes, in the order in which they are asked for.
        places: for each its position among the model's own attributes; None: it is none of them.
        named: which ones are asked for by the name of an attribute of the model.
    """

    schema: AttributeSchema
    places: tuple[int | None, ...]
    named: tuple[str, ...]

    @property
    def texts(self) -> tuple[str, ...]:
        """The names of those that the model has no attribute for."""
        return tuple(one.name for one, place in zip(self.schema, self.places) if place is None)


def read_asked(asked: Any, schema: AttributeSchema, *, subject: str) -> Asked:
    """Reads a list of attributes, each the name of one of the model's own or something in words.

    Args:
        asked: a list of names of `schema` and of what `AttributeSchema.from_texts` takes (`["Hat", "a red scarf",
            ["a backpack", "a handbag", "no bag"]]`), a dict `{name: text or list of texts}`, or a schema. In a dict
            all are texts. An `Attribute` is one of the model's own if its name, labels, question and prompts are.
        schema: the model's own label space.
        subject: the beginning of the sentences that are made from texts.

    Raises:
        TypeError, ValueError: as `AttributeSchema.from_texts`; also for a single word that is nearly a name of the
            model, or one in other upper and lower case: it would be answered as a text, and silently worse.
    """
    named: list[str] = []
    if not isinstance(asked, (str, Mapping, AttributeSchema)) and isinstance(asked, Iterable):
        folded = {name.casefold(): name for name in schema.names}
        items = list(asked)
        for position, item in enumerate(items):
            if not isinstance(item, str):
                continue
            if item in schema:
                named.append(item)
                items[position] = schema[item]
            elif near := _near_names(item, folded):
                raise ParValueError(
                    f"attributes names {shorten(item)}: the model has {' and '.join(map(repr, near))}; expected such "
                    f"a name, or a dict {{name: text}} for the text itself"
                )
        asked = items
    wanted = AttributeSchema.from_texts(_without_partners(asked), subject=subject)
    places = tuple(schema.index(one.name) if _is_own(one, schema) else None for one in wanted)
    return Asked(wanted, places, tuple(named))


def _near_names(text: str, names: Mapping[str, str]) -> list[str]:
    """The names, given by what they are in lower case, that somebody who writes one word may have meant."""
    word = text.strip().casefold()
    if word in names:
        return [names[word]]
    if len(word.split()) != 1:
        return []
    return [names[one] for one in difflib.get_close_matches(word[:100], names, n=2, cutoff=0.75)]


def _without_partners(asked: Any) -> Any:
    """Attributes that name another one as their mirror can stand alone here: answers are not flipped."""
    if isinstance(asked, (str, Mapping)) or not isinstance(asked, Iterable):
        return asked
    return [
        replace(one, mirror=None) if isinstance(one, Attribute) and isinstance(one.mirror, str) else one
        for one in asked
    ]


def _is_own(attribute: Attribute, schema: AttributeSchema) -> bool:
    if attribute.name not in schema:
        return False
    own = schema[attribute.name]
    return all(getattr(own, name) == getattr(attribute, name) for name in ("labels", "question", "prompts"))


def check_threshold(threshold: Any, name: str = "threshold") -> float:
    """A threshold as a float.

    Raises:
        ValueError: it is no number in [0, 1]; the message starts with `name`.
    """
    is_number = isinstance(threshold, numbers.Real) and not isinstance(threshold, bool)
    if isinstance(threshold, Mapping):
        raise ParValueError(
            f"{name} is {shorten(threshold)}, expected one number; thresholds= takes one for each name"
        )
    if not is_number or math.isnan(threshold) or not 0 <= threshold <= 1:
        raise ParValueError(f"{name} is {shorten(threshold)}, expected a number in [0, 1]")
    return float(threshold)


def check_thresholds(thresholds: Any, schemas: Sequence[AttributeSchema]) -> dict[str, float]:
    """Thresholds by the names of binary attributes.

    Args:
        thresholds: a dict.
        schemas: the names must be in one of them.

    Raises:
        TypeError: it is no dict.
        ValueError: a name is unknown or that of an attribute with more than two labels, or a value is no number in
            [0, 1].
    """
    if not isinstance(thresholds, Mapping):
        raise ParTypeError(
            f"thresholds is {shorten(thresholds)}, expected a dict such as {{'Hat': 0.7}}; threshold= takes one "
            "number for all"
        )
    found = {}
    for name, value in thresholds.items():
        schema = next((one for one in schemas if isinstance(name, str) and name in one), None)
        if schema is None:
            try:
                schemas[0].index(str(name))
            except ParKeyError as error:
                raise ParValueError(f"thresholds names {shorten(name)}: {error}") from None
            raise ParValueError(f"thresholds names {shorten(name)}, expected the name of an attribute, a text")
        attribute = schema[name]
        if not attribute.is_binary:
            raise ParValueError(
                f"thresholds names {name!r}, which has {attribute.num_labels} labels: the most probable one is its "
                "answer, expected binary attributes"
            )
        found[name] = check_threshold(value, f"the threshold of {name!r}")
    return found


def chosen_thresholds(
    schema: AttributeSchema, threshold: float | None, thresholds: Mapping[str, float] | None
) -> dict[str, float]:
    """The thresholds that replace those of a schema: `thresholds` before `threshold`."""
    found = {} if threshold is None else {one.name: threshold for one in schema if one.is_binary}
    return found | {name: value for name, value in (thresholds or {}).items() if name in schema}
