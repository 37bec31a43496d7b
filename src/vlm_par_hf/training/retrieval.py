"""`train_retrieval` and `evaluate_retrieval`: the head over a frozen recogniser, and how well people are found.

The recogniser looks at each picture once; what it gives is kept in the folder of the run and read by every later call.
"""

import hashlib
import json
import logging
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from huggingface_hub.utils import tqdm
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch.utils.data import DataLoader

from vlm_par_hf.data import AugmentedDataset, ParCollator
from vlm_par_hf.data.carried import read_labels
from vlm_par_hf.errors import ParFileExistsError, ParValueError, argument_in_errors
from vlm_par_hf.escaping import markdown_text
from vlm_par_hf.features import compute_features
from vlm_par_hf.hub.records import SYNTHETIC
from vlm_par_hf.labels.schema import UNKNOWN_LABEL, AttributeSchema
from vlm_par_hf.metrics.retrieval import attribute_retrieval
from vlm_par_hf.output_folders import LOCK, OutputFolder, open_output, refuse_overlap
from vlm_par_hf.retrieval.configuration_retriever import RetrieverConfig
from vlm_par_hf.retrieval.modeling_retriever import AttributeRetriever
from vlm_par_hf.retrieval.ranking import rank_people
from vlm_par_hf.retrieval.scoring import SCORINGS
from vlm_par_hf.retrieval.texts import text_encoder
from vlm_par_hf.retrieval.vectors import model_hash, people_vectors
from vlm_par_hf.utils import atomic_write_json, atomic_write_text, format_percent, read_json_object, redact_command

from .evaluation import _load_checkpoint
from .fitting_adapters import FitResult, People, RetrievalSettings, fit_adapters
from .provenance import DataFacts, check_same_division, check_schema, load_data, versions


__all__ = ["RetrievalResult", "evaluate_retrieval", "load_retriever", "train_retrieval"]

logger = logging.getLogger(__name__)

KIND = "retrieval head"
RUN_RECORD, SUMMARY, STATES, VECTORS = "run.json", "training.json", "states", "vectors"
ROWS_PER_FILE = 2048


class RetrievalResult(NamedTuple):
    """What `train_retrieval` made.

    Attributes:
        output_dir: the folder that `AutoModel.from_pretrained` loads.
        retriever: the head with the best weights.
        fit: how the training went.
    """

    output_dir: Path
    retriever: AttributeRetriever
    fit: FitResult


