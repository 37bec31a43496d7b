"""`pipeline("pedestrian-attributes")`: pictures in, attributes of people out.

One picture is one person, unless boxes or a detector say where the people are. People are answered in batches that run
across pictures. Threads prepare only the next batch while the model answers this one, so that a stream of any length
and a picture with any number of boxes need memory for two batches only.

    import vlm_par_hf
    from transformers import pipeline

    pipe = pipeline("pedestrian-attributes", model=folder)
    pipe("crop.jpg")["attributes"]["Hat"]        # {"label": "yes", "score": 0.93, "probabilities": {...}}
    pipe("street.jpg", boxes=[[10, 20, 60, 160]])
    pipe("street.mp4", tracks="street.mot.txt")
    for result in pipe(KeyDataset(dataset, "image"), batch_size=16): ...
"""

import copy
import inspect
import math
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, BinaryIO, NamedTuple, Self, overload

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoProcessor, Pipeline
from transformers.utils import logging

from vlm_par_hf.base.outputs import ParOutput
from vlm_par_hf.errors import ParError, ParKeyError, ParTypeError, ParValueError
from vlm_par_hf.families import FAMILIES
from vlm_par_hf.hub.pushing import PushToHub
from vlm_par_hf.images.opening import is_one_image
from vlm_par_hf.labels.asking import check_threshold, check_thresholds, chosen_thresholds, read_asked
from vlm_par_hf.labels.decisions import Decisions, is_answered, is_positive_answer, read_thresholds
from vlm_par_hf.labels.schema import AttributeSchema
from vlm_par_hf.upstream import (
    hide_default_messages,
    infer_task,
    is_task_registered,
    refuse_other_tasks,
    register_task,
)
from vlm_par_hf.utils import default_threads, embedded_path, shorten
from vlm_par_hf.visualization import overlay_relevance

from .answering import FOLLOWING_OPTIONS, PeopleAnswerer, answer_tracks
from .boxes import check_box_options
from .pictures import TASK, Person, Picture, Pictures, Results, fill_batches
from .predicting import predict_batch
from .results import PersonResult, PictureResult
from .tracklets import Stream, answer_tracklets, find_tracklets
from .trust import trust_note
from .videos import is_video_file


__all__ = ["TASK", "PedestrianAttributesPipeline", "register_pipeline"]

logger = logging.get_logger(__name__)

_EXPLAIN_AS = ("overlay", "relevance")

Source = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image | np.ndarray | torch.Tensor
    | Mapping[str, Any]
)  # fmt: skip


# Options of transformers' image pipelines, and what does the same here.
_HINTS = {
    "candidate_labels": "Attributes in words are given as attributes=['wearing a red scarf', ...]",
    "hypothesis_template": "Attributes in words are given as attributes=['wearing a red scarf', ...]",
    "top_k": "Every attribute has its own answer; only_positive=True leaves out what a person does not have",
    "function_to_apply": "Every answer holds the probabilities of all labels of its attribute",
}


class _Chosen(NamedTuple):
    """The attributes that are asked for in place of all of the model's own."""

    schema: AttributeSchema
    columns: tuple[int, ...] | None  # of the model's logits; None: `encoded` has the model answer for exactly these
    answered: AttributeSchema  # what the model answers: these and, with columns, all others
    encoded: Any = None  # from `model.encode_attributes`
    texts: tuple[str, ...] = ()  # the names of those that are none of the model's own

    def column(self, name: str) -> int:
        """The position of an attribute in what the model returns."""
        place = self.schema.index(name)
        return place if self.columns is None else self.columns[place]


