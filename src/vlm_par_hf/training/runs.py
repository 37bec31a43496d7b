"""The folder of a run: its record, its checkpoints and its result.

One process writes it, and what it wrote is listed (`output_folders`). A run may be moved: paths inside it are read as
relative to it.
"""

import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.trainer_callback import TrainerState

from vlm_par_hf.errors import ParFileExistsError, ParValueError
from vlm_par_hf.output_folders import STAGING, OutputFolder, is_model_file
from vlm_par_hf.utils import atomic_write_json, atomic_write_text, read_json_object

from .plots import plot_learning_curve, write_history
from .settings import TrainSettings


__all__ = [
    "CHECKPOINTS",
    "KIND",
    "TrainResult",
    "is_finished",
    "last_complete_checkpoint",
    "prepare_folder",
    "read_state",
    "write_result",
]

logger = logging.getLogger(__name__)

KIND = "training run"
CHECKPOINTS = "checkpoints"
RUN_RECORD = "run.json"
SUMMARY = "training.json"
CURVES = ("learning_curve.json", "learning_curve.csv", "learning_curve.png")
_STATE = "trainer_state.json"


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
        state = read_json_object(path / "trainer_state.json")
        if state is None or not isinstance(state.get("global_step"), int):
            logger.warning("%s is incomplete and is not used", path)
            continue
        if all((path / name).is_file() for name in needed):
            found.append((state["global_step"], path))
    return max(found)[1] if found else None


def prepare_folder(
    folder: OutputFolder,
    record: dict[str, Any],
    settings: TrainSettings,
    *,
    resume: bool,
    overwrite: bool,
    delete_listed: bool = False,
):
    """Check the locked folder, write the record of the run, and return the checkpoint to continue from (or None).

    Raises:
        ValueError: the folder holds an earlier run and neither `resume` nor `overwrite` is set, or the run to continue
            had other settings, data, model or number of processes (every difference is named).
        FileExistsError: the folder holds files that no run wrote, under names that a run writes.
    """
    output_dir = folder.path
    run_record = output_dir / RUN_RECORD
    checkpoints = output_dir / CHECKPOINTS
    if overwrite:
        # The result of the earlier run stays until that of this one replaces it.
        if folder.is_known or _list_earlier_run(output_dir) is not None:
            folder.claim(delete_listed=delete_listed, recognise=_list_earlier_run)
    elif not resume and ((output_dir / "config.json").exists() or any(checkpoints.glob("checkpoint-*"))):
        # A folder with only a record holds a run that failed before its first checkpoint: nothing is lost.
        raise ParValueError(
            f"output_dir={str(output_dir)!r} holds an earlier run: continue it (resume=True, --resume), replace it "
            "(overwrite=True, --overwrite) or name another folder"
        )
    elif not folder.is_known:
        folder.record(_list_earlier_run(output_dir) or ())
    _refuse_strangers(folder)
    if overwrite:
        folder.clear(within=CHECKPOINTS)
    if resume and run_record.exists():
        folder.check_unchanged(without=CHECKPOINTS)
        earlier = read_json_object(run_record)
        if earlier is None or not all(isinstance(earlier.get(part), dict) for part in ("settings", "data", "model")):
            raise ParValueError(f"{run_record} is damaged, so nothing says which run it is of: start a new one")
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
        if checkpoint is not None:
            _move_paths(checkpoint)
            folder.record([checkpoint.relative_to(output_dir).as_posix()])
        return checkpoint
    folder.begin([RUN_RECORD])
    atomic_write_json(run_record, record)
    folder.record([RUN_RECORD])
    return None


