"""`train`: train a model with the plain `transformers.Trainer`, without a subclass.

This module adds to the Trainer: two learning rates, a start from the training priors and statistics, views and
augmentations that follow the epoch, the choice of the newest complete checkpoint after a crash, and a final folder
that `AutoModel.from_pretrained` loads.
"""

import dataclasses
import logging
import shlex
import sys
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    EarlyStoppingCallback,
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
    enable_full_determinism,
    set_seed,
)

from vlm_par_hf.base.losses import compute_priors
from vlm_par_hf.base.modeling import evaluation_mode
from vlm_par_hf.calibration import STANDARD_OBJECTIVES, fit
from vlm_par_hf.data import AugmentedDataset, ParAugmentation, ParCollator, TemperatureSampler
from vlm_par_hf.data.tracklets import TrackletDataset, has_tracklets
from vlm_par_hf.data.transforms import epoch_callback
from vlm_par_hf.errors import ParFileNotFoundError, ParValueError
from vlm_par_hf.features import FeatureDataset, TrackletFeatures, compute_features, feature_views
from vlm_par_hf.inference.predicting import predict_logits
from vlm_par_hf.labels.schema import UNKNOWN_LABEL, AttributeSchema
from vlm_par_hf.metrics.attributes import ParMetrics
from vlm_par_hf.output_folders import OutputFolder, open_output, refuse_overlap
from vlm_par_hf.upstream import sample_with
from vlm_par_hf.utils import EMBEDDED_BACKBONES, redact_command, require

from .building import build_model, loss_settings, starting_shares
from .callbacks import FollowCheckpoints, ListCheckpoints, QuietProgress, SaveProcessor
from .provenance import DataFacts, check_schema, load_data, name_roots, versions
from .runs import CHECKPOINTS, KIND, TrainResult, is_finished, prepare_folder, read_state, write_result
from .settings import TrainSettings


__all__ = ["train"]

logger = logging.getLogger(__name__)

# Enough images to fix a mean and a standard deviation per feature to within a few percent.
_STATISTICS_IMAGES = 4096


