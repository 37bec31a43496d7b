"""What a run does besides its steps: the processor in each checkpoint, the bar, one line per validation."""

import logging
from pathlib import Path

from transformers import ProgressCallback, TrainerCallback


__all__ = [
    "FollowCheckpoints",
    "QuietProgress",
    "SaveProcessor",
]

logger = logging.getLogger(__name__)


class SaveProcessor(TrainerCallback):
    """Put the processor into each intermediate checkpoint, so that every one of them can be used as it is.

    Handing it to the Trainer as `processing_class` would do that too, and would also write the tokenizer's special
    tokens into the model's configuration, where they mean nothing.
    """

    def __init__(self, processor):
        self.processor = processor

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            self.processor.save_pretrained(Path(args.output_dir) / f"checkpoint-{state.global_step}")


class QuietProgress(ProgressCallback):
    """The Trainer's progress bar without its dictionaries of numbers: the learning curve holds them."""

    def on_log(self, args, state, control, logs=None, **kwargs):
        pass


class FollowCheckpoints(TrainerCallback):
    """Close the running mean of the training loss at each checkpoint, and say each validation in one line.

    The Trainer does not save that running mean: without this, the learning curve of a continued run would differ from
    that of an uninterrupted one at the first point after the interruption.
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
