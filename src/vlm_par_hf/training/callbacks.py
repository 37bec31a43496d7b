"""Callbacks of a run: the processor in each checkpoint, the progress bar, a line per validation."""

import logging
from pathlib import Path

from transformers import ProgressCallback, TrainerCallback

from vlm_par_hf.output_folders import OutputFolder


__all__ = ["FollowCheckpoints", "ListCheckpoints", "QuietProgress", "SaveProcessor"]

logger = logging.getLogger(__name__)


class SaveProcessor(TrainerCallback):
    """Save the processor in each intermediate checkpoint, so that each of them can be loaded and used.

    Giving it to the Trainer as `processing_class` would also save it, but would copy the tokenizer's special tokens to
    the model's configuration, where they have no meaning.
    """

    def __init__(self, processor):
        self.processor = processor

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.processor.save_pretrained(Path(args.output_dir) / f"checkpoint-{state.global_step}")


class QuietProgress(ProgressCallback):
    """The Trainer's progress bar without printing each log entry: the learning curve holds them."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        pass


class FollowCheckpoints(TrainerCallback):
    """Log the mean training loss at each checkpoint, and each validation in one line.

    The Trainer sums up the loss since its last log entry and does not save that sum. Without an entry at each
    checkpoint the learning curve of a continued run would differ at the first point after the interruption.
    """

    def on_step_end(self, args, state, control, **kwargs):
        control.should_log = control.should_log or control.should_save

    def on_epoch_end(self, args, state, control, **kwargs):
        control.should_log = control.should_log or control.should_save

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        if state.is_world_process_zero and metrics and "eval_mA" in metrics:
            logger.info(
                "step %d of %d, epoch %.2f: validation loss %.4f, mA %.2f%%",
                state.global_step, state.max_steps, state.epoch or 0, metrics["eval_loss"], 100 * metrics["eval_mA"],
            )  # fmt: skip


class ListCheckpoints(TrainerCallback):
    """List the files of each checkpoint in the run's folder, so that only they are ever deleted. Comes last, because
    others write into checkpoints too; only the first process has it."""

    def __init__(self, folder: OutputFolder):
        self.folder = folder

    def _name(self, args, state) -> str:
        return (Path(args.output_dir) / f"checkpoint-{state.global_step}").relative_to(self.folder.path).as_posix()

    def _announce(self, args, state, control) -> None:
        if control.should_save:
            self.folder.begin([self._name(args, state)])

    def on_step_end(self, args, state, control, **kwargs):
        self._announce(args, state, control)

    def on_epoch_end(self, args, state, control, **kwargs):
        self._announce(args, state, control)

    def on_save(self, args, state, control, **kwargs):
        name = self._name(args, state)
        self.folder.record([name])
        if args.world_size > 1:
            # The other processes of a run save their random states without waiting for the first one.
            self.folder.begin([f"{name}/rng_state_{rank}.pth" for rank in range(args.world_size)], repair=True)

    def on_train_end(self, args, state, control, **kwargs):
        home = Path(args.output_dir).relative_to(self.folder.path).as_posix()
        if args.world_size > 1:
            self.folder.record([f"{home}/{path.name}" for path in Path(args.output_dir).glob("checkpoint-*")])
        self.folder.forget_missing(home)