def train_retrieval(
    model: Any,
    dataset: Any,
    output_dir: str | Path,
    *,
    processor: Any = None,
    root: str | Path | None = None,
    schema: AttributeSchema | None = None,
    dataset_options: dict[str, Any] | None = None,
    dataset_name: str | None = None,
    attributes: Sequence[str] | None = None,
    head: Mapping[str, Any] | None = None,
    settings: RetrievalSettings | None = None,
    cache_features: str | Path | None = None,
    batch_size: int = 64,
    workers: int = 0,
    device: str | None = None,
    progress: bool = True,
    resume: bool = False,
    overwrite: bool = False,
    delete_listed: bool = False,
    command: Sequence[str] | None = None,
) -> RetrievalResult:
    """Trains the adapters of a retrieval head on the train split; the epoch is chosen on validation, never on test.

    Args:
        model: the recogniser, which stays as it is: a checkpoint folder or repository, or a model in memory (with
            `processor`).
        dataset: name for `load_par_dataset` (with `root`, `schema`, `dataset_options`) or a `DatasetDict`.
        output_dir: gets the head (`config.json`, `model.safetensors`), `run.json`, `training.json`, and below
            `vectors/` and `states/` what an interrupted run continues from.
        processor: of a model in memory.
        root, schema, dataset_options, dataset_name: as in `train`.
        attributes: names of the attributes that queries ask for; None: all. The labels of the others are left open.
        head: fields of `RetrieverConfig`, such as `embedding_size`, `text_form` and `text_model`.
        settings: see `RetrievalSettings`.
        cache_features: a folder of `train(cache_features=)`: features of the same backbone, which then need not be
            computed again.
        batch_size, workers, device, progress: of the passes of the recogniser.
        resume: continue the run in `output_dir`; the result equals that of an uninterrupted one.
        overwrite: replace what an earlier run wrote there.
        delete_listed: with it, also delete files that were changed since.
        command: the command line to record; None: `sys.argv`.

    Raises:
        ValueError: `output_dir` holds a run and neither `resume` nor `overwrite` is set; the run to continue had other
            data, another recogniser or other settings; another label space; a split is missing; no label is known.
        KeyError: an attribute is unknown.
        FileExistsError: `output_dir` holds files of somebody else.
    """
    settings = settings or RetrievalSettings()
    if resume and overwrite:
        raise ParValueError("resume=True and overwrite=True: expected one of them")
    if delete_listed and not overwrite:
        raise ParValueError("delete_listed=True: expected overwrite=True too")
    places = {"root": root, "model": model if isinstance(model, (str, Path)) else None}
    refuse_overlap(output_dir, places, replaced=overwrite)
    with open_output(output_dir, KIND) as folder:
        data = load_data(dataset, root=root, schema=schema, options=dataset_options)
        for split in ("train", "validation"):
            if split not in data or len(data[split]) == 0:
                raise ParValueError(f"the data set has no {split} split: training needs train and validation")
        facts = DataFacts.read(dataset, data["train"], name=dataset_name, options=dataset_options)
        model, processor, checkpoint = _load_checkpoint(model, processor)
        check_schema(facts.schema, model.config.schema)
        space = model.config.schema
        masked = {split: _only(read_labels(data[split]), space, attributes) for split in ("train", "validation")}
        for split, labels in masked.items():
            if (labels == UNKNOWN_LABEL).all():
                raise ParValueError(f"the {split} split has no known label of these attributes: nothing can be found")
        recognizer = {"path": checkpoint, "model_type": model.config.model_type, "sha256": model_hash(model)}
        record = {
            "settings": vars(settings),
            "head": dict(head or {}),
            "attributes": None if attributes is None else list(attributes),
            "data": {
                "name": facts.name, "options": facts.options, "train_images": len(data["train"]),
                "validation_images": len(data["validation"]), "train_sha256": facts.fingerprint,
            },
            "model": recognizer,
            "command": shlex.join(redact_command(sys.argv if command is None else command)),
            "versions": versions(),
        }  # fmt: skip
        _prepare_folder(folder, record, resume=resume, overwrite=overwrite, delete_listed=delete_listed)
        folder.begin([VECTORS, STATES], repair=True)
        for part in folder.path.glob("*/*.part"):  # of a process that was killed
            part.unlink()
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        model.to(device)
        people = {}
        for split, labels in masked.items():
            vectors = _vectors_of(
                folder, split, model, processor, data[split], recognizer["sha256"], labels,
                None if cache_features is None else Path(cache_features) / split,
                batch_size=batch_size, workers=workers, progress=progress,
            )  # fmt: skip
            known = (labels != UNKNOWN_LABEL).any(1)
            if not known.all():
                logger.info("%s: %d people without a known label are left out", split, int((~known).sum()))
            people[split] = People(*(one[known] for one in (*vectors, labels)))
        retriever = _build(model, processor, people["train"], recognizer, dict(head or {}), settings).to(device)
        logger.info(
            "%d people in %d categories, %d in validation",
            len(people["train"].labels), retriever.config.num_categories, len(people["validation"].labels),
        )  # fmt: skip
        fit = fit_adapters(
            retriever, people["train"], people["validation"], settings, state_folder=folder.path / STATES,
            progress=progress,
        )  # fmt: skip
        folder.record([VECTORS, STATES])
        with folder.staging() as staging:
            retriever.save_pretrained(staging)
            atomic_write_json(
                staging / SUMMARY,
                {
                    "validation_mAP": fit.best_mAP, "best_epoch": fit.best_epoch, "epochs": settings.epochs,
                    "history": fit.history,
                },
            )  # fmt: skip
            folder.publish(staging, last="config.json")
    return RetrievalResult(Path(output_dir), retriever, fit)


def _only(labels: np.ndarray, schema: AttributeSchema, attributes: Sequence[str] | None) -> np.ndarray:
    """The labels, those of attributes that are not named as unknown."""
    if labels is None:
        raise ParValueError("the data set has no labels, and people are found by them: expected a column `labels`")
    if attributes is None:
        return labels
    if isinstance(attributes, str) or not attributes:
        raise ParValueError(f"attributes={attributes!r}, expected a list of names")
    kept = [schema.index(name) for name in attributes]
    found = np.full_like(labels, UNKNOWN_LABEL)
    found[:, kept] = labels[:, kept]
    return found