def train(
    dataset,
    output_dir: str | Path,
    *,
    family: str = "vlm_par",
    backbone: str | None = None,
    model=None,
    processor=None,
    root: str | Path | None = None,
    schema: AttributeSchema | None = None,
    dataset_options: dict[str, Any] | None = None,
    dataset_name: str | None = None,
    model_options: dict[str, Any] | None = None,
    max_num_patches: int | None = None,
    settings: TrainSettings | None = None,
    cache_features: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    delete_listed: bool = False,
    callbacks: Sequence[TrainerCallback] = (),
    command: Sequence[str] | None = None,
) -> TrainResult:
    """Train a model of one of the families and keep the weights with the best validation score (`settings.select`);
    test is never read.

    At the end decisions are fitted on the validation split (`vlm_par_hf.calibration`), for instance F1, which answers
    then follow, and for mA. A threshold that the schema of the data names stays.

    Started by `torchrun`, the processes share the images of each step (`batch_size` is that of one process) and the
    validation split; the first process writes the files. If the training split does not fill the last step of an
    epoch, images from its beginning are added, so that all processes have equally many.

    Args:
        dataset: name for `load_par_dataset` (with `root`, `schema`, `dataset_options`), several names with "+" between
            them ("pa100k+rendered": `unite_datasets`), or a `DatasetDict` with the splits `train` and `validation`.
        output_dir: receives the checkpoint, `run.json` (settings, data, versions, command), `training.json` (result),
            `learning_curve.{json,csv,png}` and, in `checkpoints/`, what is needed to continue.
        family: which model to build over `backbone`: `"vlm_par"`, `"focus_par"` or `"clear_par"`.
        backbone: a repository or folder of a model that the family takes (SigLIP, SigLIP 2; `"focus_par"` also CLIP),
            or `"embedded"`; for `"clear_par"` what `ClearParModel.from_backbone` takes. None: the family's default in
            `families.py`.
        model: instead of `family` and `backbone`: a checkpoint of this package to train further (folder, repository or
            a model in memory).
        processor: the processor of a model in memory.
        root: folder of the data set; of several a list with one for each, None for those that have none.
        schema: the user's own schema for readers that take one.
        dataset_options: further keywords of `load_par_dataset`; of several data sets each takes those that it has.
        dataset_name: name of the data in the record and on the model card; None: the name that the data set carries.
        model_options: keywords of the family's `from_backbone`: fields of its configuration, such as `loss` and
            `freeze_backbone`; `{"paper": True}` makes every choice as the paper does.
        max_num_patches: patches per image of a NaFlex backbone; None: the processor's default.
        settings: see `TrainSettings`.
        cache_features: a folder for the features of the frozen backbone (see `compute_features`): computed once, below
            `train/` and `validation/`, and used by every later run on the same images, with any label space, heads,
            seed or recipe. Sets `settings.precompute_features`.
        resume: continue from the newest complete checkpoint in `output_dir`; the result equals that of an
            uninterrupted run. Without any checkpoint the run starts from the beginning.
        overwrite: replace the run in `output_dir`: its checkpoints are deleted now, its result when that of this run
            is there. Other files stay. It refuses, and names them, where files were changed since they were written
            or where a run of an earlier version does not list its files.
        delete_listed: with `overwrite`: delete what that refusal named.
        callbacks: further Trainer callbacks.
        command: the command line to record; None: `sys.argv`.

    Returns:
        Where the result lies, what it reached, and model and processor.

    Raises:
        ValueError: `output_dir` holds a run and neither `resume` nor `overwrite` is set; the settings or the data of
            the run to continue differ (every difference listed); a split is missing; the data set's schema differs
            from the checkpoint's; `output_dir` lies inside `root` or the model, or would replace the model;
            another process writes it.
        FileExistsError: `output_dir` holds files of somebody else where the run writes.
        FileNotFoundError: the run to continue made its last step, and its best checkpoint is not there.
    """
    require("accelerate", "train")
    settings = settings or TrainSettings()
    if cache_features is not None:
        settings = dataclasses.replace(settings, precompute_features=True)
    if settings.feature_crops and not settings.precompute_features:
        raise ParValueError(
            f"feature_crops={settings.feature_crops}: crops are kept only with features (cache_features, "
            "--cache-features, or precompute_features=True); without, every image is cropped anew in every epoch (pad)"
        )
    output_dir = Path(output_dir)
    if resume and overwrite:
        raise ParValueError("resume=True and overwrite=True: expected one of them")
    if delete_listed and not overwrite:
        raise ParValueError("delete_listed=True: expected overwrite=True too")
    places = {
        **name_roots(root),
        "model": model if isinstance(model, (str, Path)) else None,
        "backbone": backbone if backbone not in EMBEDDED_BACKBONES else None,
    }
    refuse_overlap(output_dir, places, replaced=overwrite)
    if cache_features is not None:
        refuse_overlap(cache_features, places)
    arguments = _training_arguments(output_dir, settings)  # also joins the processes of torchrun
    with ExitStack() as stack:
        # The processes of one run share a folder, and the first one holds its lock.
        folder = _in_first_process(arguments, lambda: stack.enter_context(open_output(output_dir, KIND)), shared=False)
        data = load_data(dataset, root=root, schema=schema, options=dataset_options)
        for split in ("train", "validation"):
            if split not in data:
                raise ParValueError(
                    f"the data set has no {split!r} split (it has {', '.join(sorted(data))}): training needs train "
                    "and validation; the best checkpoint is chosen on validation and never on test"
                )
            if len(data[split]) == 0:
                raise ParValueError(f"the {split!r} split is empty: expected at least one image")
        facts = DataFacts.read(dataset, data["train"], name=dataset_name, options=dataset_options)

        if settings.full_determinism:
            enable_full_determinism(settings.seed)
        set_seed(settings.seed)
        # Only new heads start from the priors; a loaded checkpoint keeps its bias.
        fresh = model is None
        model, processor = build_model(
            family, backbone, facts.schema, model, processor, model_options or {}, max_num_patches
        )
        schema = model.config.schema
        check_schema(facts.schema, schema)
        model.config.decisions = None  # those of a model that is trained further were fitted to other weights
        _free_vision_tower(model, settings)
        validation = DataFacts.read(dataset, data["validation"], name=facts.name)
        check_schema(validation.schema, schema)
        sampler = _make_sampler(facts, settings)
        facts.warn_of_one_label("train")
        validation.warn_of_one_label("validation")
        _check_selection(settings, validation)

        record = {
            "settings": settings.to_dict(),
            "data": {
                "name": facts.name,
                "options": facts.options,
                **({} if sampler is None else {"sources": _describe_sources(facts, sampler)}),
                "train_images": len(data["train"]),
                "validation_images": len(data["validation"]),
                "train_sha256": facts.fingerprint,
            },
            "model": {
                "family": model.config.model_type,
                "backbone": model.config.backbone_name,
                "options": dict(model_options or {}),
            },
            "processes": arguments.world_size,
            "command": shlex.join(redact_command(sys.argv if command is None else command)),
            "versions": versions(),
        }
        checkpoint = _in_first_process(
            arguments,
            lambda: prepare_folder(
                folder, record, settings, resume=resume, overwrite=overwrite, delete_listed=delete_listed
            ),
        )

        priors = compute_priors(facts.labels, schema)
        paper = bool((model_options or {}).get("paper"))
        model.config.loss = loss_settings(model, settings, priors, paper=paper)
        if fresh and model.starts_from_priors:
            model.init_bias_from_priors(starting_shares(model.config.loss, priors))
        model.to(arguments.device)
        train_data, validation_data = _training_data(
            data,
            model,
            processor,
            schema,
            settings,
            None if cache_features is None else Path(cache_features),
            progress=settings.progress and arguments.process_index == 0,
        )
        _fit_start(model, data["train"], train_data, processor, settings, fresh=fresh)

        # Fused, because with cached features the optimizer takes half of a step on a CPU; fused it is six times
        # faster.
        optimizer = torch.optim.AdamW(_parameter_groups(model, settings), lr=settings.learning_rate, fused=True)
        extra = [epoch_callback(sampler), SaveProcessor(processor), FollowCheckpoints(), *callbacks]
        if settings.early_stopping_patience:
            extra.append(EarlyStoppingCallback(early_stopping_patience=settings.early_stopping_patience))
        if folder is not None:
            extra.append(ListCheckpoints(folder))
        trainer = Trainer(
            model=model,
            args=arguments,
            train_dataset=train_data,
            eval_dataset=validation_data,
            data_collator=ParCollator(processor, schema),
            compute_metrics=ParMetrics(schema, preset=settings.metric_preset),
            optimizers=(optimizer, None),
            callbacks=extra,
        )
        if sampler is not None:
            sample_with(trainer, sampler)
        trainer.remove_callback(PrinterCallback)
        trainer.remove_callback(ProgressCallback)
        if settings.progress:
            trainer.add_callback(QuietProgress())
        if checkpoint is not None and is_finished(checkpoint, settings):
            # An earlier process ended after its last step and before it wrote the result: no further step must be
            # made.
            trainer.state = read_state(checkpoint)
            if trainer.state.best_model_checkpoint is None:
                raise ParFileNotFoundError(
                    f"the run in output_dir={str(output_dir)!r} ended, and its best weights are not in "
                    f"{CHECKPOINTS!r}: copy the whole run, or train again (overwrite=True, --overwrite)"
                )
            model = type(model).from_pretrained(trainer.state.best_model_checkpoint).to(arguments.device)
        else:
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        if settings.lora and model.config.save_backbone:
            model.merge_lora()  # a checkpoint as any other; the heads alone keep the adapters beside them
        _fit_decisions(model, processor, validation_data, validation, settings)
        return _finish(trainer, model, processor, output_dir, folder, settings)


