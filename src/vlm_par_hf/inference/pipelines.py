"""`pipeline("pedestrian-attributes")`: pictures in, attributes of people out.

One picture is one person, unless boxes or a detector say where the people are. People are answered in batches that run
across pictures. Threads prepare only the next batch while the model answers this one, so that a stream of any length
and a picture with any number of boxes need memory for two batches only.

    import vlm_par_hf
    from transformers import pipeline

    pipe = pipeline("pedestrian-attributes", model=folder)
    pipe("crop.jpg")["attributes"]["Hat"]        # {"label": "yes", "score": 0.93, "probabilities": {...}}
    pipe("street.jpg", boxes=[[10, 20, 60, 160]])
    for result in pipe(KeyDataset(dataset, "image"), batch_size=16): ...
"""

import inspect
import math
import os
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoModel, Pipeline
from transformers.utils import logging

from vlm_par_hf.base.outputs import ParOutput
from vlm_par_hf.errors import ParTypeError, ParValueError
from vlm_par_hf.hub.pushing import PushToHub
from vlm_par_hf.images.opening import is_one_image
from vlm_par_hf.labels.decisions import is_positive_answer
from vlm_par_hf.upstream import hide_default_messages, is_task_registered, register_task
from vlm_par_hf.utils import default_threads, embedded_path
from vlm_par_hf.visualization import overlay_relevance

from .boxes import check_box_options
from .pictures import TASK, Person, Picture, Pictures, Results, fill_batches
from .predicting import predict_batch
from .trust import trust_note


__all__ = ["TASK", "PedestrianAttributesPipeline", "register_pipeline"]

logger = logging.get_logger(__name__)

_EXPLAIN_AS = ("overlay", "relevance")