def _prepare_folder(folder: OutputFolder, record: dict[str, Any], *, resume, overwrite, delete_listed) -> None:
    path = folder.path / RUN_RECORD
    if overwrite:
        folder.claim(delete_listed=delete_listed, recognise=lambda _: None)
        folder.clear()
    elif not resume and path.exists():
        raise ParValueError(
            f"output_dir={str(folder.path)!r} holds an earlier run: continue it (resume=True, --resume), replace it "
            "(overwrite=True, --overwrite) or name another folder"
        )
    strangers = [name for name in folder.strangers() if name != LOCK]
    if strangers:
        raise ParFileExistsError(
            f"{str(folder.path / strangers[0])!r} was not written by a run of this package: move it, or name another "
            "folder"
        )
    if resume and path.exists():
        earlier = read_json_object(path)
        if earlier is None:
            raise ParValueError(f"{path} is damaged, so nothing says which run it is of: start a new one")
        wanted = json.loads(
            json.dumps({key: one for key, one in record.items() if key not in ("command", "versions")})
        )
        differences = [
            f"{key} {name}: {then!r} then, {now!r} now"
            for key, now_all in wanted.items()
            for name, then, now in _pairs(earlier.get(key), now_all)
            if then != now and (key, name) != ("model", "path")
        ]
        if differences:
            raise ParValueError(
                f"the run in output_dir={str(folder.path)!r} cannot be continued, it differs in:\n  "
                + "\n  ".join(differences)
            )
        return
    folder.begin([RUN_RECORD])
    atomic_write_json(path, record)
    folder.record([RUN_RECORD])


def _pairs(then: Any, now: Any) -> list[tuple[str, Any, Any]]:
    if isinstance(then, dict) and isinstance(now, dict):
        return [(name, then.get(name), now.get(name)) for name in sorted(then.keys() | now.keys())]
    return [("", then, now)]


