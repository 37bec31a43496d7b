"""The folder of a run: its record, its checkpoints and its result."""

import json
import logging
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.trainer_callback import TrainerState

from vlm_par_hf.errors import ParValueError
from vlm_par_hf.utils import atomic_write_json

from .plots import plot_learning_curve, write_history
from .settings import TrainSettings


__all__ = ["CHECKPOINTS", "TrainResult", "is_finished", "last_complete_checkpoint", "prepare_folder", "write_result"]

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"
RUN_RECORD = "run.json"
SUMMARY = "training.json"


@dataclass
class TrainResult:
    """The result of a run.

    Attributes:
        output_dir: the folder that `AutoModel.from_pretrained` and `AutoProcessor.from_pretrained` load.
        best_mA: validation mA of the kept weights, in [0, 1].
        best_step: the optimizer step of the kept weights.
        steps: optimizer steps of the whole run.
        log_history: the Trainer's own log.
        model: the model with the kept weights.
        processor: its processor.
    """

    output_dir: Path
    best_mA: float
    best_step: int
    steps: int
    log_history: list[dict[str, Any]]
    model: Any
    processor: Any


def last_complete_checkpoint(folder: str | Path, processes: int = 1) -> Path | None:
    """The newest checkpoint below `folder` that each of `processes` wrote completely, or None.

    The Trainer writes a checkpoint's weights, optimizer and random states before `trainer_state.json`: if that file is
    missing or damaged, the process was killed while it wrote the checkpoint.
    """
    needed = ["optimizer.pt", "scheduler.pt"]
    if processes > 1:
        # Each process saves its own random state, and the first does not wait for the others.
        needed += [f"rng_state_{rank}.pth" for rank in range(processes)]
    found = []
    for path in Path(folder).glob("checkpoint-*"):
        step = path.name.removeprefix("checkpoint-")
        if not step.isdigit():
            continue
        try:
            state = json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            logger.warning("%s is incomplete and is not used", path)
            continue
        if all((path / name).is_file() for name in needed):
            found.append((state["global_step"], path))
    return max(found)[1] if found else None


def prepare_folder(
    output_dir: Path, record: dict[str, Any], settings: TrainSettings, *, resume: bool, overwrite: bool
):
    """Check the folder, write the record of the run, and return the checkpoint to continue from (or None).

    Raises:
        ValueError: the folder holds an earlier run and neither `resume` nor `overwrite` is set, or the run to continue
            had other settings, data, model or number of processes (every difference is named).
    """
    run_record = output_dir / RUN_RECORD
    checkpoints = output_dir / CHECKPOINTS
    if overwrite:
        shutil.rmtree(checkpoints, ignore_errors=True)
    elif not resume and ((output_dir / "config.json").exists() or any(checkpoints.glob("checkpoint-*"))):
        # A folder with only a record holds a run that failed before its first checkpoint: nothing is lost.
        raise ParValueError(
            f"output_dir={str(output_dir)!r} holds an earlier run: continue it (resume=True, --resume), replace it "
            "(overwrite=True, --overwrite) or name another folder"
        )
    if resume and run_record.exists():
        earlier = json.loads(run_record.read_text(encoding="utf-8"))
        differences = settings.differences(earlier["settings"])
        for part in ("data", "model"):
            differences += [
                f"{part} {name}: {earlier[part].get(name)!r} then, {value!r} now"
                for name, value in json.loads(json.dumps(record[part])).items()
                if earlier[part].get(name) != value
            ]
        if earlier.get("processes", 1) != record["processes"]:
            differences.append(f"processes: {earlier.get('processes', 1)} then, {record['processes']} now")
        if differences:
            raise ParValueError(
                f"the run in output_dir={str(output_dir)!r} cannot be continued, it differs in:\n  "
                + "\n  ".join(differences)
            )
        checkpoint = last_complete_checkpoint(checkpoints, record["processes"])
        logger.info("continuing from %s", checkpoint or "the beginning: no complete checkpoint yet")
        return checkpoint
    output_dir.mkdir(parents=True, exist_ok=True)
    atomic_write_json(run_record, record)
    return None


def is_finished(checkpoint: Path, settings: TrainSettings) -> bool:
    """Whether a checkpoint is that of the last step of its run."""
    state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    stopped_early = state["stateful_callbacks"].get("TrainerControl", {}).get("args", {}).get("should_training_stop")
    return state["global_step"] >= state["max_steps"] or bool(stopped_early)


def write_result(result: TrainResult, state: TrainerState, metric_preset: str) -> None:
    """Write model, processor, learning curve and summary of a run into its folder."""
    output_dir, best_step = result.output_dir, result.best_step
    _save_model_files(result.model, result.processor, output_dir)
    write_history(state.log_history, output_dir)
    try:
        plot_learning_curve(state.log_history, output_dir / "learning_curve.png", best_step=best_step)
    except ImportError as error:
        logger.warning("learning_curve.png was not drawn: %s", error)
    atomic_write_json(
        output_dir / SUMMARY,
        {
            "validation_mA": result.best_mA,
            "best_step": best_step,
            "steps": state.global_step,
            "epochs": state.epoch,
            "metric_preset": metric_preset,
        },
    )


def _save_model_files(model, processor, output_dir: Path) -> None:
    """Write model and processor to a temporary folder, then move each file.

    The configuration, which loaders read first, is moved last: so a folder in which some files are missing does not
    load.
    """
    temporary = output_dir / ".saving"
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary)
    processor.save_pretrained(temporary)
    for path in sorted(temporary.rglob("*"), key=lambda path: (path.name == "config.json", str(path))):
        target = output_dir / path.relative_to(temporary)
        if path.is_dir():
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
    shutil.rmtree(temporary)
