"""What the words of a query mean in a label space: "red top, backpack, not hat" as attributes and labels.

A phrase is understood if its words, without articles and verbs and in any order, are those of a label's prompt, of the
question that it answers, or of its name; a colour or a length in front of a garment ("short red skirt") is read as
that of the garment's region. Nothing is matched by likeness: what is not understood is refused, with suggestions.
Needs no torch.
"""

import difflib
import itertools
import re
from collections.abc import Iterable
from typing import NamedTuple

from vlm_par_hf.errors import ParValueError
from vlm_par_hf.labels.schema import Attribute, AttributeSchema
from vlm_par_hf.utils import shorten


__all__ = ["Part", "QueryWords", "shown_phrase", "suggest"]

_LONGEST_QUERY = 2000  # characters
# Words that say that there is a person who has something, not what it is.
_EMPTY = frozenset({
    "a", "an", "the", "person", "people", "somebody", "someone", "anyone", "photo", "drawing", "picture", "of",
    "in", "on", "with", "has", "have", "having", "is", "are", "be", "who", "that", "which", "wear", "wearing",
    "wears", "worn", "carry", "carrying", "carries", "hold", "holding", "holds", "dressed", "clothing", "clothes",
    "clothed", "cloth", "garment", "color", "colored", "colour", "coloured", "body", "and", "his", "her", "their",
    "one", "to", "from", "for", "does", "do", "pair",
})  # fmt: skip
_SAME = {
    "grey": "gray", "blonde": "blond", "top": "upper", "bottom": "lower", "pant": "trouser", "sleeved": "sleeve",
    "striped": "stripe", "stride": "stripe", "haired": "hair", "bike": "bicycle", "rucksack": "backpack",
    "knapsack": "backpack", "purse": "handbag", "cap": "hat", "eyeglass": "glass", "spectacle": "glass",
    "cellphone": "phone", "smartphone": "phone", "sneaker": "shoe", "trainer": "shoe", "footwear": "shoe",
    "tee": "tshirt", "jumper": "sweater", "male": "man", "female": "woman", "lady": "woman", "feminine": "woman",
    "masculine": "man", "men": "man", "women": "woman", "children": "child", "kid": "child", "old": "elderly",
}  # fmt: skip
_JOINED = (
    ("hand", "bag"), ("back", "pack"), ("sun", "glass"), ("t", "shirt"), ("shoulder", "bag"), ("shopping", "bag"),
    ("head", "phone"), ("suit", "case"),
)  # fmt: skip
# Garments that a label space may have no label for: then only what is said about them is a condition.
_REGION_WORDS = {
    **dict.fromkeys(("shirt", "tshirt", "sweater", "hoodie", "blouse", "pullover", "jacket"), "upper"),
    **dict.fromkeys(("trouser", "jean", "shorts", "skirt"), "lower"),
}
_REGION_NOUN = {"upper": "upper", "lower": "lower", "foot": "shoe"}
_NEGATION = re.compile(r"^(?:not|no|without|never|non|-|!)\s*(?=\S)", re.IGNORECASE)
_JOINT = re.compile(r"\s+(?:and|but|with|wearing|carrying|holding)\s+|\s*[&+]\s*", re.IGNORECASE)
_OR = re.compile(r"\s+or\s+|\s*\|\s*|\s*/\s*", re.IGNORECASE)
_EXPLICIT = re.compile(r"^(?P<name>[^=]*?)\s*(?P<sign>!=|=)\s*(?P<labels>.*)$")


class Part(NamedTuple):
    """One condition as it was written.

    Attributes:
        attribute: its name.
        labels: those that are meant, one or more.
        negated: whether the person must have none of them.
        text: the words.
    """

    attribute: str
    labels: tuple[str, ...]
    negated: bool
    text: str


