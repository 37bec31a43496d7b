"""What `test_hub.py` runs in fresh processes against a `HubServer`: `python -m modeling_tests.hub_client PART FOLDER`.

Each part writes what happened to FOLDER/PART.json: for each step its result, or the error's type and message.
"""

import importlib.abc
import json
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any


results: dict[str, Any] = {}


def step(name: str, function, *args: Any, **kwargs: Any) -> Any:
    sys.stderr.write(f"step {name}\n")
    try:
        value = function(*args, **kwargs)
    except Exception as error:
        results[name] = {
            "error": type(error).__name__,
            "is_os_error": isinstance(error, OSError),
            "message": str(error),
        }
        return None
    results[name] = {"value": value if isinstance(value, (str, int, float, list, dict)) else type(value).__name__}
    return value


def picture():
    from PIL import Image

    image = Image.new("RGB", (24, 48), (200, 180, 160))
    image.paste((20, 40, 160), (6, 14, 18, 46))
    return image


def logits(model, processor) -> list:
    import torch

    with torch.inference_mode():
        return model(**processor(images=[picture()])).logits.tolist()


def publish(folder: Path) -> None:
    from huggingface_hub import constants, get_session
    from transformers import Trainer, TrainingArguments, pipeline

    from modeling_tests.tiny import randomize, tiny_schema
    from vlm_par_hf import ParCollator, VlmParModel, VlmParProcessor
    from vlm_par_hf.hub.model_card import write_card_on_push

    def build(**options):
        model = VlmParModel.from_backbone("org/backbone", attributes=tiny_schema(), num_fusion_heads=4, **options)
        return randomize(model).eval()

    processor = VlmParProcessor.from_backbone("org/backbone", max_num_patches=12)
    model = build()
    step("full", model.push_to_hub, "org/full", tags=["my-tag"], private=False)
    step("full processor", processor.push_to_hub, "org/full")
    results["full logits"] = logits(model, processor)
    step("secret", model.push_to_hub, "org/secret", private=True)
    step("secret processor", processor.push_to_hub, "org/secret")
    step("own account", processor.push_to_hub, "processor-alone")
    randomize(model, seed=1)
    step("revision", model.push_to_hub, "org/full", revision="v2", commit_message="second version")
    results["revision logits"] = logits(model, processor)
    step("pull request", model.push_to_hub, "org/full", create_pr=True)
    step("again", model.push_to_hub, "org/again")
    randomize(model, seed=2)
    step("again, changed", model.push_to_hub, "org/again")
    step("saved", model.save_pretrained, folder / "saved", push_to_hub=True, repo_id="org/saved")

    record = {"data": {"name": "own", "split": "test", "images": 4}, "metrics": {"mA": 0.5}, "attributes": [],
              "preset": "rethinking"}  # fmt: skip
    (folder / "saved" / "metrics.json").write_text(json.dumps(record))
    measured = VlmParModel.from_pretrained(folder / "saved")
    step("measured", measured.push_to_hub, "org/measured")
    step("changed since", randomize(measured, seed=3).push_to_hub, "org/changed-since")
    step("told", measured.push_to_hub, "org/changed-since", metrics=record)

    heads = build(save_backbone=False)
    step("heads", heads.push_to_hub, "org/heads")
    step("heads processor", processor.push_to_hub, "org/heads")
    results["heads logits"] = logits(heads, processor)
    for name, options in {"heads-shards": {"max_shard_size": "4KB"}, "heads-fp16": {"variant": "fp16"}}.items():
        step(name, heads.save_pretrained, folder / name, push_to_hub=True, repo_id=f"org/{name}", **options)
        step(f"{name} processor", processor.push_to_hub, f"org/{name}")
    if find_spec("peft") is not None:
        publish_adapters(build, processor)
    heads.config.backbone_name = str(folder)
    step("heads over a folder", heads.push_to_hub, "org/unloadable")

    pipe = pipeline("pedestrian-attributes", model=model, processor=processor)
    step("pipeline", pipe.push_to_hub, "org/pipe")
    results["pipeline answer"] = pipe(picture())

    model.config.backbone_name = str(folder / "backbone")
    step("over a folder", model.push_to_hub, "org/over-a-folder")
    results["its own configuration"] = model.config.backbone_name
    model.config.backbone_name = "org/backbone"
    folded = model.fold()
    step("folded", folded.push_to_hub, "org/folded")
    step("folded processor", processor.push_to_hub, "org/folded")
    results["folded logits"] = logits(folded, processor)
    step("folded pipeline", pipeline("pedestrian-attributes", model=folded, processor=processor).push_to_hub,
         "org/folded-pipe")  # fmt: skip

    rows = [{"image": picture(), "labels": [1, 0, -100]} for _ in range(4)]
    for name, ours in (("trained", True), ("trained-plainly", False)):
        trainer = Trainer(
            model=build(),
            args=TrainingArguments(
                output_dir=str(folder / name), max_steps=2, save_steps=1, report_to="none",
                per_device_train_batch_size=2,
                remove_unused_columns=False, label_names=["labels"], disable_tqdm=True, use_cpu=True, push_to_hub=True,
                hub_model_id=f"org/{name}", hub_private_repo=True, hub_strategy="every_save" if ours else "end",
            ),
            train_dataset=rows,
            data_collator=ParCollator(processor),
            processing_class=processor,
        )  # fmt: skip
        if ours:
            write_card_on_push(trainer)
            step("train", trainer.train)
        step(name, trainer.push_to_hub)
        results[f"{name} logits"] = logits(trainer.model.eval(), processor)
        if ours:
            trainer.model.config.save_backbone, trainer.model.config.backbone_name = False, str(folder / "backbone")
            step("trainer of heads over a folder", trainer.push_to_hub, commit_message="nobody could load this")

    for name in ("unauthorised", "forbidden", "missing", "conflict", "broken", "busy", "dies"):
        step(name, model.push_to_hub, f"org/{name}")
    step("dies, again", model.push_to_hub, "org/dies")
    step("no token", processor.push_to_hub, "org/no-token", token=False)

    # Large files, some of them in one push. The Hub's library tries again half a minute long where an answer is bad.
    time.sleep = lambda seconds: None
    randomize(model, seed=4)
    step("large refused", model.push_to_hub, "org/large-refused", max_shard_size="40KB")
    step("large dies", model.push_to_hub, "org/large", max_shard_size="40KB")
    get_session().post(f"{constants.ENDPOINT}/test/mend").raise_for_status()
    step("large again", model.push_to_hub, "org/large", max_shard_size="40KB")
    step("large processor", processor.push_to_hub, "org/large")
    results["large logits"] = logits(model, processor)