def _training_arguments(output_dir: Path, settings: TrainSettings) -> TrainingArguments:
    every = {"strategy": "steps", "steps": settings.eval_steps} if settings.eval_steps else {"strategy": "epoch"}
    return TrainingArguments(
        output_dir=str(output_dir / CHECKPOINTS),
        num_train_epochs=settings.epochs,
        max_steps=settings.max_steps,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.eval_batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        warmup_steps=settings.warmup,
        lr_scheduler_type=settings.schedule,
        max_grad_norm=settings.max_grad_norm,
        bf16=settings.bf16,
        # Must be set for a CPU: otherwise the Trainer refuses bfloat16 there, and each process of torchrun trains
        # alone on all the data and overwrites the files of the others.
        use_cpu=not torch.accelerator.is_available(),
        ddp_find_unused_parameters=False,  # every trainable parameter takes part in every step
        seed=settings.seed,
        data_seed=settings.seed,
        full_determinism=settings.full_determinism,
        **{f"eval_{name}": value for name, value in every.items()},
        **{f"save_{name}": value for name, value in every.items()},
        save_total_limit=settings.save_total_limit,
        load_best_model_at_end=True,
        metric_for_best_model=settings.select,
        greater_is_better=True,
        logging_steps=settings.logging_steps,
        report_to=settings.report_to.split(","),
        run_name=settings.run_name or None,
        disable_tqdm=not settings.progress,
        # The columns that the collator needs (images, features) are not arguments of `forward`: do not remove them.
        remove_unused_columns=False,
        label_names=["labels"],
        dataloader_num_workers=settings.workers,
        dataloader_pin_memory=torch.cuda.is_available(),
        restore_callback_states_from_checkpoint=True,
    )


