"""Attributes from a few words: the sentences that make "wearing a red scarf" or "a red scarf" an attribute."""

from collections.abc import Iterable, Mapping
from typing import Any

from vlm_par_hf.errors import ParValueError


__all__ = ["SUBJECT", "attribute_fields", "split_words"]

SUBJECT = "a photo of a person"  # the usual beginning of a sentence about a picture

# A text that begins with one of these words, or with a word that ends in "ing", follows "a photo of a person" as it
# is. All other texts are nouns ("a red scarf") and get a "with" in front.
_CLAUSE_STARTS = {"with", "without", "in", "on", "who", "whose", "seen", "of", "from", "under", "near", "at", "not"}
# The opposite of a text that begins with one of these words begins with "without".
_POSSESSION_STARTS = {"wearing", "carrying", "holding", "having", "with"}


def attribute_fields(item: Any, subject: str, name: str | None = None) -> Any:
    """The fields of the attribute that a text or a list of alternatives describes.

    Args:
        item: a text: a binary attribute; two texts or more, in a list or divided by `|` in one text: an attribute with
            these labels. Anything else is returned as it is.
        subject: the beginning of the prompts.
        name: of the attribute; None: the text, or the texts joined by " / ".

    Returns:
        Keyword arguments of `Attribute`.

    Raises:
        ValueError: an empty text, or a list that is not two texts or more.
    """
    if isinstance(item, str) and "|" in item:
        item = item.split("|")
    if isinstance(item, str):
        text = " ".join(item.split())
        if not text:
            raise ParValueError("attributes holds an empty text, expected words such as 'wearing a red scarf'")
        clause = _as_clause(text, subject)
        first, _, rest = clause.partition(" ")
        opposites = {"without": f"with {rest}", "not": rest, **dict.fromkeys(_POSSESSION_STARTS, f"without {rest}")}
        opposite = opposites.get(first) if rest else None
        prompts = (f"{subject} {opposite or f'not {clause}'}", f"{subject} {clause}")
        return {"name": name or text, "question": f"is the person {clause}?", "prompts": prompts}
    if isinstance(item, Iterable) and not isinstance(item, Mapping):
        texts = [" ".join(text.split()) if isinstance(text, str) else text for text in item]
        if len(texts) < 2 or not all(isinstance(text, str) and text for text in texts):
            raise ParValueError(f"alternatives must be two texts or more, got {item!r:.80}")
        prompts = [f"{subject} {_as_clause(text, subject)}" for text in texts]
        return {
            "name": name or " / ".join(texts),
            "question": f"which one: {', '.join(texts)}?",
            "labels": texts,
            "prompts": prompts,
        }
    return item


def _as_clause(text: str, subject: str) -> str:
    """The text as it follows "a photo of a person": a noun ("a red scarf") gets a "with" in front."""
    text = text.removeprefix(subject).strip() or text
    first = text.partition(" ")[0].lower()
    return text if first.endswith("ing") or first in _CLAUSE_STARTS else f"with {text}"


def split_words(name: str) -> str:
    """The words of an attribute's name: "upper color" for `"UpperColor"` and for `"upper_color"`."""
    spaced = "".join(
        f" {char}" if char.isupper() and before.islower() else char for before, char in zip(" " + name, name)
    )
    return " ".join(spaced.replace("_", " ").lower().split())