class QueryWords:
    """The words of a label space.

    Args:
        schema: the label space.
    """

    def __init__(self, schema: AttributeSchema) -> None:
        self.schema = schema
        # The words of each label, the surest source first: words of a prompt win over those of a question or a name,
        # because names are those of the data set's files, right or wrong.
        self._phrases: list[dict[frozenset[str], list[tuple[str, str]]]] = [{}, {}, {}, {}]
        self._shown: dict[str, str] = {}  # phrase -> how it is suggested
        for attribute in schema:
            self._add_attribute(attribute)

    def _add_attribute(self, attribute: Attribute) -> None:
        asks_yes_no = tuple(one.casefold() for one in attribute.labels) == ("no", "yes")
        for label, prompt in zip(attribute.labels, attribute.prompts):
            denies = attribute.is_binary and label == attribute.labels[0] and asks_yes_no
            if not denies:
                words = _words(prompt)
                self._add(0, words, attribute, label)
                self._add(0, words - {"pattern"}, attribute, label)
                self._shown.setdefault(shown_phrase(prompt), shown_phrase(prompt))
            elif attribute.sensitive:  # "a man": the denial of "a woman" is no denial
                self._add(0, _words(prompt), attribute, label)
        name = _words(_spread(attribute.name))
        if asks_yes_no:
            self._add(1, _words(attribute.question), attribute, "yes")
            self._add(2, name, attribute, "yes")
            return
        for label in attribute.labels:
            self._add(1, _words(label) | name, attribute, label)
            self._add(1, _words(label) | (_words(attribute.question) - _QUESTION_WORDS), attribute, label)
            self._add(3, _words(label), attribute, label)

    def _add(self, rank: int, words: frozenset[str], attribute: Attribute, label: str) -> None:
        if words:
            found = self._phrases[rank].setdefault(words, [])
            if (attribute.name, label) not in found:
                found.append((attribute.name, label))

    def read(self, text: str) -> list[Part]:
        """The conditions of a text, in its order.

        Parts are divided by commas, semicolons and "and"; `name=label`, `name=label|label` and `name!=label` name an
        attribute as the label space does.

        Raises:
            ValueError: a part is not understood, or has several meanings; the message names it, and what it may mean.
        """
        if len(text) > _LONGEST_QUERY:
            raise ParValueError(f"the query has {len(text)} characters, expected at most {_LONGEST_QUERY}")
        found = []
        for piece in re.split(r"[,;\n]", text):
            piece = " ".join(piece.split())
            if piece:
                found += self._read_piece(piece)
        return found

    def _read_piece(self, piece: str) -> list[Part]:
        explicit = _EXPLICIT.match(piece)
        if explicit is not None:
            return [self._read_explicit(piece, *explicit.group("name", "sign", "labels"))]
        whole = self._meanings(piece)
        if whole is not None:
            return whole
        pieces = [one for one in _JOINT.split(piece) if one.strip()]
        if len(pieces) > 1:
            denied = [_NEGATION.match(one.strip()) is not None for one in pieces]
            if any(before and not after for before, after in zip(denied, denied[1:])):
                raise ParValueError(
                    f"the query says {shorten(piece)}: does the denial hold for all of it? Divide it by commas, each "
                    "part with its own 'not', as in 'not a hat, not a backpack'"
                )
            return [part for one in pieces for part in self._read_piece(one.strip())]
        if not _words(_NEGATION.sub("", piece)):
            return []  # "a person"
        raise ParValueError(f"the query says {shorten(piece)}, {self._why_unknown(piece)}")

    def _read_explicit(self, piece: str, name: str, sign: str, labels: str) -> Part:
        if name not in self.schema:
            raise ParValueError(
                f"the query says {shorten(piece)}: no attribute {shorten(name)}{suggest(name, self.schema.names)}"
            )
        return Part(name, tuple(one.strip() for one in labels.split("|")), sign == "!=", piece)

    def _meanings(self, piece: str) -> list[Part] | None:
        """The conditions of a phrase that is understood as a whole; None if it is not."""
        negation = _NEGATION.match(piece)
        phrase = piece[negation.end() :] if negation else piece
        options = _OR.split(phrase)
        found = self._one_meaning(phrase) or (self._alternatives(options, piece) if len(options) > 1 else None)
        if found is None:
            return None
        if negation and len(found) > 1:
            raise ParValueError(
                f"the query says {shorten(piece)}, which is a condition on {' and '.join(repr(a) for a, _ in found)}: "
                "deny each one in a part of its own"
            )
        return [Part(name, labels, negation is not None, piece) for name, labels in found]

    def _one_meaning(self, phrase: str) -> list[tuple[str, tuple[str, ...]]] | None:
        if phrase in self.schema and tuple(self.schema[phrase].labels) == ("no", "yes"):
            return [(phrase, ("yes",))]
        words = _words(phrase)
        if not words:
            return None
        for phrases in self._phrases:
            found = phrases.get(words, [])
            if len(found) == 1:
                return [(found[0][0], (found[0][1],))]
            if found:
                ways = " or ".join(f"{name}={label}" for name, label in found)
                raise ParValueError(f"the query says {shorten(phrase)}, which may mean {ways}: write one of these")
        return self._garment(words)

    def _garment(self, words: frozenset[str]) -> list[tuple[str, tuple[str, ...]]] | None:
        """A garment with what is said about it: "short red skirt"."""
        for size in range(1, len(words)):
            for noun in map(frozenset, itertools.combinations(sorted(words), size)):
                region, named = self._noun(noun)
                if region is None:
                    continue
                said = [self._surest(frozenset({word, region})) for word in sorted(words - noun)]
                if all(said):
                    return list(dict.fromkeys([*said, *([named] if named else [])]))
        return None

    def _noun(self, noun: frozenset[str]) -> tuple[str | None, tuple[str, tuple[str, ...]] | None]:
        """The word of a garment's region, and its own condition if the label space has one."""
        found = self._surest(noun)
        if found is not None:
            return _REGION_NOUN.get(self.schema[found[0]].region), found
        return (_REGION_WORDS.get(next(iter(noun))) if len(noun) == 1 else None), None

    def _surest(self, words: frozenset[str]) -> tuple[str, tuple[str, ...]] | None:
        found = next((phrases[words] for phrases in self._phrases if words in phrases), [])
        return (found[0][0], (found[0][1],)) if len(found) == 1 else None

    def _alternatives(self, options: list[str], piece: str) -> list[tuple[str, tuple[str, ...]]] | None:
        """Labels of one attribute: "black or white shoes", "red top or blue top"."""
        last = self._one_meaning(options[-1])
        if last is None or len(last) != 1:
            return None
        name, accepted = last[0]
        rest = _words(options[-1]) - _words(accepted[0])
        labels = list(accepted)
        for option in options[:-1]:
            words = _words(option)
            meaning = next(
                (one for one in (self._surest(words | rest), self._surest(words)) if one and one[0] == name), None
            )
            if meaning is None:
                other = self._surest(words) or self._surest(words | rest)
                if other is None:
                    return None
                raise ParValueError(
                    f"the query says {shorten(piece)}: {other[0]!r} and {name!r} are two attributes, and alternatives "
                    "are labels of one; search for each"
                )
            labels += meaning[1]
        order = self.schema[name].labels
        return [(name, tuple(sorted(set(labels), key=order.index)))]

    def _why_unknown(self, piece: str) -> str:
        words = " ".join(sorted(_words(_NEGATION.sub("", piece))))
        by_words = {" ".join(sorted(_words(one))): one for one in self._shown}
        shared = [key for key in by_words if set(key.split()) & set(words.split())]
        near = difflib.get_close_matches(words[:100], shared or by_words, n=3, cutoff=0 if shared else 0.6)
        if near:
            hint = f"did you mean {' or '.join(repr(by_words[one]) for one in near)}?"
        else:
            hint = f"it has attributes such as {', '.join(self.schema.names[:8])}"
        return f"for which this label space has no attribute; {hint}"


