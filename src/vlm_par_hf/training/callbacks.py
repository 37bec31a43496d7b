"""Callbacks of a run: the processor in each checkpoint, the progress bar, a line per validation."""

import logging
from pathlib import Path

from transformers import ProgressCallback, TrainerCallback


__all__ = ["FollowCheckpoints", "QuietProgress", "SaveProcessor"]

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