class PedestrianAttributesPipeline(PushToHub, Pipeline):
    """Attributes of the people in pictures, by any model of this package.

    Args:
        model (`PreTrainedModel`): a model whose `config.schema` is an `AttributeSchema`.
        processor (`ProcessorMixin`): the processor saved with it.
        only_positive (`bool`, defaults to `False`): leave out binary attributes answered "no" and categorical ones
            answered "no" or "none".
        sensitive (`bool`, defaults to `True`): `False` leaves out the attributes that the schema marks as sensitive
            (perceived gender and age).
        attributes (list, dict or `AttributeSchema`, *optional*): ask for these instead of the model's own, for models
            that recognise attributes by their text (`FocusParModel`): what `AttributeSchema.from_texts` takes, such as
            `["wearing a red scarf", ["a backpack", "a handbag", "no bag"]]`. Encoded once.
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

    _load_processor = True
    _load_image_processor = False
    _load_video_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    def __init__(self, model, processor=None, **kwargs):
        if processor is None:
            raise ParValueError(
                "processor is None, expected the processor of the model: a model in memory carries none, pass "
                "processor=AutoProcessor.from_pretrained(folder) beside model="
            )
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

    def _sanitize_parameters(
        self,
        *,
        only_positive: bool | None = None,
        sensitive: bool | None = None,
        attributes: Any = None,
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
        if attributes is not None:
            if not self.model.supports_attributes:
                raise ParValueError(
                    f"attributes was given, but {type(self.model).__name__} knows only those that it was trained on; "
                    "expected a model that recognises attributes by their text, such as FocusParModel"
                )
            attributes = self.model.encode_attributes(attributes, self.processor)
        explained = self._attributes_to_explain(explain, attributes, sensitive)
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
        forward = {"attributes": attributes, "explain": explain}
        postprocess = {
            "only_positive": only_positive,
            "sensitive": sensitive,
            "attributes": attributes,
            "explain": explain,
            "explain_as": explain_as,
        }
        groups = (preprocess, forward, postprocess)
        return tuple({key: value for key, value in group.items() if value is not None} for group in groups)

    def _attributes_to_explain(self, explain, attributes, sensitive: bool | None) -> bool | tuple[str, ...]:
        """`explain`, checked together with the options that were set when the pipeline was made."""
        # While the pipeline is made there are no such options yet.
        forward_set, postprocess_set = getattr(self, "_forward_params", {}), getattr(self, "_postprocess_params", {})
        explain = forward_set.get("explain", False) if explain is None else explain
        if isinstance(explain, (bool, np.bool_)):
            explain = bool(explain)
        if explain and not self.model.supports_explain:
            raise ParValueError(f"explain is {explain!r}, but {type(self.model).__name__} cannot explain its answers")
        if isinstance(explain, bool):
            return explain
        attributes = attributes or forward_set.get("attributes")
        schema = self.model.config.schema if attributes is None else attributes.schema
        sensitive = postprocess_set.get("sensitive", True) if sensitive is None else sensitive
        names = (explain,) if isinstance(explain, str) else tuple(explain)
        for name in names:
            try:
                attribute = schema[schema.index(name)]
            except KeyError as error:
                raise ParValueError(f"explain names {name!r}: {error.args[0]}") from None
            if attribute.sensitive and not sensitive:
                raise ParValueError(f"explain names {name!r}, which sensitive=False leaves out of the answer")
        return names

    def __call__(self, inputs, *, boxes=None, batch_size: int | None = None, num_workers: int | None = None, **kwargs):
        """Answer for one picture, a list, or a stream of pictures.

        A picture is a path, an `http(s)` URL, bytes, base64 text (`data:image/...;base64,` or bare), an open binary
        file (read from its beginning), a `PIL.Image.Image`, a NumPy array or tensor `(height, width, 3)`, or a dict
        with such a value under `"image"` and, if wanted, `"boxes"`. Orientation tags are applied first: boxes refer to
        the upright picture, and to its full size where a large JPEG is decoded smaller.

        Args:
            inputs: one picture; a list or tuple of them; or any iterable with an order: a generator, a Series or
                column, an array of paths, a torch or `datasets` data set (rows with an `"image"` column, or one column
                through `transformers.pipelines.pt_utils.KeyDataset`). Answers come in the order of iteration.
            boxes: for one picture a list of boxes in the form of `box_format`, by default `[x0, y0, x1, y1]` in pixels
                (or an `(n, 4)` array, or the `"box"` dicts of a detector); for several pictures one such list for
                each. A box that is partly outside is clipped. Boxes rule out `detector` in the same call and override
                the detector of the pipeline.
            batch_size (`int`): people per forward.
            num_workers (`int`): threads that open pictures ahead of the model; by default one per core
                (`OMP_NUM_THREADS` lowers it), at most 8. With 0 nothing is read ahead. The items themselves are taken
                one by one in the caller's thread, so paths or encoded bytes are faster than pictures that are decoded
                there (a `datasets` image column is not decoded). To share expensive work among processes, pass a
                `DataLoader(dataset, batch_size=None, num_workers=...)`.
            kwargs: the options of the class, for this call.

        Returns:
            For one picture `{"attributes": {name: {"label", "score", "probabilities"}}}`; with boxes or a detector a
            list of `{"box": [x0, y0, x1, y1], "attributes": {...}}`, in the order of the boxes (`"score"` too, with a
            detector), where `box` holds the whole pixels that were read; with a `box_margin` also
            `"box_without_margin"`, the pixels of the box itself. For a list of pictures a list of these. For anything
            else an iterator that reads ahead by about two batches, with one result per picture, in order.

        Raises:
            ValueError, TypeError, OSError: for a picture that cannot be read, a box that is empty, reversed, not
                finite, outside or in another unit, a container without an order, or an option that there is not; for
                several pictures the message starts with the item's index and path.
        """
        if boxes is not None and kwargs.get("detector") is not None:
            raise ParValueError("both boxes and detector were given, expected one of them")
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
            **preprocess_params,
        )
        results = self._answer(pictures.read(), batch_size, forward_params, postprocess_params)
        if single:
            return next(results)
        if isinstance(inputs, (list, tuple)):
            return list(results)
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
        self, model_inputs: dict[str, torch.Tensor], attributes=None, explain: bool | tuple[str, ...] = False
    ):
        return predict_batch(self.model, model_inputs, attributes=attributes, explain=bool(explain))

    def postprocess(
        self,
        model_outputs: dict[str, torch.Tensor],
        crops: Sequence[Image.Image] | None = None,
        only_positive: bool = False,
        sensitive: bool = True,
        attributes=None,
        explain: bool | tuple[str, ...] = False,
        explain_as: str = "overlay",
    ) -> list[dict[str, Any]]:
        """One dict of answers per row of the outputs; for overlays `crops`, the pictures of the people, are needed."""
        schema = self.model.config.schema if attributes is None else attributes.schema
        people = self.processor.post_process_attributes(ParOutput(logits=model_outputs["logits"]), schema=schema)
        results = []
        for row, answers in enumerate(people):
            answers = {
                name: answer
                for name, answer in answers.items()
                if (sensitive or not schema[name].sensitive)
                and (not only_positive or is_positive_answer(answer["label"], schema[name]))
            }
            result = {"attributes": answers}
            if explain:
                names = tuple(answers) if explain is True else explain
                maps = {name: _relevance_map(model_outputs, row, schema.index(name)) for name in names}
                if explain_as == "relevance":
                    result["relevance"] = maps
                else:
                    result["overlays"] = {name: overlay_relevance(crops[row], maps[name]) for name in names}
            results.append(result)
        return results

    def _answer(
        self, people: Iterator[Person], batch_size: int, forward_params: dict, postprocess_params: dict
    ) -> Iterator[dict[str, Any] | list[dict[str, Any]]]:
        """Yields the result of each picture, in order, as soon as its last person has been answered."""
        waiting: deque[Picture] = deque()
        options = {**forward_params, "explain": bool(forward_params.get("explain"))}
        batches = fill_batches(people, batch_size, waiting)
        for batch, inputs in batches:
            if inputs is not None:
                names = [one.picture.where or position for position, one in enumerate(batch)]
                outputs = predict_batch(self.model, inputs, names=names, **options)
                results = self.postprocess(outputs, crops=[one.crop for one in batch], **postprocess_params)
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


def _describe_unknown(options: Mapping[str, Any]) -> str:
    """The message for options that the pipeline does not have."""
    known = inspect.signature(PedestrianAttributesPipeline._sanitize_parameters).parameters
    names = [name for name, one in known.items() if one.kind is inspect.Parameter.KEYWORD_ONLY]
    hint = ""
    if "threshold" in options or "thresholds" in options:
        hint = (
            ". Each binary attribute has its own threshold, in the schema of the model: "
            "pipe.model.config.schema[name].threshold; processor.post_process_attributes(..., threshold=) decides "
            "with others, and detector_threshold= is for a detector"
        )
    return (
        f"the pipeline has no option {', '.join(repr(name) for name in options)}, expected one of boxes, batch_size, "
        f"num_workers, {', '.join(names)}{hint}"
    )


def _relevance_map(outputs: dict[str, torch.Tensor], row: int, attribute: int) -> np.ndarray:
    """Relevance of each patch of one person for one attribute, float32 `(rows, columns)`, without padding."""
    relevance = outputs["relevance"][row, attribute].float().numpy()
    if "spatial_shapes" in outputs:
        rows, columns = (int(value) for value in outputs["spatial_shapes"][row])
    else:
        rows = columns = math.isqrt(len(relevance))
    return relevance[: rows * columns].reshape(rows, columns)