_QUESTION_WORDS = frozenset({"what", "how", "which", "side", "seen", "long", "moving", "elderly", "leg", "feet"})


def _spread(name: str) -> str:
    """ "HoldObjectsInFront" as words."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])|[_&]+", " ", name)


def _words(text: str) -> frozenset[str]:
    """The words that carry the meaning, in one form for singular and plural and for words that mean the same."""
    plain = re.findall(r"[^\W_]+(?:-[^\W_]+)*", text.casefold().replace("'s", ""))
    words = [_normal(one) for word in plain for one in word.split("-")]
    for first, second in _JOINED:
        if first in words and second in words and words.index(second) == words.index(first) + 1:
            place = words.index(first)
            words[place : place + 2] = [_normal(first + second)]
    return frozenset(word for word in words if word not in _EMPTY)


def _normal(word: str) -> str:
    if word in _EMPTY:
        return word
    word = _SAME.get(word, word)
    if len(word) > 3 and word.endswith("s") and not word.endswith("ss") and word != "shorts":
        word = word[:-1]
    elif word.endswith("sses"):
        word = word[:-2]
    return _SAME.get(word, word)


def shown_phrase(prompt: str) -> str:
    """A prompt without its beginning, as somebody would write it."""
    phrase = re.sub(r"^an? (?:photo|drawing|picture) of (?:an? person )?", "", prompt)
    return re.sub(r"^(?:who is|wearing|carrying|holding|with|in) (?:an? |the )?", "", phrase)


def suggest(word: str, choices: Iterable[str]) -> str:
    """The end of a message: the choices most similar to `word`, or all if none is similar."""
    by_lower = {choice.lower(): choice for choice in choices}
    near = difflib.get_close_matches(word[:100].lower(), by_lower, n=3, cutoff=0.6)
    if near:
        return "; did you mean " + " or ".join(repr(by_lower[one]) for one in near) + "?"
    return f"; it has {', '.join(list(by_lower.values())[:60])[:1000]}"
