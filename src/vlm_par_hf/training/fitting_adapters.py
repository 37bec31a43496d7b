"""The training loop of retrieval heads: on vectors in memory, resumable after every epoch."""

import json
import logging
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from huggingface_hub.utils import tqdm
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from vlm_par_hf.errors import ParValueError
from vlm_par_hf.labels.schema import UNKNOWN_LABEL
from vlm_par_hf.metrics.retrieval import attribute_retrieval
from vlm_par_hf.retrieval.modeling_retriever import AttributeRetriever


__all__ = ["FitResult", "People", "RetrievalSettings", "fit_adapters", "rank_by_adapters"]

logger = logging.getLogger(__name__)

STATE = "adapters.safetensors"  # in the folder for states
BASE_WIDTH = 128


class People(NamedTuple):
    """People with what the recogniser says about them and what is true.

    Attributes:
        image_embeds: float32 `(N, D)`.
        probabilities: float32 `(N, L)`.
        labels: int64 `(N, A)`, -100 = unknown.
    """

    image_embeds: np.ndarray
    probabilities: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class RetrievalSettings:
    """How the adapters are trained.

    Args:
        epochs: passes over the training split; the one with the best validation mAP is kept.
        batch_size: people per step.
        learning_rate: of AdamW; it falls to 0 as a half cosine.
        weight_decay: of AdamW.
        seed: of the order, of open attributes and of the initial weights.

    Raises:
        ValueError: names the field, its value and what was expected.
    """

    epochs: int = 20
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    seed: int = 0

    def __post_init__(self) -> None:
        for name, low in (("epochs", 1), ("batch_size", 1), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < low:
                raise ParValueError(f"{name}={value!r}, expected a whole number of {low} or more")
        if not self.learning_rate > 0:
            raise ParValueError(f"learning_rate={self.learning_rate!r}, expected a number above 0")
        if not self.weight_decay >= 0:
            raise ParValueError(f"weight_decay={self.weight_decay!r}, expected 0 or more")

    def differences(self, earlier: dict[str, Any]) -> list[str]:
        """The settings that differ from recorded ones, one sentence each."""
        return [
            f"{one.name}: {earlier.get(one.name)!r} then, {getattr(self, one.name)!r} now"
            for one in fields(self)
            if earlier.get(one.name) != getattr(self, one.name)
        ]


@dataclass
class FitResult:
    """What a training gave.

    Attributes:
        best_epoch: from 1.
        best_mAP: on validation, `mAP_standard` over whole attribute vectors.
        history: per epoch `epoch`, `loss`, `validation_mAP`.
    """

    best_epoch: int
    best_mAP: float
    history: list[dict[str, float]]


def rank_by_adapters(
    retriever: AttributeRetriever, people: People, queries: np.ndarray, *, part: str = "both"
) -> np.ndarray:
    """Similarities of whole attribute vectors, integers `(Q, A)`, and people, float32 `(Q, N)`."""
    gallery = retriever.embed_images(people.image_embeds, people.probabilities)
    return (retriever.embed_queries(queries, part=part) @ gallery.T).cpu().numpy()


def validation_mAP(retriever: AttributeRetriever, people: People) -> float:
    """The mean average precision (standard) of the attribute vectors of a split; unknown labels are left open."""
    vectors = np.unique(people.labels, axis=0)
    vectors = vectors[(vectors != UNKNOWN_LABEL).any(1)]
    return attribute_retrieval(rank_by_adapters(retriever, people, vectors), vectors, people.labels)["mAP_standard"]


def fit_adapters(
    retriever: AttributeRetriever,
    train: People,
    validation: People,
    settings: RetrievalSettings,
    *,
    state_folder: Path | None = None,
    progress: bool = True,
) -> FitResult:
    """Trains a fresh head whose words are encoded, and leaves the best weights in it.

    Args:
        retriever: its `categories` are those of `train`.
        train, validation: the splits.
        settings: how.
        state_folder: where the state after each epoch is kept: a call with the same arguments continues from it, and
            gives what an undisturbed one gives.
        progress: show a progress bar.
    """
    device = retriever.device
    vectors = [torch.as_tensor(one) for one in (train.image_embeds, train.probabilities, train.labels)]
    with torch.no_grad():
        retriever.fit_inputs(retriever.image_vectors(*vectors[:2]))
    optimizer = torch.optim.AdamW(_parameter_groups(retriever, settings), lr=settings.learning_rate)
    steps = -(-len(train.labels) // settings.batch_size)
    best = {name: value.clone() for name, value in retriever.state_dict().items()}
    result = FitResult(0, -1.0, [])
    if state_folder is not None:
        _read_state(state_folder / STATE, retriever, optimizer, best, result)
    bar = tqdm(total=settings.epochs, initial=len(result.history), desc="adapters", unit="epoch", disable=not progress)
    with bar:
        for epoch in range(len(result.history), settings.epochs):
            random = np.random.default_rng((settings.seed, epoch))
            retriever.train()
            total = 0.0
            for step, rows in enumerate(np.array_split(random.permutation(len(train.labels)), steps)):
                done = (epoch + step / steps) / settings.epochs
                for group in optimizer.param_groups:
                    group["lr"] = group["full_rate"] * (1 + np.cos(np.pi * done)) / 2
                opened = _draw_open(random, retriever.config.open_share, train.labels.shape[1])
                batch = [one[rows].to(device) for one in vectors]
                loss = retriever(*batch, open_attributes=opened).loss
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                total += float(loss.detach()) * len(rows)
            retriever.eval()
            score = validation_mAP(retriever, validation)
            result.history.append({"epoch": epoch + 1, "loss": total / len(train.labels), "validation_mAP": score})
            if score > result.best_mAP:
                result.best_epoch, result.best_mAP = epoch + 1, score
                best = {name: value.clone() for name, value in retriever.state_dict().items()}
            bar.set_postfix(mAP=f"{100 * score:.1f}", refresh=False)
            bar.update()
            if state_folder is not None:
                _write_state(state_folder / STATE, retriever, optimizer, best, result)
    retriever.load_state_dict(best)
    retriever.eval()
    return result


def _parameter_groups(retriever: AttributeRetriever, settings: RetrievalSettings) -> list[dict[str, Any]]:
    """Adam moves every weight by about its rate, so that a sum over n inputs moves by n times as much: a layer with
    more inputs than `BASE_WIDTH` learns with a rate that is as much smaller."""
    groups = []
    for parameter in retriever.parameters():
        rate, decay = settings.learning_rate, 0.0
        if parameter.ndim == 2:
            rate, decay = rate * min(1.0, BASE_WIDTH / parameter.shape[1]), settings.weight_decay
        groups.append({"params": [parameter], "full_rate": rate, "weight_decay": decay})
    return groups


def _draw_open(random: np.random.Generator, share: float, count: int) -> torch.Tensor | None:
    """In a share of the steps a random part of the attributes is open, from none to all but one."""
    is_open, order, kept = random.random() < share, random.permutation(count), random.integers(1, count + 1)
    if not is_open:
        return None
    opened = torch.zeros(count, dtype=torch.bool)
    opened[order[kept:]] = True
    return opened


def _write_state(path: Path, retriever, optimizer, best, result: FitResult) -> None:
    tensors = {f"now.{name}": value for name, value in retriever.state_dict().items()}
    tensors |= {f"best.{name}": value for name, value in best.items()}
    state = optimizer.state_dict()
    for number, moments in state["state"].items():
        tensors |= {f"optimizer.{number}.{name}": value for name, value in moments.items()}
    record = asdict(result)
    tensors = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    part = path.with_suffix(".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    part.write_bytes(save(tensors, metadata={"record": json.dumps(record)}))
    part.replace(path)


def _read_state(path: Path, retriever, optimizer, best, result: FitResult) -> None:
    """Restores what `_write_state` wrote, if it is there."""
    if not path.is_file():
        return
    try:
        with safe_open(path, "pt") as file:
            record = json.loads(file.metadata()["record"])
            names = file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, KeyError, ValueError) as error:
        raise ParValueError(f"{path} is damaged ({error}): delete it, and the training starts anew") from error
    retriever.load_state_dict({n.removeprefix("now."): one for n, one in tensors.items() if n.startswith("now.")})
    best.update({n.removeprefix("best."): one for n, one in tensors.items() if n.startswith("best.")})
    state = optimizer.state_dict()
    for name, one in tensors.items():
        if name.startswith("optimizer."):
            _, number, moment = name.split(".")
            state["state"].setdefault(int(number), {})[moment] = one
    optimizer.load_state_dict(state)
    result.best_epoch, result.best_mAP, result.history = record["best_epoch"], record["best_mAP"], record["history"]
    logger.info("continuing after epoch %d", len(result.history))