def _list_earlier_run(output_dir: Path) -> list[str] | None:
    """The files that an earlier version wrote, which kept no list; None if its record is not there."""
    earlier = read_json_object(output_dir / RUN_RECORD)
    if earlier is None or not {"settings", "data", "model", "versions"} <= set(earlier):
        return None
    found = [path.name for path in output_dir.iterdir() if _is_name_of_a_run(path.name) and path.is_file()]
    inside = [path for name in (f"{CHECKPOINTS}/checkpoint-*", STAGING) for path in output_dir.glob(f"{name}/**/*")]
    return sorted([*found, *(path.relative_to(output_dir).as_posix() for path in inside if path.is_file())])


def _is_name_of_a_run(name: str) -> bool:
    return name in (RUN_RECORD, SUMMARY, *CURVES) or is_model_file(name)


def _refuse_strangers(folder: OutputFolder) -> None:
    """Hours before the result is written: nothing may be in its place, or be taken for a checkpoint."""
    for name in folder.strangers():
        inside = name.startswith((f"{CHECKPOINTS}/checkpoint-", f"{STAGING}/"))
        if inside or _is_name_of_a_run(name) or name in (CHECKPOINTS, STAGING):
            raise ParFileExistsError(
                f"{str(folder.path / name)!r} was not written by a run of this package and lies where this run "
                "writes: move it, or name another folder"
            )


def read_state(checkpoint: Path) -> TrainerState:
    """The Trainer's state in a checkpoint, with the best checkpoint as a path of today.

    The Trainer writes the path that the run had then. The best checkpoint always lies beside the others, so that its
    name says which one it is, wherever the run has been moved. One that is not there counts as none, and its mA too.
    """
    state = TrainerState.load_from_json(str(checkpoint / _STATE))
    if state.best_model_checkpoint is not None:
        best = checkpoint.parent / re.split(r"[/\\]", state.best_model_checkpoint.rstrip("/\\"))[-1]
        if best.is_dir():
            state.best_model_checkpoint = str(best)
        else:
            logger.warning(
                "%s, which holds the weights that were best so far (validation score %.4f), is not there: the best of "
                "the later ones will be kept", best, state.best_metric,
            )  # fmt: skip
            state.best_model_checkpoint = state.best_metric = state.best_global_step = None
    return state


def _move_paths(checkpoint: Path) -> None:
    """Writes the path of today into the state of a checkpoint: the Trainer takes the one that is there."""
    state = read_state(checkpoint)
    path = checkpoint / _STATE
    before = read_json_object(path) or {}
    now = {name: getattr(state, name) for name in ("best_model_checkpoint", "best_metric", "best_global_step")}
    if any(before.get(name) != value for name, value in now.items()):
        atomic_write_text(path, json.dumps({**before, **now}, indent=2, sort_keys=True) + "\n")


def is_finished(checkpoint: Path, settings: TrainSettings) -> bool:
    """Whether a checkpoint is that of the last step of its run."""
    state = read_json_object(checkpoint / "trainer_state.json") or {}
    stopped_early = state["stateful_callbacks"].get("TrainerControl", {}).get("args", {}).get("should_training_stop")
    return state["global_step"] >= state["max_steps"] or bool(stopped_early)


def write_result(result: TrainResult, state: TrainerState, settings: TrainSettings, folder: OutputFolder) -> None:
    """Write model, processor, learning curve and summary of a run into its folder.

    The configuration, which loaders read first, is moved last: so a folder in which some files are missing does not
    load.
    """
    best_step = result.best_step
    with folder.staging() as staging:
        result.model.save_pretrained(staging)
        result.processor.save_pretrained(staging)
        write_history(state.log_history, staging)
        try:
            plot_learning_curve(state.log_history, staging / "learning_curve.png", best_step=best_step)
        except ImportError as error:
            logger.warning("learning_curve.png was not drawn: %s", error)
        atomic_write_json(
            staging / SUMMARY,
            {
                "validation_mA": result.best_mA,
                "selected_by": settings.select,
                "best_step": best_step,
                "steps": state.global_step,
                "epochs": state.epoch,
                "metric_preset": settings.metric_preset,
            },
        )
        folder.publish(staging, last="config.json")
