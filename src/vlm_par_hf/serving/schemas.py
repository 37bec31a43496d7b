"""What requests and answers hold, as types: requests are checked against them, and `/docs` shows them."""

import base64
import binascii
import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vlm_par_hf.errors import ParValueError
from vlm_par_hf.images.downloading import is_url

from .refusals import Refusal


__all__ = [
    "Answers",
    "AskedPicture",
    "AttributesRequest",
    "Failure",
    "Person",
    "PictureAnswer",
    "SearchRequest",
    "decode_picture",
    "first_errors",
]

Number = Annotated[float, Field(allow_inf_nan=False)]
Box = Annotated[list[Number], Field(min_length=4, max_length=4)]
Text = Annotated[str, Field(min_length=1, max_length=500)]
_IMAGE = "base64 text of an image file, a data URI, or, where the service allows it, a URL"
_BOXES = "one person each; without: those whom the detector finds, or the whole picture"
_DATA_URI = re.compile(r"data:[\w.+/-]*(?:;[\w.=+-]+)*;base64,", re.IGNORECASE)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class AskedPicture(_Strict):
    """A picture, and boxes of the people in it."""

    image: str = Field(description=_IMAGE)
    boxes: list[Box] | None = Field(None, description=_BOXES)


class PipelineOptions(_Strict):
    """Options of `pipeline("pedestrian-attributes")`."""

    attributes: list[Text | Annotated[list[Text], Field(max_length=64)]] | None = Field(
        None, max_length=256, description="names of attributes, or attributes in words for models that read them"
    )
    threshold: Number | None = Field(None, description='a probability above it is "yes", for all binary attributes')
    thresholds: dict[str, Number] | None = Field(None, description="the same for single attributes")
    decide: Text | None = Field(None, description="which of the points fitted for the model decides, such as mA")
    abstain: Number | None = Field(None, description='answers that are not sure for this level come out as "unknown"')
    only_positive: bool | None = Field(None, description="leave out what a person does not have")
    sensitive: bool | None = Field(None, description="false leaves out perceived gender and age")
    explain: bool | list[Text] | None = Field(
        None, description="attributes to give the relevance of each patch of the picture for"
    )
    box_format: str | None = Field(None, description="xyxy, xywh, cxcywh; with n as shares of the picture")
    box_margin: Number | None = Field(None, description="share of a box's size, added on each side")
    detect: bool | None = Field(None, description="false: a picture without boxes is one person")
    detector_threshold: Number | None = Field(None, description="lowest score of a person whom the detector finds")


class AttributesRequest(PipelineOptions):
    """One picture (`image`), or several (`images`), and what is asked of them."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"image": "data:image/jpeg;base64,/9j/4AAQ...", "attributes": ["Hat", "Backpack"]},
                {"images": [{"image": "/9j/4AAQ...", "boxes": [[10, 20, 60, 160]]}, {"image": "iVBORw0K..."}]},
            ]
        }
    )

    image: str | None = Field(None, description=_IMAGE)
    boxes: list[Box] | None = Field(None, description=_BOXES)
    images: list[AskedPicture] | None = Field(None, min_length=1)

    @model_validator(mode="after")
    def _one_of_both(self) -> "AttributesRequest":
        if (self.image is None) == (self.images is None):
            raise ParValueError("expected either image or images")
        if self.images is not None and self.boxes is not None:
            raise ParValueError("boxes stand beside image; with images each picture has its own")
        return self

    @property
    def pictures(self) -> list[AskedPicture]:
        """The pictures that are asked about."""
        return self.images or [AskedPicture(image=self.image, boxes=self.boxes)]

    def options(self) -> dict[str, Any]:
        """Those options that are given."""
        return self.model_dump(include=set(PipelineOptions.model_fields), exclude_none=True)


class Answer(BaseModel):
    """The answer for one attribute."""

    label: str = Field(description='one of the labels, or with abstain "unknown"')
    score: float | None = Field(description="probability of the label")
    probabilities: dict[str, float] = Field(description="of each label")
    threshold: float | None = Field(None, description='binary attributes: "yes" if its probability is above')
    set: list[str] | None = Field(None, description="with abstain: the labels that are possible")
    reason: str | None = Field(None, description="with abstain: why nothing is answered")


class Person(BaseModel):
    """One person of a picture."""

    attributes: dict[str, Answer]
    box: list[int] | None = Field(None, description="pixels that were read: x0, y0, x1, y1")
    box_without_margin: list[int] | None = None
    score: float | None = Field(None, description="of the detector")
    relevance: dict[str, list[list[float]]] | None = Field(None, description="with explain: of each patch, by rows")


class PictureAnswer(BaseModel):
    """The people of one picture; without boxes and detector the picture is one person, who has no box."""

    people: list[Person]


class Failure(BaseModel):
    """Why there is no answer."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"error": "boxes: Input should be a valid list", "code": "request"}]}
    )

    error: str
    code: str = Field(description="one word for programs, such as picture, options, too_large, busy")


class Answers(BaseModel):
    """One entry for each picture, in their order; a bad picture has the reason, and its neighbours their answers."""

    results: list[PictureAnswer | Failure]


class SearchRequest(_Strict):
    """A search in the gallery that the service was started with."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"query": "backpack, not hat", "filter": {"Trousers": "yes"}, "top": 10}]}
    )

    query: Text | dict[str, Any] = Field(description='attributes in words ("backpack, not hat"), or with their labels')
    filter: Text | dict[str, Any] | None = Field(
        None, description="as query: only people whose answers meet all of it"
    )
    score: Literal["log_likelihood", "l1"] | None = Field(None, description="how people are ranked")
    top: Annotated[int, Field(ge=1, le=1000)] = 10


def decode_picture(text: str, name: str = "image") -> bytes | str:
    """The bytes of an image that a request holds as text; a URL stays text.

    Raises:
        Refusal: it is neither base64 nor a URL. The message does not quote it.
    """
    if is_url(text):
        return text
    start = _DATA_URI.match(text[:200])
    if start is None and text[:5].lower() == "data:":
        raise Refusal(422, "picture", f"{name} is a data URI of another form, expected data:image/...;base64,...")
    try:
        return base64.b64decode("".join(text[start.end() if start else 0 :].split()), validate=True)
    except (binascii.Error, ValueError):
        raise Refusal(
            422, "picture", f"{name} is no base64 text, expected that of an image file, a data URI or an http(s) URL"
        ) from None


def first_errors(error: ValidationError) -> str:
    """What is wrong with a request, in words; without its values, which may be pictures."""
    found = [
        f"{'.'.join(str(part) for part in one['loc']) or 'the request'}: {one['msg'].removeprefix('Value error, ')}"
        for one in error.errors(include_url=False, include_input=False, include_context=False)
    ]
    more = f" (and {len(found) - 3} more)" if len(found) > 3 else ""
    return "; ".join(found[:3])[:1000] + more