class PedestrianAttributesPipeline(PushToHub, Pipeline):
    """Attributes of the people in pictures, by any model of this package.

    Args:
        model (`PreTrainedModel`): a model whose `config.schema` is an `AttributeSchema`.
        processor (`ProcessorMixin`): the processor saved with it.
        image_processor (`BaseImageProcessor`, *optional*): takes the place of that of `processor`. For a model in
            memory it is enough if the tokenizer is in the checkpoint that the model was loaded from.
        only_positive (`bool`, defaults to `False`): leave out binary attributes answered "no" and categorical ones
            answered "no" or "none".
        sensitive (`bool`, defaults to `True`): `False` leaves out the attributes that the schema marks as sensitive
            (perceived gender and age).
        attributes (list, dict or `AttributeSchema`, *optional*): answer for these instead of all of the model's own:
            names of them (`["Hat", "Age"]`, any model) and attributes in words, which `FocusParModel` recognises, and
            `VlmParModel` by comparing picture and text as its backbone does: what `AttributeSchema.from_texts` takes,
            such as `["wearing a red scarf", ["a backpack", "a handbag", "no bag"]]`. Encoded once per call.
        threshold (`float`, *optional*): a binary attribute is answered with its second label ("yes") if that label's
            probability is above this, for all of them in place of their own thresholds.
        thresholds (`dict`, *optional*): `{name: threshold}` for single binary attributes, before `threshold`.
        decide (`str`, *optional*): which of the fitted points that are stored with the model (`config.decisions`)
            thresholds and biases are taken from, such as `"mA"` or `"instance_f1"`; by default the one in use.
        abstain (`float`, *optional*): such as 0.9: an answer that is not sure enough for this level comes out as
            `"unknown"`; `"set"` holds the labels that are possible, as `post_process_attributes` says.
        consistent (`bool`, *optional*): whether answers fit together: `{"label": None, "score": None, ...}` where the
            question makes no sense (the hat color of a bare head), and at most one positive answer of attributes that
            exclude each other. By default for models with fitted decisions or with such a condition in their label
            space; older ones answer each attribute for itself.
        explain (`bool`, `str` or list of `str`, defaults to `False`): attributes to show the relevance of patches for;
            `True` for all those in the result.
        explain_as (`str`, defaults to `"overlay"`): `"overlay"` adds `"overlays"`, a picture per attribute;
            `"relevance"` adds `"relevance"`, a float32 array `(rows, columns)` per attribute.
        detector (callable, *optional*): an object-detection pipeline, or anything that is called as
            `detector(image, threshold=...)` and returns a list of
            `{"label", "score", "box": {"xmin", "ymin", "xmax", "ymax"}}`.
        detector_label (`str`, defaults to `"person"`): the label of people, compared without case.
        detector_threshold (`float`, defaults to 0.5): the lowest score of a person.
        box_format (`str`, defaults to `"xyxy"`): how boxes are given, those of `boxes` and those of a detector:
            `"xyxy"` (corners), `"xywh"` (corner and size) or `"cxcywh"` (center and size) in pixels; `"xyxyn"`,
            `"xywhn"`, `"cxcywhn"` as shares of the picture's width and height.
        box_margin (`float`, defaults to 0): share of a box's width and height that is added on each side; what would
            lie outside the picture is cut off.
        timeout (`float`, defaults to 30): seconds for a URL in all.
        allow_urls (`bool`, *optional*): whether `http(s)` URLs are read. By default those that are given directly, as
            one picture or in a list, but not those in rows of data, data sets and streams.
        allow_private_urls (`bool`, defaults to `False`): also read URLs of this machine and of its own network.
        kwargs: `device`, `batch_size`, `num_workers` as for every pipeline.

    Each option may be given here or in a call, which takes precedence. Answers do not depend on `batch_size`, up to
    rounding. The model is put in evaluation mode when the pipeline is made.

    Raises:
        ValueError: if there is no processor, or an option has a value that is not allowed.
        TypeError: if the model has no label space, or the processor is of another kind.
    """

    _load_processor = None  # `_make_processor` says what is wrong if there is none
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    _read_decisions: tuple[Any, Decisions] | None = None  # `config.decisions`, and what it says
    _said_open: list[str] | None = None

    def __init__(self, model, processor=None, image_processor=None, **kwargs):
        if processor is None or image_processor is not None:
            processor = _make_processor(model, processor, image_processor)
        if not hasattr(processor, "post_process_attributes"):
            raise ParTypeError(
                f"processor is a {type(processor).__name__}, expected one with post_process_attributes, such as "
                "VlmParProcessor; does the folder hold a processor_config.json?"
            )
        # No check of the class: a compiled model, or one with adapters, is of another and passes attributes on.
        if getattr(model.config, "schema", None) is None:
            raise ParTypeError(
                f"model is a {type(model).__name__} without attributes in its config, expected a model of this "
                "package, such as VlmParModel"
            )
        super().__init__(model=model, processor=processor, **kwargs)
        self.model.eval()  # once: threads may share a pipeline, and each call would see what another one sets
        note = trust_note(model)
        if note is not None:
            logger.warning("%s", note)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | None = None,
        *,
        device: int | str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        batch_size: int | None = None,
        num_workers: int | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        **options: Any,
    ) -> Self:
        """The pipeline of a checkpoint, as `transformers.pipeline("pedestrian-attributes", model=...)` makes it, for
        type checkers and editors.

        Args:
            pretrained_model_name_or_path: folder or repository; None: the small model that ships with the package.
            device, dtype, revision, token: as for `transformers.pipeline`.
            batch_size, num_workers: of calls that name no other.
            options: those of the class, and further ones of `transformers.pipeline`.

        Raises:
            What `transformers.pipeline` raises.
        """
        from transformers import pipeline

        name = pretrained_model_name_or_path
        given = {
            "model": None if name is None else os.fspath(name), "device": device, "dtype": dtype,
            "batch_size": batch_size, "num_workers": num_workers, "revision": revision, "token": token,
        }  # fmt: skip
        given = {key: value for key, value in given.items() if value is not None}
        return pipeline(TASK, pipeline_class=cls, **given, **options)

    def _sanitize_parameters(
        self,
        *,
        only_positive: bool | None = None,
        sensitive: bool | None = None,
        attributes: Any = None,
        threshold: float | None = None,
        thresholds: Mapping[str, float] | None = None,
        decide: str | None = None,
        abstain: float | None = None,
        consistent: bool | None = None,
        explain: bool | str | Sequence[str] | None = None,
        explain_as: str | None = None,
        detector=None,
        detector_label: str | None = None,
        detector_threshold: float | None = None,
        box_format: str | None = None,
        box_margin: float | None = None,
        timeout: float | None = None,
        allow_urls: bool | None = None,
        allow_private_urls: bool | None = None,
        **unknown: Any,
    ):
        if unknown:
            raise ParTypeError(_describe_unknown(unknown))
        if box_format is not None or box_margin is not None:
            check_box_options("xyxy" if box_format is None else box_format, 0.0 if box_margin is None else box_margin)
        if explain_as is not None and explain_as not in _EXPLAIN_AS:
            raise ParValueError(f"explain_as is {explain_as!r}, expected one of {_EXPLAIN_AS}")
        if detector is not None and not callable(detector):
            raise ParTypeError(f"detector is a {type(detector).__name__}, expected an object-detection pipeline")
        if detector_threshold is not None and not 0.0 <= detector_threshold <= 1.0:
            raise ParValueError(f"detector_threshold is {detector_threshold}, expected a number in [0, 1]")
        # While the pipeline is made there are no options yet that it was made with.
        set_before = getattr(self, "_postprocess_params", {})
        shown = set_before.get("sensitive", True) if sensitive is None else sensitive
        chosen = self._choose(attributes, shown) if attributes is not None else set_before.get("chosen")
        if threshold is not None:
            threshold = check_threshold(threshold)
        if thresholds is not None:
            schema = self.model.config.schema
            thresholds = check_thresholds(thresholds, [schema] if chosen is None else [chosen.schema, schema])
        if decide is not None:
            self._check_decide(decide)
        if abstain is not None:
            self._check_abstain(abstain, chosen)
        if consistent is not None and not isinstance(consistent, bool):
            raise ParTypeError(f"consistent is {shorten(consistent)}, expected True or False")
        explained = self._attributes_to_explain(explain, chosen, shown)
        if explain is not None:
            explain = explained
        preprocess = {
            "timeout": timeout,
            "detector": detector,
            "detector_label": detector_label,
            "detector_threshold": detector_threshold,
            "box_format": box_format,
            "box_margin": box_margin,
            "allow_urls": allow_urls,
            "allow_private_urls": allow_private_urls,
        }
        chosen = chosen if attributes is not None else None
        forward = {"chosen": chosen, "explain": explain}
        postprocess = {
            "only_positive": only_positive,
            "sensitive": sensitive,
            "chosen": chosen,
            "threshold": threshold,
            "thresholds": thresholds,
            "decide": decide,
            "abstain": abstain,
            "consistent": consistent,
            "explain": explain,
            "explain_as": explain_as,
        }
        groups = (preprocess, forward, postprocess)
        return tuple({key: value for key, value in group.items() if value is not None} for group in groups)

    def _choose(self, attributes: Any, sensitive: bool) -> _Chosen:
        """The attributes that a call asks for, checked and, if there are texts, encoded."""
        model = self.model
        asked = read_asked(attributes, model.config.schema, subject=model.text_subject)
        for name in asked.named:
            if asked.schema[name].sensitive and not sensitive:
                raise ParValueError(f"attributes names {name!r}, which sensitive=False leaves out of the answer")
        if not asked.texts:
            answered = [
                replace(one, threshold=asked.schema[one.name].threshold) if one.name in asked.schema else one
                for one in model.config.schema
            ]
            return _Chosen(asked.schema, asked.places, AttributeSchema(answered))
        if not model.supports_attributes:
            text = asked.texts[0]
            try:
                model.config.schema.index(text)
                unknown = "differs from the model's attribute of that name"
            except ParKeyError as error:
                unknown = str(error)
            raise ParValueError(f"attributes holds {shorten(text)}: {unknown}; {model.why_no_texts}")
        return _Chosen(
            asked.schema, None, asked.schema, model.encode_attributes(asked.schema, self.processor), asked.texts
        )

    def _fitted(self, chosen: _Chosen | None = None, decide: str | None = None) -> Decisions | None:
        """What was fitted for the attributes that are asked for; None if nothing was."""
        given = self.model.config.decisions
        if given is None:
            return None
        if self._read_decisions is None or self._read_decisions[0] is not given:
            self._read_decisions = (given, Decisions.from_dict(given))
        found = self._read_decisions[1]
        if chosen is not None and chosen.texts:  # one of them may have the name of an attribute that was fitted
            kept = {name: one for name, one in found.attributes.items() if name not in chosen.texts}
            found = replace(found, attributes=kept)
        return replace(found, objective=(decide or found.objective) if found.points() else None)

    def _check_decide(self, decide: Any) -> None:
        found = self._fitted()
        stored = [] if found is None else found.points()
        if decide not in stored:
            expected = f"one of {', '.join(map(repr, stored))}" if stored else "none: no points are stored with it"
            raise ParValueError(
                f"decide is {shorten(decide)}, expected a point that was fitted for this model, {expected} "
                "(vlm-par calibrate fits others)"
            )

    def _check_abstain(self, abstain: Any, chosen: _Chosen | None) -> None:
        """Refuses a level for which the model has no sets, and says once where sets promise nothing."""
        if isinstance(abstain, bool) or not isinstance(abstain, (int, float)) or not 0 < abstain < 1:
            raise ParValueError(f"abstain is {shorten(abstain)}, expected a number between 0 and 1, such as 0.9")
        found = self._fitted(chosen)
        if found is None:
            raise ParValueError(
                f"abstain is {abstain:g}, and nothing was fitted for this model that says how sure it is: fit it on "
                "labelled pictures (vlm-par calibrate)"
            )
        schema = self.model.config.schema if chosen is None else chosen.schema
        none = np.zeros((0, len(schema), schema.max_labels))
        _, promised = found.answer_sets(none, schema, abstain)
        open_names = [one.name for one, row in zip(schema, promised) if not row[: one.num_labels].all()]
        if open_names and open_names != self._said_open:
            self._said_open = open_names
            logger.warning(
                "abstain=%g promises nothing for attributes with a label that was fitted on fewer than 20 pictures or "
                "not at all: %s", abstain, shorten(open_names),
            )  # fmt: skip

    def _attributes_to_explain(self, explain, chosen: _Chosen | None, sensitive: bool) -> bool | tuple[str, ...]:
        """`explain`, checked together with the options that were set when the pipeline was made."""
        explain = getattr(self, "_forward_params", {}).get("explain", False) if explain is None else explain
        if isinstance(explain, (bool, np.bool_)):
            explain = bool(explain)
        if explain and not self.model.supports_explain:
            raise ParValueError(f"explain is {explain!r}, but {type(self.model).__name__} cannot explain its answers")
        schema = self.model.config.schema if chosen is None else chosen.schema
        encoded = None if chosen is None else chosen.encoded
        if explain is False or (explain is True and encoded is None):
            return explain
        names = (explain,) if isinstance(explain, str) else schema.names if explain is True else tuple(explain)
        for name in names:
            try:
                attribute = schema[name]
            except KeyError as error:
                raise ParValueError(f"explain names {name!r}: {error.args[0]}") from None
            if attribute.sensitive and not sensitive and explain is not True:
                raise ParValueError(f"explain names {name!r}, which sensitive=False leaves out of the answer")
            if encoded is not None and name not in encoded.explained:
                raise ParValueError(
                    f"explain names {name!r}, whose text is compared with the picture as a whole: no part of it can "
                    "be shown; expected attributes that the model was trained on"
                )
        return True if explain is True else names

    @overload
    def __call__(
        self,
        inputs: Source,
        *,
        boxes: None = None,
        batch_size: int | None = None,
        num_workers: int | None = None,
        **kwargs: Any,
    ) -> PersonResult: ...

    @overload
    def __call__(
        self,
        inputs: Source,
        *,
        boxes: Iterable[Any],
        batch_size: int | None = None,
        num_workers: int | None = None,
        **kwargs: Any,
    ) -> PictureResult: ...

    @overload
    def __call__(
        self,
        inputs: list[Any] | tuple[Any, ...],
        *,
        boxes: Iterable[Any] | None = None,
        batch_size: int | None = None,
        num_workers: int | None = None,
        **kwargs: Any,
    ) -> list[Any]: ...

    @overload
    def __call__(
        self,
        inputs: Any = None,
        *,
        images: Any = None,
        boxes: Iterable[Any] | None = None,
        tracks: str | os.PathLike[str] | None = None,
        batch_size: int | None = None,
        num_workers: int | None = None,
        **kwargs: Any,
    ) -> Any: ...

    def __call__(
        self,
        inputs: Any = None,
        *,
        images: Any = None,
        boxes: Any = None,
        tracks: str | os.PathLike[str] | None = None,
        aggregate: str | None = None,
        num_frames: int | None = None,
        batch_size: int | None = None,
        num_workers: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Answer for one picture, a list, or a stream of pictures; or for the people of a video.

        A picture is a path, an `http(s)` URL, bytes, base64 text (`data:image/...;base64,` or bare), an open binary
        file (read from its beginning), a `PIL.Image.Image`, a NumPy array or tensor `(height, width, 3)`, or a dict
        with such a value under `"image"` and, if wanted, `"boxes"`. Orientation tags are applied first: boxes refer to
        the upright picture, and to its full size where a large JPEG is decoded smaller.

        Args:
            inputs: one picture; a list or tuple of them; or any iterable with an order: a generator, a Series or
                column, an array of paths, a torch or `datasets` data set (rows with an `"image"` column, or one column
                through `transformers.pipelines.pt_utils.KeyDataset`). Answers come in the order of iteration.
                A list is several people: the frames of one person are a `Tracklet(frames)`, or a dict with `"frames"`,
                a list of pictures or a folder of them; several such are a list of them, or any iterator.
            images: another name of `inputs`, as in the image pipelines of transformers.
            boxes: for one picture a list of boxes in the form of `box_format`, by default `[x0, y0, x1, y1]` in pixels
                (or an `(n, 4)` array, or the `"box"` dicts of a detector); for several pictures one such list for
                each. A box that is partly outside is clipped. Boxes rule out `detector` in the same call and override
                the detector of the pipeline.
            tracks: of a video file, which is then `inputs`: a track file as the MOT Challenge has it, which says who
                is where (`vlm-par track` makes one). The answers are a list with a dict for each person, as
                `answer_tracks` says; its options `first_frame`, `every` and `budget` may be given too.
            aggregate (`str`): how the answers for the frames of a tracklet or track are put together, `"mean_logits"`
                (the default), `"quality"` or `"vote"` (`aggregate_logits`). Not for `VtfParModel`, which takes all
                frames.
            num_frames (`int`): at most so many frames of a tracklet, spread evenly; by default all.
            batch_size (`int`): people per forward.
            num_workers (`int`): threads that open pictures ahead of the model; by default one per core
                (`OMP_NUM_THREADS` lowers it), at most 8. With 0 nothing is read ahead. The items themselves are taken
                one by one in the caller's thread, so paths or encoded bytes are faster than pictures that are decoded
                there (a `datasets` image column is not decoded). To share expensive work among processes, pass a
                `DataLoader(dataset, batch_size=None, num_workers=...)`.
            kwargs: the options of the class, for this call.

        Returns:
            For one picture `{"attributes": {name: {"label", "score", "probabilities", "threshold"}}}`, the threshold
            of binary attributes only, with `abstain` also `"set"` and `"reason"`; label and score are None where the
            question makes no sense (`consistent`). It is a `PersonResult`: a dict that can be drawn. With boxes or a
            detector a list of `{"box": [x0, y0, x1, y1], "attributes": {...}}`, in the order of the boxes (`"score"`
            too, with a detector; a `PictureResult`), where `box` holds the whole pixels that were read; with a
            `box_margin` also `"box_without_margin"`, the pixels of the box itself. For a list of pictures a list of
            these. For anything else an iterator that reads ahead by about two batches, with one result per picture,
            in order.

        Raises:
            ValueError, TypeError, OSError: for a picture that cannot be read, a box that is empty, reversed, not
                finite, outside or in another unit, a container without an order, or an option that there is not; for
                several pictures the message starts with the item's index and path.
        """
        if (inputs is None) == (images is None):
            given = "neither was" if inputs is None else "both were"
            raise ParTypeError(f"inputs and images are two names of the pictures, and {given} given, expected one")
        inputs = images if inputs is None else inputs
        if boxes is not None and kwargs.get("detector") is not None:
            raise ParValueError("both boxes and detector were given, expected one of them")
        if tracks is None and is_video_file(inputs):
            raise ParValueError(
                f"{shorten(os.fspath(inputs))} is a video, expected tracks=, a track file (MOT) that says who is "
                "where: `vlm-par track` makes one"
            )
        following = {name: kwargs.pop(name) for name in FOLLOWING_OPTIONS if tracks is not None and name in kwargs}
        if tracks is not None and (boxes is not None or kwargs.get("detector") is not None):
            raise ParValueError("tracks were given with boxes or a detector, expected one of them")
        groups = zip(
            (self._preprocess_params, self._forward_params, self._postprocess_params),
            self._sanitize_parameters(**kwargs),
        )
        preprocess_params, forward_params, postprocess_params = ({**old, **new} for old, new in groups)
        batch_size = batch_size if batch_size is not None else self._batch_size if self._batch_size is not None else 1
        num_workers = num_workers if num_workers is not None else self._num_workers
        num_workers = default_threads() if num_workers is None else num_workers
        if batch_size < 1:
            raise ParValueError(f"batch_size is {batch_size}, expected at least 1")
        if num_workers < 0:
            raise ParValueError(f"num_workers is {num_workers}, expected 0 or more")
        if tracks is not None:
            if num_frames is not None:
                raise ParValueError("num_frames is for tracklets; of a video budget= says how many pictures are used")
            people = PeopleAnswerer(
                self, batch_size=batch_size, aggregate=aggregate, forward=forward_params,
                postprocess=postprocess_params,
            )  # fmt: skip
            return answer_tracks(people, inputs, tracks, **following)
        tracklets, single = find_tracklets(inputs)
        answer_all = partial(
            answer_tracklets, self, aggregate=aggregate, num_frames=num_frames, batch_size=batch_size,
            forward_params=forward_params, postprocess_params=postprocess_params,
        )  # fmt: skip
        if tracklets is not None:
            if boxes is not None or preprocess_params.get("detector") is not None:
                raise ParValueError("boxes or a detector were given with tracklets, whose frames show one person each")
            results = answer_all(tracklets)
            return next(results) if single else list(results) if isinstance(inputs, (list, tuple)) else results
        stream = None
        if isinstance(inputs, Iterator) and not hasattr(inputs, "read"):  # an open file iterates over its lines
            inputs = stream = Stream(inputs)
        elif aggregate is not None or num_frames is not None:
            raise ParValueError(
                "aggregate and num_frames are for the frames of one person, and pictures were given: pass "
                "Tracklet(frames), or a dict with 'frames'"
            )
        single = is_one_image(inputs) or hasattr(inputs, "read")
        if not single and not isinstance(inputs, Iterable) and not hasattr(inputs, "__getitem__"):
            raise ParTypeError(
                f"inputs is {inputs!r:.200}, expected a picture (path, URL, bytes, PIL image, array) or an iterable "
                "of them"
            )
        pictures = Pictures(
            [inputs] if single else inputs,
            boxes=[boxes] if single and boxes is not None else boxes,
            processor=self.processor,
            single=single,
            threads=0 if single else num_workers,
            batch_size=batch_size,
            keep_crops=bool(forward_params.get("explain")),
            find_doubts=postprocess_params.get("abstain") is not None,
            remember=single or isinstance(inputs, (list, tuple)),
            **preprocess_params,
        )
        results = self._answer(pictures.read(), batch_size, forward_params, postprocess_params)
        if single:
            return next(results)
        if isinstance(inputs, (list, tuple)):
            return list(results)
        if stream is not None:
            results = stream.answer(results, answer_all)
        return Results(results, pictures.length)

    def preprocess(self, input_, **preprocess_params) -> dict[str, torch.Tensor]:
        """The model's inputs for one picture of one person, with a leading axis of 1."""
        if preprocess_params.get("detector") is not None or (
            isinstance(input_, Mapping) and input_.get("boxes") is not None
        ):
            raise ParValueError("preprocess answers for one person, expected a picture without boxes and detector")
        (person,) = Pictures([input_], processor=self.processor, single=True, **preprocess_params).read()
        return person.inputs

    def _forward(
        self,
        model_inputs: Mapping[str, torch.Tensor],
        chosen: _Chosen | None = None,
        explain: bool | tuple[str, ...] = False,
        names: Sequence[str | int] | None = None,
    ) -> dict[str, torch.Tensor]:
        encoded = None if chosen is None else chosen.encoded
        return predict_batch(self.model, model_inputs, attributes=encoded, explain=bool(explain), names=names)

    def postprocess(
        self,
        model_outputs: dict[str, torch.Tensor],
        crops: Sequence[Image.Image] | None = None,
        only_positive: bool = False,
        sensitive: bool = True,
        chosen: _Chosen | None = None,
        threshold: float | None = None,
        thresholds: Mapping[str, float] | None = None,
        decide: str | None = None,
        abstain: float | None = None,
        consistent: bool | None = None,
        explain: bool | tuple[str, ...] = False,
        explain_as: str = "overlay",
        doubts: Sequence[str | None] | None = None,
        majority: bool = False,
    ) -> list[dict[str, Any]]:
        """One dict of answers per row of the outputs; for overlays `crops`, the pictures of the people, are needed,
        and for reasons of `abstain` their `doubts` (`find_doubt`). With `majority` the outputs are shares of votes,
        and the label with the most of them is the answer."""
        if chosen is None:
            schema = self.model.config.schema
            chosen = _Chosen(schema, tuple(range(len(schema))), answered=schema)
        # All of the model's own attributes are decided, whichever are asked for: others may depend on them.
        schema, decisions = chosen.answered, None if majority else self._fitted(chosen, decide)
        if majority:
            decide, threshold, thresholds = None, 0.5, None
        people = self.processor.post_process_attributes(
            ParOutput(logits=model_outputs["logits"]),
            schema=schema if decide is None else decisions.settle(schema),
            threshold=chosen_thresholds(schema, threshold, thresholds),
            decisions=decisions,
            abstain=abstain,
            doubts=doubts,
            consistent=consistent,
        )
        results = []
        for row, found in enumerate(people):
            answers = {
                name: found[name]
                for name in chosen.schema.names
                if (sensitive or not schema[name].sensitive)
                and (
                    not only_positive
                    or (is_answered(found[name]) and is_positive_answer(found[name]["label"], schema[name]))
                )
            }
            result = {"attributes": answers}
            if explain:
                names = tuple(answers) if explain is True else explain
                names = [name for name in names if found[name]["label"] is not None]
                maps = {name: _relevance_map(model_outputs, row, chosen.column(name)) for name in names}
                if explain_as == "relevance":
                    result["relevance"] = maps
                else:
                    result["overlays"] = {name: overlay_relevance(crops[row], maps[name]) for name in names}
            results.append(result)
        return results

    def frame_decisions(self, params: Mapping[str, Any]) -> tuple[AttributeSchema, np.ndarray, np.ndarray | None]:
        """How the frames of a tracklet vote with the options of a call: the label space of the logits, thresholds
        `(A,)`, and biases `(A, C)` or None."""
        chosen, decide = params.get("chosen"), params.get("decide")
        schema = self.model.config.schema if chosen is None else chosen.answered
        decisions = self._fitted(chosen, decide)
        held = chosen_thresholds(schema, params.get("threshold"), params.get("thresholds"))
        settled = schema if decide is None else decisions.settle(schema)
        return schema, read_thresholds(settled, held), None if decisions is None else decisions.bias_table(schema)

    @property
    def label_space(self) -> AttributeSchema:
        """The attributes that are answered with the options that the pipeline was made with; their thresholds are
        those that answers are held against."""
        chosen, options = self._postprocess_params.get("chosen"), self._postprocess_params
        schema = self.model.config.schema if chosen is None else chosen.schema
        if options.get("decide") is not None:
            schema = self._fitted(chosen, options["decide"]).settle(schema)
        held = chosen_thresholds(schema, options.get("threshold"), options.get("thresholds"))
        return AttributeSchema(replace(one, threshold=held.get(one.name, one.threshold)) for one in schema)

    def answer_batch(
        self,
        inputs: Mapping[str, torch.Tensor],
        *,
        names: Sequence[str | int] | None = None,
        crops: Sequence[Image.Image] | None = None,
        doubts: Sequence[str | None] | None = None,
    ) -> list[dict[str, Any]]:
        """Answers for prepared people, with the options that the pipeline was made with.

        Args:
            inputs: what the processor made of B people.
            names: of the people, for messages; None: their positions.
            crops: their pictures, needed for overlays.
            doubts: why nothing can be said of each (`find_doubt`), or None; it counts with `abstain`.

        Returns:
            B dicts, as for one picture.
        """
        outputs = self._forward(inputs, names=names, **self._forward_params)
        return self.postprocess(outputs, crops=crops, doubts=doubts, **self._postprocess_params)

    def _answer(
        self, people: Iterator[Person], batch_size: int, forward_params: dict, postprocess_params: dict
    ) -> Iterator[PersonResult | PictureResult]:
        """Yields the result of each picture, in order, as soon as its last person has been answered."""
        waiting: deque[Picture] = deque()
        batches = fill_batches(people, batch_size, waiting)
        for batch, inputs in batches:
            if inputs is not None:
                names = [one.picture.where or position for position, one in enumerate(batch)]
                outputs = self._forward(inputs, names=names, **forward_params)
                crops, doubts = [one.crop for one in batch], [one.doubt for one in batch]
                results = self.postprocess(outputs, crops=crops, doubts=doubts, **postprocess_params)
                for one, result in zip(batch, results):
                    one.picture.answer(one.slot, result)
            while waiting and waiting[0].is_answered:
                yield waiting.popleft().result

    def _save_files(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        # No pipeline code is saved: `import vlm_par_hf` registers the task, and a configuration that names code for it
        # would make transformers ask for trust_remote_code.
        custom_pipelines = getattr(self.model.config, "custom_pipelines", None)
        if custom_pipelines is not None:
            custom_pipelines.pop(TASK, None)
            if not custom_pipelines:
                del self.model.config.custom_pipelines
        self.model.save_pretrained(save_directory, **kwargs)
        self.processor.save_pretrained(save_directory)

    def _model_of_card(self):
        return self.model


def register_pipeline() -> None:
    """Registers the task with `transformers.pipeline`; the embedded model is its default."""
    if not is_task_registered(TASK, PedestrianAttributesPipeline):
        default = str(embedded_path("heads"))
        register_task(TASK, PedestrianAttributesPipeline, model_class=AutoModel, default_model=default)
        hide_default_messages(default)
        model_types = [family.model_type for family in FAMILIES]
        infer_task(TASK, model_types)
        error = ParError(
            "this task is for models that give a picture one label, and a model of this package gives each person one "
            f'label per attribute: make pipeline("{TASK}", model=model, processor=processor); attributes in words are '
            "given in a call, attributes=['wearing a red scarf', ...]"
        )
        refuse_other_tasks(model_types, error)


def _describe_unknown(options: Mapping[str, Any]) -> str:
    """The message for options that the pipeline does not have."""
    known = inspect.signature(PedestrianAttributesPipeline._sanitize_parameters).parameters
    names = [name for name, one in known.items() if one.kind is inspect.Parameter.KEYWORD_ONLY]
    hints = [_HINTS[name] for name in options if name in _HINTS]
    return (
        f"the pipeline has no option {', '.join(repr(name) for name in options)}, expected one of images, boxes, "
        f"batch_size, num_workers, {', '.join(names)}{''.join(f'. {hint}' for hint in hints)}"
    )


def _make_processor(model: Any, processor: Any, image_processor: Any) -> Any:
    """A processor that prepares images with `image_processor`, if one is given.

    Raises:
        ValueError: there is neither a processor nor one in the checkpoint that the model was loaded from.
        What loading raises.
    """
    if hasattr(image_processor, "post_process_attributes"):
        if processor is not None:
            raise ParValueError(
                f"image_processor is a {type(image_processor).__name__}, and processor was given too: expected one"
            )
        return image_processor  # who has a processor of ours calls it what transformers' image pipelines call theirs
    if processor is None:
        name = getattr(model, "name_or_path", None)
        loaded = AutoProcessor.from_pretrained(name) if name else None  # says what its folder lacks
        if loaded is None or image_processor is None:
            raise ParValueError(
                "processor is None, expected the processor of the model: a model in memory carries none, pass "
                "processor=AutoProcessor.from_pretrained(folder) beside model="
            )
        processor = loaded
    if isinstance(image_processor, (str, os.PathLike)):
        image_processor = AutoImageProcessor.from_pretrained(image_processor, backend="pil")
    processor = copy.copy(processor)
    processor.image_processor = image_processor
    return processor


def _relevance_map(outputs: dict[str, torch.Tensor], row: int, attribute: int) -> np.ndarray:
    """Relevance of each patch of one person for one attribute, float32 `(rows, columns)`, without padding."""
    relevance = outputs["relevance"][row, attribute].float().numpy()
    if "spatial_shapes" in outputs:
        rows, columns = (int(value) for value in outputs["spatial_shapes"][row])
    else:
        rows = columns = math.isqrt(len(relevance))
    return relevance[: rows * columns].reshape(rows, columns)