def _free_vision_tower(model, settings: TrainSettings) -> None:
    """Lets the parts of the vision tower learn that the settings name.

    Raises:
        ValueError: they contradict the model, or what is trained could not be saved.
    """
    if not model.supports_partial_training:
        for name in ("lora", "train_layers"):
            if getattr(settings, name):
                raise ParValueError(
                    f"{name}={getattr(settings, name)}: {type(model).__name__} has no frozen vision-language backbone "
                    "of which a part could be trained; what it trains is in its configuration"
                )
        return
    if settings.lora:
        targets = [one.strip() for one in settings.lora_targets.split(",")]
        model.add_lora(settings.lora, layers=settings.lora_layers or None, targets=targets)
    if settings.train_layers:
        if model.trains_vision_tower:
            raise ParValueError(
                f"train_layers={settings.train_layers}, and the whole vision tower is trained (freeze_backbone=False, "
                "--train-backbone): expected one of them"
            )
        model.train_last_layers(settings.train_layers)
    if not model.config.save_backbone and model.trains_backbone_weights:
        raise ParValueError(
            "save_backbone is False (--heads-only), and weights of the vision tower are trained: they would be lost; "
            "save the whole model, or train adapters (lora, --lora), which are saved with the heads"
        )


def _in_first_process(arguments: TrainingArguments, function: Callable[[], Any], *, shared: bool = True) -> Any:
    """Calls `function` in the first process only; every process gets its result, with `shared` False the others None.

    Its error is raised in every process too: otherwise the others would wait for the first one for ever.
    """
    if arguments.world_size == 1:
        return function()
    from accelerate.utils import broadcast_object_list

    found, outcome = None, [None, None]
    if arguments.process_index == 0:
        try:
            found = function()
            outcome[0] = found if shared else None
        except Exception as error:
            outcome[1] = error
    broadcast_object_list(outcome)
    if outcome[1] is not None:
        raise outcome[1]
    return outcome[0] if shared else found


def _parameter_groups(model, settings: TrainSettings) -> list[dict[str, Any]]:
    return model.parameter_groups(
        settings.learning_rate,
        settings.fusion_learning_rate or None,
        backbone_learning_rate=settings.backbone_learning_rate,
        adapter_learning_rate=settings.adapter_learning_rate,
        weight_decay=settings.weight_decay,
    )


def _training_data(data, model, processor, schema, settings: TrainSettings, cache: Path | None, *, progress: bool):
    by_tracklet = model.supports_tracklets and has_tracklets(data["train"])
    if not settings.precompute_features:
        augmentation = ParAugmentation(schema, flip=settings.flip, pad=settings.pad, erasing=settings.erasing)
        if by_tracklet:
            T = model.config.num_frames
            return (
                TrackletDataset(data["train"], T, augmentation, random=True, seed=settings.seed),
                TrackletDataset(data["validation"], T),
            )
        return (
            AugmentedDataset(data["train"], augmentation, seed=settings.seed),
            AugmentedDataset(data["validation"]),
        )
    common = {
        "batch_size": settings.eval_batch_size,
        "workers": settings.workers,
        "dtype": settings.feature_dtype,
        "progress": progress,
        "seed": settings.seed,
    }
    views = feature_views(settings.flip > 0, settings.feature_crops)
    logger.info("training from features, computed once per view (%s); other augmentation is off", ", ".join(views))
    train_data = compute_features(
        model, data["train"], processor, views=views, flip=settings.flip, pad=settings.pad,
        directory=None if cache is None else cache / "train", memory_gib=settings.feature_memory_gib, **common,
    )  # fmt: skip
    left = settings.feature_memory_gib - train_data.nbytes / 2**30
    validation_data = compute_features(
        model, data["validation"], processor, directory=None if cache is None else cache / "validation",
        memory_gib=left, **common,
    )  # fmt: skip
    if by_tracklet:
        train_data = TrackletFeatures(train_data, data["train"], model.config.num_frames, random=True)
        validation_data = TrackletFeatures(validation_data, data["validation"], model.config.num_frames)
    return train_data, validation_data