def publish_adapters(build, processor) -> None:
    """An adapter-only repository of peft over a full one, and heads alone with LoRA beside them."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModel

    from modeling_tests.tiny import randomize

    config = LoraConfig(r=2, target_modules=r".*vision_model.*\.(q_proj|v_proj)", modules_to_save=["attribute_heads"])
    adapted = randomize(get_peft_model(AutoModel.from_pretrained("org/full"), config)).eval()
    with_lora = build(save_backbone=False)
    with_lora.add_lora(2)
    randomize(with_lora)
    for name, model in (("adapter", adapted), ("heads-lora", with_lora)):
        step(name, model.push_to_hub, f"org/{name}")
        step(f"{name} processor", processor.push_to_hub, f"org/{name}")
        results[f"{name} logits"] = logits(model, processor)


def load(folder: Path) -> None:
    from transformers import AutoModel, AutoProcessor, pipeline

    import vlm_par_hf

    for name, options in {
        "full": {}, "revision": {"revision": "v2"}, "heads": {}, "secret": {}, "trained": {}, "trained-plainly": {},
        "large": {}, "folded": {}, "heads-shards": {}, "heads-fp16": {"variant": "fp16"},
        **({"adapter": {}, "heads-lora": {}} if find_spec("peft") else {}),
    }.items():  # fmt: skip
        repo = f"org/{'full' if name == 'revision' else name}"
        model = step(f"{name} model", AutoModel.from_pretrained, repo, **options)
        processor = step(f"{name} processor", AutoProcessor.from_pretrained, repo)
        if model is not None and processor is not None:
            results[f"{name} logits"] = logits(model, processor)
    pipe = step("pipe", pipeline, "pedestrian-attributes", model="org/pipe")
    results["pipeline answer"] = pipe and pipe(picture())
    pipe = step("pipe by the tag of its card", lambda: pipeline(model="org/pipe"))
    results["answer without a task"] = pipe and pipe(picture())
    pipe = step("folded pipe", pipeline, "pedestrian-attributes", model="org/folded-pipe")
    results["folded pipeline answer"] = pipe and pipe(picture())
    results["package"] = vlm_par_hf.__version__
    # The Hub's library tries again half a minute long where an answer is bad; this process has nothing else to do.
    time.sleep = lambda seconds: None
    for name in ("heads-wrong", "heads-lost", "gone", "unreadable", "half", "full"):
        options = {"revision": "no-such-branch"} if name == "full" else {}
        step(f"load {name}", AutoModel.from_pretrained, f"org/{name}", **options)
    step("load secret without token", AutoModel.from_pretrained, "org/secret", token=False, cache_dir=folder / "empty")


def without(folder: Path) -> None:
    """The package is installed but not imported, then not installed, then imported by the files in the repository."""
    from transformers import AutoModel, AutoProcessor

    step("model", AutoModel.from_pretrained, "org/full")
    step("processor", AutoProcessor.from_pretrained, "org/full")
    step("folded", AutoModel.from_pretrained, "org/folded")

    class Hide(importlib.abc.MetaPathFinder):
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] == "vlm_par_hf":
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)
            return None

    hide = Hide()
    sys.meta_path.insert(0, hide)
    step("not installed", AutoModel.from_pretrained, "org/full", trust_remote_code=True)
    sys.meta_path.remove(hide)
    results["not imported yet"] = "vlm_par_hf" not in sys.modules
    model = step("trusted model", AutoModel.from_pretrained, "org/full", trust_remote_code=True)
    processor = step("trusted processor", AutoProcessor.from_pretrained, "org/full", trust_remote_code=True)
    results["module"] = type(model).__module__
    step("trusted folded model", AutoModel.from_pretrained, "org/folded", trust_remote_code=True)
    step("trusted folded processor", AutoProcessor.from_pretrained, "org/folded", trust_remote_code=True)
    results["logits"] = logits(model, processor) if model is not None else None


if __name__ == "__main__":
    part, folder = sys.argv[1], Path(sys.argv[2])
    {"publish": publish, "load": load, "without": without}[part](folder)
    (folder / f"{part}.json").write_text(json.dumps(results))