def _build(model, processor, train: People, recognizer, head: dict[str, Any], settings) -> AttributeRetriever:
    """A fresh head whose weights depend on the seed alone."""
    known = RetrieverConfig.own_fields()
    unknown = [name for name in head if name not in known]
    if unknown:
        raise ParValueError(f"head names {unknown[0]!r}, expected fields of RetrieverConfig: {', '.join(known)}")
    encoder = None
    if head.get("soft_weight", RetrieverConfig.soft_weight):
        encoder = text_encoder(head.get("text_model"), model, processor)
        head["text_width"] = encoder.encode(["a person"]).shape[1]
        if head.get("text_form", RetrieverConfig.text_form) != "slots":
            head["text_width"] = encoder.embed_words(["a person"]).shape[1]
    categories = np.unique(train.labels, axis=0)
    defaults = {"uses_probabilities": model.config.model_type != "clear_par"}
    config = RetrieverConfig(
        attributes=model.config.schema.to_list(), image_width=train.image_embeds.shape[1],
        num_categories=len(categories), recognizer=recognizer["path"], recognizer_type=recognizer["model_type"],
        recognizer_hash=recognizer["sha256"], **{**defaults, **head},
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        retriever = AttributeRetriever(config)
    with torch.no_grad():
        retriever.categories.copy_(torch.from_numpy(categories))
    if encoder is not None:
        retriever.set_text_encoder(encoder)
    return retriever


# Vectors of the recogniser


def _vectors_of(
    folder: OutputFolder | None, split, model, processor, dataset, recognizer_hash, labels, features: Path | None, *,
    batch_size, workers, progress,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Image vectors `(N, D)` and probabilities `(N, L)` of a split, computed file by file; complete files are only
    read. `folder=None`: nothing is kept."""
    key = hashlib.sha256(f"{recognizer_hash} {split} {len(dataset)} {labels_hash(dataset)}".encode()).hexdigest()
    if features is not None and model.supports_features:
        dataset = compute_features(
            model, dataset, processor, batch_size, directory=features, workers=workers, progress=progress
        )
    elif features is not None:
        raise ParValueError(f"cache_features: a {type(model).__name__} has no features that could be kept")
    starts = range(0, len(dataset), ROWS_PER_FILE)
    found, bar = [], tqdm(total=len(dataset), desc=f"recogniser, {split}", unit="image", disable=not progress)
    with bar:
        for start in starts:
            rows = range(start, min(start + ROWS_PER_FILE, len(dataset)))
            name = f"{VECTORS}/{split}-{start // ROWS_PER_FILE:05d}.safetensors"
            kept = None if folder is None else _read_vectors(folder.path / name, key)
            if kept is None:
                kept = people_vectors(model, _batches(dataset, processor, rows, batch_size, workers, features))
                if folder is not None:
                    _write_vectors(folder.path / name, kept, key)
            found.append(kept)
            bar.update(len(rows))
    return np.concatenate([one[0] for one in found]), np.concatenate([one[1] for one in found])


def labels_hash(dataset) -> str:
    """sha256 of the labels and, where there are any, the ids of the pictures."""
    digest = hashlib.sha256(np.ascontiguousarray(read_labels(dataset)).tobytes())
    if "image_id" in getattr(dataset, "column_names", ()):
        digest.update("\n".join(map(str, dataset["image_id"])).encode())
    return digest.hexdigest()


def _batches(dataset, processor, rows: range, batch_size: int, workers: int, features: Path | None):
    if features is not None:
        return dataset.batches(batch_size, rows)
    part = torch.utils.data.Subset(AugmentedDataset(dataset), rows)
    return DataLoader(part, batch_size=batch_size, num_workers=workers, collate_fn=ParCollator(processor))


def _read_vectors(path: Path, key: str) -> tuple[np.ndarray, np.ndarray] | None:
    if not path.is_file():
        return None
    try:
        with safe_open(path, "np") as file:
            if (file.metadata() or {}).get("key") != key:
                return None
            return file.get_tensor("image_embeds"), file.get_tensor("probabilities")
    except SafetensorError:
        logger.warning("%s is damaged and is computed again", path)
        return None


def _write_vectors(path: Path, vectors, key: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_bytes(save(vectors._asdict(), metadata={"key": key}))
    part.replace(path)


# Evaluation


def load_retriever(name: str | Path, model: Any, processor: Any) -> AttributeRetriever:
    """The head of a recogniser in memory, with its text encoder where it reads whole sentences.

    Raises:
        ValueError: it was trained on another recogniser.
    """
    retriever = AttributeRetriever.from_pretrained(name).eval()
    config = retriever.config
    if config.recognizer_hash is not None and config.recognizer_hash != model_hash(model):
        raise ParValueError(
            f"the head in {name} was trained on the vectors of {config.recognizer!r} ({config.recognizer_type}), and "
            f"this {type(model).__name__} has other weights: train a head on it (vlm-par train-retrieval)"
        )
    if config.soft_weight and config.text_form == "flatten":
        retriever.set_text_encoder(text_encoder(config.text_model, model, processor), encode=False)
    return retriever


def evaluate_retrieval(
    model: Any,
    dataset: Any,
    *,
    retriever: str | Path | AttributeRetriever | None = None,
    scorings: Sequence[str] | None = None,
    split: str = "test",
    attributes: Sequence[str] | None = None,
    output_dir: str | Path | None = None,
    processor: Any = None,
    root: str | Path | None = None,
    schema: AttributeSchema | None = None,
    dataset_options: dict[str, Any] | None = None,
    dataset_name: str | None = None,
    batch_size: int = 64,
    workers: int = 0,
    device: str | None = None,
    progress: bool = True,
    overwrite: bool = False,
    command: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Measures how well people are found by whole attribute vectors (CLEAR, section 4.1).

    Each attribute vector that occurs in the split is a query; an unknown label is open. The published numbers are
    those of data sets where all is known.

    Args:
        model: the recogniser: a checkpoint, or a model in memory (with `processor`).
        dataset: name for `load_par_dataset` or a `DatasetDict`.
        retriever: the head; None: only scores that need none are measured.
        scorings: names in `SCORINGS`; None: all that there is something for.
        split: whose people are the gallery.
        attributes: names of the attributes that queries ask for; None: all.
        output_dir: gets `retrieval.json` and `retrieval.md`; None: they are not written.
        processor, root, schema, dataset_options, dataset_name, batch_size, workers, device, progress: as in
            `evaluate`.
        overwrite: replace these two files.
        command: the command line to record; None: `sys.argv`.

    Returns:
        The record that `retrieval.json` holds: `scorings`, each with the numbers of `attribute_retrieval`. Unseen are
        the vectors that do not occur in the train split.

    Raises:
        ValueError: no such split or scoring, a scoring that needs a head or a text tower that is not there, another
            label space, or a division that differs from that of the training.
    """
    unknown = [name for name in scorings or () if name not in SCORINGS]
    if unknown:
        raise ParValueError(f"scoring {unknown[0]!r}, expected {', '.join(SCORINGS)}")
    if output_dir is not None and not overwrite and (Path(output_dir) / "retrieval.json").exists():
        raise ParFileExistsError(f"{output_dir} holds a retrieval.json: replace it (overwrite, --overwrite)")
    data = load_data(dataset, root=root, schema=schema, options=dataset_options)
    for name in (split, "train"):
        if name not in data:
            raise ParValueError(f"split={name!r} is not in this data set: it has {', '.join(sorted(data))}")
    facts = DataFacts.read(dataset, data[split], name=dataset_name, options=dataset_options)
    model, processor, checkpoint = _load_checkpoint(model, processor)
    if isinstance(dataset, str):
        check_same_division(checkpoint, facts.name, facts.options)
    check_schema(facts.schema, model.config.schema)
    space = model.config.schema
    if isinstance(retriever, (str, Path)):
        with argument_in_errors("retriever", str(retriever)):
            retriever = load_retriever(retriever, model, processor)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    model.to(device)
    labels = _only(read_labels(data[split]), space, attributes)
    embeds, probabilities = _vectors_of(
        None, split, model, processor, data[split], "", labels, None,
        batch_size=batch_size, workers=workers, progress=progress,
    )  # fmt: skip
    queries = np.unique(labels, axis=0)
    queries = queries[(queries != UNKNOWN_LABEL).any(1)]
    seen = _only(read_labels(data["train"]), space, attributes)
    results, left_out = {}, {}
    for scoring in SCORINGS if scorings is None else scorings:
        try:
            scores = rank_people(
                scoring, queries, space, probabilities=probabilities, image_embeds=embeds,
                retriever=retriever, model=model, processor=processor,
            )  # fmt: skip
        except ParValueError as error:
            if scorings is not None:
                raise
            left_out[scoring] = str(error)
            continue
        results[scoring] = attribute_retrieval(scores, queries, labels, seen=seen)
    record = {
        "data": {"name": facts.name, "split": split, "people": len(labels), "options": facts.options,
                 "synthetic": facts.name in SYNTHETIC},
        "attributes": None if attributes is None else list(attributes),
        "open_labels": int((queries == UNKNOWN_LABEL).sum()) if attributes is None else None,
        "model": {"path": checkpoint, "model_type": model.config.model_type},
        "retriever": None if retriever is None else getattr(retriever, "name_or_path", "") or "in memory",
        "scorings": results,
        "left_out": left_out,
        "command": shlex.join(redact_command(sys.argv if command is None else command)),
        "versions": versions(),
    }  # fmt: skip
    if output_dir is not None:
        atomic_write_json(Path(output_dir) / "retrieval.json", record)
        atomic_write_text(Path(output_dir) / "retrieval.md", markdown_table(record))
    return record


_SHOWN = ("rank_1", "rank_5", "rank_10", "mAP_standard", "mAP_trapezoid", "mINP", "mADM")


def markdown_table(record: dict[str, Any]) -> str:
    """The record as a table: all queries, and those of unseen attribute vectors apart."""
    data = record["data"]
    kind = f"SYNTHETIC {SYNTHETIC[data['name']]}, " if data["synthetic"] else ""
    first = next(iter(record["scorings"].values()))
    lines = [
        f"# Finding people by attributes: {kind}{markdown_text(data['name'])}, {data['split']}",
        "",
        f"{data['people']:,} people, {first['queries']:,} queries, {first['unseen']['queries']:,} of them attribute "
        "vectors that the train split does not have. In percent.",
        "",
        f"| scores | queries | {' | '.join(_SHOWN)} |",
        f"|---|---|{'---|' * len(_SHOWN)}",
    ]
    for name, found in record["scorings"].items():
        for which, one in (("all", found), ("unseen", found["unseen"])):
            lines.append(f"| {name} | {which} | {' | '.join(format_percent(one[key]) for key in _SHOWN)} |")
    chance = " | ".join(
        format_percent(first["chance_mAP_standard"]) if key == "mAP_standard" else "" for key in _SHOWN
    )
    lines.append(f"| chance | all | {chance} |")
    return "\n".join(lines) + "\n"