def _fit_start(model, split, train_data, processor, settings: TrainSettings, *, fresh: bool) -> None:
    """Fits statistics and, of a fresh model, gates to a sample of the training images, as they are in the files."""
    fits_statistics = settings.fit_pooled_statistics and model.supports_pooled_statistics
    fits_zero_shot = settings.fit_zero_shot and fresh and model.starts_from_zero_shot
    if not (fits_statistics or fits_zero_shot):
        return
    # Evenly spread over the split, because files are often ordered by person or by camera.
    count = len(train_data) if isinstance(train_data, FeatureDataset) else len(split)
    rows = np.unique(np.linspace(0, count - 1, min(count, _STATISTICS_IMAGES)).astype(int))
    if isinstance(train_data, FeatureDataset):
        batches = train_data.batches(settings.eval_batch_size, rows)
    else:
        batches = torch.utils.data.DataLoader(
            AugmentedDataset(split.select(rows)),
            batch_size=settings.eval_batch_size,
            num_workers=settings.workers,
            collate_fn=ParCollator(processor),
        )
    seen = []  # what the gates are fitted to; both are fitted in one pass of the vision tower

    def features():
        for batch in batches:
            labels = batch.pop("labels")
            batch = {name: value.to(model.device) for name, value in batch.items()}
            if "patch_embeds" not in batch:
                with torch.no_grad(), evaluation_mode(model):
                    batch = model.get_image_features(**batch).as_inputs()
            seen.append({"image_embeds": batch["image_embeds"], "labels": labels})
            yield batch

    if fits_statistics:
        model.fit_pooled_statistics(features())  # changes no logit, so a trained model loses nothing
    else:
        deque(features(), maxlen=0)
    if fits_zero_shot:
        model.fit_zero_shot(seen)


def _make_sampler(facts: DataFacts, settings: TrainSettings) -> TemperatureSampler | None:
    """How several data sets are drawn from; None for one, of which every picture is seen once per epoch."""
    if facts.sources is None:
        default = next(one.default for one in dataclasses.fields(settings) if one.name == "sampling_temperature")
        if settings.sampling_temperature != default:
            raise ParValueError(
                f"sampling_temperature={settings.sampling_temperature} for {facts.name!r}, which is one data set: it "
                "says how often each of several is drawn from (a+b)"
            )
        return None
    return TemperatureSampler(facts.sources, settings.sampling_temperature, settings.seed)


def _describe_sources(facts: DataFacts, sampler: TemperatureSampler) -> dict[str, Any]:
    names, counts = np.unique(facts.sources, return_counts=True)
    return {
        name: {"train_images": int(count), "share": round(sampler.shares[name], 4)}
        for name, count in zip(names.tolist(), counts)
    }


def _check_selection(settings: TrainSettings, validation: DataFacts) -> None:
    """Refuses to choose by a ranking where there is nothing to rank."""
    if settings.select != "auc_macro":
        return
    columns = (column[column != UNKNOWN_LABEL] for column in validation.labels.T)
    if not any(len(np.unique(column)) > 1 for column in columns):
        raise ParValueError(
            "select='auc_macro': no attribute has two different known labels in the validation split, so nothing can "
            "be ranked; expected select='mA'"
        )


def _fit_decisions(model, processor, validation_data, validation: DataFacts, settings: TrainSettings) -> None:
    """Fits calibration and thresholds on the validation split, and makes the model answer by them."""
    logits, labels = predict_logits(
        model, processor, validation_data, batch_size=settings.eval_batch_size, progress=False
    )
    record = {
        "data": {"name": validation.name, "split": "validation", "pictures": len(labels)},
        "selected_by": settings.select,
        "when": datetime.now(UTC).date().isoformat(),
    }
    decisions = fit(logits, labels, model.config.schema, objectives=STANDARD_OBJECTIVES, record=record)
    model.config.set_decisions(decisions)
    chosen = {one.name: one.threshold for one in validation.schema if one.is_binary and one.threshold != 0.5}
    if chosen:
        logger.info("thresholds that the schema of the data names stay: %s", chosen)
        model.config.set_schema(
            AttributeSchema(
                dataclasses.replace(one, threshold=chosen.get(one.name, one.threshold)) for one in model.config.schema
            )
        )
    model.schema = model.config.schema


def _finish(
    trainer: Trainer, model, processor, output_dir: Path, folder: OutputFolder | None, settings: TrainSettings
) -> TrainResult:
    state = trainer.state
    best_step = state.best_global_step or state.global_step
    result = TrainResult(
        output_dir=output_dir,
        best_mA=_mA_at(best_step, state),
        best_step=best_step,
        steps=state.global_step,
        log_history=list(state.log_history),
        model=model.eval(),
        processor=processor,
    )
    if folder is not None:
        write_result(result, state, settings, folder)
    trainer.accelerator.wait_for_everyone()  # so that the folder is complete when a process returns
    return result


def _mA_at(step: int, state: TrainerState) -> float:
    found = [one["eval_mA"] for one in state.log_history if one.get("step") == step and "eval_mA" in one]
    return float(found[-1]) if found else float("nan")
