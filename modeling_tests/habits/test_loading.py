"""Habits of transformers' users: loading, saving, asking a model directly, measuring.

One row is what a user types, and what comes out of it or the message that names the way.
"""

import copy
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
    AutoTokenizer,
    EvalPrediction,
    Trainer,
    TrainingArguments,
    pipeline,
)

import vlm_par_hf
from modeling_tests.bands import build_data
from modeling_tests.tiny import randomize, save_backbone, tiny_focus_model, tiny_model, tiny_processor, tiny_schema
from vlm_par_hf import ParCollator, ParMetrics, VlmParModel, VlmParProcessor
from vlm_par_hf.inference.pipelines import PedestrianAttributesPipeline
from vlm_par_hf.utils import embedded_path


HEADS = str(embedded_path("heads"))


@pytest.fixture(scope="module")
def image():
    return vlm_par_hf.example_crop("backpack")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A folder with a model, a processor, and no backbone elsewhere."""
    folder = tmp_path_factory.mktemp("checkpoint")
    randomize(tiny_model("naflex")).save_pretrained(folder)
    tiny_processor("naflex").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    folder = tmp_path_factory.mktemp("backbone")
    save_backbone(folder, tiny_model("naflex"), tiny_processor("naflex"))
    return folder


@pytest.fixture(scope="module")
def expected(checkpoint, image):
    return answer(AutoModel.from_pretrained(checkpoint), image)


@torch.no_grad()
def answer(model, image, dtype=None):
    inputs = tiny_processor("naflex")(images=[image], return_tensors="pt")
    return model(**(inputs if dtype is None else inputs.to(dtype))).logits


LOADS = {
    "plain": {},
    'dtype="auto"': {"dtype": "auto"},
    'dtype="float32"': {"dtype": "float32"},
    'device_map="cpu"': {"device_map": "cpu"},
    'device_map="auto"': {"device_map": "auto"},
    "low_cpu_mem_usage=True": {"low_cpu_mem_usage": True},
    'revision="main"': {"revision": "main"},
    "trust_remote_code=True": {"trust_remote_code": True},
    "use_safetensors=True": {"use_safetensors": True},
    'attn_implementation="eager"': {"attn_implementation": "eager"},
    "ignore_mismatched_sizes=True": {"ignore_mismatched_sizes": True},
}


@pytest.mark.parametrize("options", LOADS.values(), ids=LOADS)
def test_from_pretrained(checkpoint, expected, image, options):
    model = AutoModel.from_pretrained(checkpoint, **options)
    assert type(model) is VlmParModel and not model.training
    torch.testing.assert_close(answer(model, image), expected, rtol=1e-4, atol=1e-5)


def _with_state_of(model):
    fresh = AutoModel.from_config(model.config)
    fresh.load_state_dict(model.state_dict())
    return fresh.eval()


COPIES = {
    "copy.deepcopy(model)": copy.deepcopy,
    "pickle": lambda model: pickle.loads(pickle.dumps(model)),
    "load_state_dict": _with_state_of,
    'model.to("cpu").float()': lambda model: model.to("cpu").float(),
    "model.train().eval()": lambda model: model.train().eval(),
}


@pytest.mark.parametrize("change", COPIES.values(), ids=COPIES)
def test_the_model_in_memory(checkpoint, expected, image, change):
    model = change(AutoModel.from_pretrained(checkpoint))
    torch.testing.assert_close(answer(model, image), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(checkpoint, expected, image, dtype):
    for model in (AutoModel.from_pretrained(checkpoint, dtype=dtype), AutoModel.from_pretrained(checkpoint).to(dtype)):
        found = answer(model, image, dtype)
        assert model.dtype == dtype and found.dtype == torch.float32  # what answers are decided by stays exact
        torch.testing.assert_close(found.softmax(-1), expected.softmax(-1), atol=0.03, rtol=0)


SAVES = {"plain": {}, 'max_shard_size="20KB"': {"max_shard_size": "20KB"}, 'variant="fp16"': {"variant": "fp16"}}


@pytest.mark.parametrize("options", SAVES.values(), ids=SAVES)
@pytest.mark.parametrize("heads", [False, True], ids=["full", "heads alone"])
def test_save_pretrained_and_back(backbone, image, tmp_path, heads, options):
    model = VlmParModel.from_backbone(backbone, attributes=tiny_schema(), num_fusion_heads=4, save_backbone=not heads)
    randomize(model).eval().save_pretrained(tmp_path, **options)
    assert ("max_shard_size" in options) == (tmp_path / "model.safetensors.index.json").exists()
    variant = {"variant": "fp16"} if "variant" in options else {}
    again = AutoModel.from_pretrained(tmp_path, **variant)
    torch.testing.assert_close(answer(again, image), answer(model, image), rtol=1e-5, atol=1e-5)


def test_auto_classes_find_ours(checkpoint):
    config = AutoConfig.from_pretrained(checkpoint)
    assert config.model_type == "vlm_par" and config.id2label[0] == "Hat"
    assert type(AutoProcessor.from_pretrained(checkpoint)) is VlmParProcessor
    assert "Siglip2" in type(AutoImageProcessor.from_pretrained(checkpoint, backend="pil")).__name__
    assert AutoTokenizer.from_pretrained(checkpoint).pad_token_id == 0


def test_num_parameters(checkpoint):
    model = AutoModel.from_pretrained(checkpoint)
    assert model.num_parameters() == sum(one.numel() for one in model.parameters())
    assert 0 < model.num_parameters(only_trainable=True) < model.num_parameters(exclude_embeddings=True)
    assert model.get_memory_footprint() > 4 * model.num_parameters() > 0


def test_a_pipeline_for_other_processes(image):
    pipe = pipeline("pedestrian-attributes")
    again = pickle.loads(pickle.dumps(pipe))
    assert type(again) is PedestrianAttributesPipeline and again(image) == pipe(image) == copy.deepcopy(pipe)(image)


WRONG_CLASSES = {
    "AutoModelForImageClassification": AutoModelForImageClassification.from_pretrained,
    "AutoModelForZeroShotImageClassification": AutoModelForZeroShotImageClassification.from_pretrained,
    "AutoModelForImageClassification.from_config": lambda name: AutoModelForImageClassification.from_config(
        AutoConfig.from_pretrained(name)
    ),
    'pipeline("image-classification")': lambda name: pipeline("image-classification", model=name),
    'pipeline("zero-shot-image-classification")': lambda name: pipeline("zero-shot-image-classification", model=name),
}


@pytest.mark.parametrize("load", WRONG_CLASSES.values(), ids=WRONG_CLASSES)
def test_a_class_for_one_label_per_picture(load):
    message = r'load it with AutoModel.from_pretrained\(...\), or with pipeline\("pedestrian-attributes", model=...\)'
    with pytest.raises(vlm_par_hf.ParError, match=message) as caught:
        load(HEADS)
    assert "Traceback" not in str(caught.value)


def _from_backbone(name):
    return VlmParModel.from_backbone(name, attributes=tiny_schema())


LOADERS = {
    "VlmParModel.from_pretrained": VlmParModel.from_pretrained,
    "VlmParProcessor.from_pretrained": VlmParProcessor.from_pretrained,
    "VlmParModel.from_backbone": _from_backbone,
    "VlmParProcessor.from_backbone": VlmParProcessor.from_backbone,
}


@pytest.mark.parametrize("name", ["./runs/none", "runs/none", "a/b/c", "~/runs", "/no/such/folder"])
@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
def test_a_folder_that_there_is_not(tmp_path, monkeypatch, load, name):
    (tmp_path / "runs").mkdir()  # so that runs/none is a path here, and no repository
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        FileNotFoundError, match=rf"there is no folder '{name}'.*a repository of the Hub is named like"
    ):
        load(name)


REFUSALS = {
    "another number of labels": ({"num_labels": 3}, "num_labels=3 contradicts the label space of 26 attributes"),
    "names of labels": ({"id2label": {0: "hat"}}, "from which it follows: pass attributes="),
    "a variant that there is not": ({"variant": "fp16"}, "model.fp16.safetensors"),
}


@pytest.mark.parametrize(("options", "message"), REFUSALS.values(), ids=REFUSALS)
def test_from_pretrained_refuses(options, message):
    with pytest.raises((ValueError, OSError), match=message):
        AutoModel.from_pretrained(HEADS, **options)


def test_a_quantised_model_is_not_saved(checkpoint, tmp_path):
    model = AutoModel.from_pretrained(checkpoint)
    model.is_quantized = True
    with pytest.raises(ValueError, match="quantised when it was loaded.*quantise it at each load"):
        model.save_pretrained(tmp_path)


# Asking a model


def test_the_calls_of_the_siglip_2_documentation(checkpoint, image):
    processor, texts = AutoProcessor.from_pretrained(checkpoint), ["a hat", "a backpack"]
    inputs = processor(
        text=texts, images=image, padding="max_length", max_length=64, max_num_patches=6, return_tensors="pt"
    ).to("cpu")
    assert inputs["input_ids"].shape == (2, 64) and inputs["pixel_values"].shape[1] == 6
    model = AutoModel.from_pretrained(checkpoint)
    with pytest.raises(ValueError, match="leave out text= of the processor's call. FocusParModel answers for texts"):
        model(**inputs)
    assert model.get_text_features(inputs.pop("input_ids")).pooler_output.shape[0] == 2
    features = model.get_image_features(**inputs)
    assert features.pooler_output.shape == (1, 32) and features.last_hidden_state.shape == (1, 6, 32)
    patches, pooled, mask = features
    assert pooled is features.pooler_output and mask.all()
    with pytest.raises(ValueError, match='padding is True, expected "max_length"'):
        processor(text=texts, padding=True)
    with pytest.raises(TypeError, match="images_kwargs: expected the arguments themselves"):
        processor(images=image, images_kwargs={"max_num_patches": 6})


def test_output_hidden_states_and_attentions(checkpoint, image):
    model = AutoModel.from_pretrained(checkpoint)
    inputs = tiny_processor("naflex")(images=[image])
    out = model(**inputs, output_hidden_states=True, output_attentions=True)
    assert len(out.hidden_states) == 3 and out.attentions.shape[:2] == (1, 3)
    assert model(**inputs).hidden_states is None
    with pytest.raises(ValueError, match="model.vlm.vision_model"):
        tiny_focus_model("naflex")(**inputs, output_hidden_states=True)


def test_outputs_as_tuple_and_by_name(checkpoint, image):
    model, inputs = AutoModel.from_pretrained(checkpoint), tiny_processor("naflex")(images=[image])
    out = model(**inputs)
    assert torch.equal(out[0], out["logits"]) and torch.equal(model(**inputs, return_dict=False)[0], out.logits)


# Training and measuring with transformers' own Trainer


def _trainer(folder, **options):
    data, processor = build_data(tiny_schema()), tiny_processor("naflex")
    settings = {"remove_unused_columns": False, "max_steps": 1, "per_device_train_batch_size": 2, **options}
    return Trainer(
        model=tiny_model("naflex"),
        args=TrainingArguments(folder, report_to=[], use_cpu=True, disable_tqdm=True, **settings),
        train_dataset=data["train"],
        eval_dataset=data["validation"],
        data_collator=ParCollator(processor),
        compute_metrics=ParMetrics(tiny_schema()),
        processing_class=processor,
    )


def test_remove_unused_columns_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"TrainingArguments\(remove_unused_columns=False\)"):
        _trainer(tmp_path, remove_unused_columns=True).train()


def test_processing_class_is_saved(tmp_path, image):
    trainer = _trainer(tmp_path)
    trainer.train()
    trainer.save_model(tmp_path / "last")
    assert type(AutoProcessor.from_pretrained(tmp_path / "last")) is VlmParProcessor
    again = AutoModel.from_pretrained(tmp_path / "last")
    torch.testing.assert_close(answer(again, image), answer(trainer.model.eval(), image), rtol=1e-5, atol=1e-5)


def test_batch_eval_metrics(tmp_path):
    whole, by_batch = (_trainer(tmp_path, batch_eval_metrics=one).evaluate()["eval_mA"] for one in (False, True))
    assert by_batch == pytest.approx(whole)


def test_compute_metrics_on_outputs_of_every_form():
    schema, generator = tiny_schema(), np.random.default_rng(0)
    logits, labels = generator.normal(size=(6, 3, 2)), generator.integers(0, 2, (6, 3))
    whole = ParMetrics(schema)((logits, labels))
    for form in ((logits, np.zeros((6, 8))), [logits[:2], logits[2:]], torch.tensor(logits), {"logits": logits}):
        assert ParMetrics(schema)(EvalPrediction(form, labels)) == whole
    with pytest.raises(ValueError, match="starts with a number, such as a loss"):
        ParMetrics(schema)(EvalPrediction((np.float32(1), logits), labels))


def test_evaluate_load(tmp_path, monkeypatch):
    evaluate = pytest.importorskip("evaluate", reason="needs the extra evaluate")
    monkeypatch.setattr(evaluate.config, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path / "metrics")
    from vlm_par_hf.par_metrics import PATH

    metric, schema = evaluate.load(PATH, schema="pa100k"), vlm_par_hf.get_schema("pa100k")
    labels = torch.randint(0, 2, (4, len(schema)), generator=torch.Generator().manual_seed(0))
    logits = torch.nn.functional.one_hot(labels, 2).float()
    assert metric.compute(predictions=logits, references=labels)["plain_accuracy"] == 1
    metric.add_batch(predictions=vlm_par_hf.ParOutput(logits=logits), references=labels)
    assert metric.compute()["plain_accuracy"] == 1


# A first run


def test_a_first_run_prints_how_far_to_trust_it_and_nothing_else():
    code = (
        "import vlm_par_hf; from transformers import pipeline; "
        'print(pipeline("pedestrian-attributes")(vlm_par_hf.example_crop("backpack"))["attributes"]["Backpack"]["label"])'
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "PYTHONWARN"))}
    found = subprocess.run(
        [sys.executable, "-c", code], env={**environment, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert found.stdout == "yes\n", found.stderr
    (line,) = found.stderr.splitlines()
    assert line.startswith("Small embedded model: mA ")
