"""What `vlm_par_hf.upstream` relies on in transformers; a failure here names the place that moved.

Each test states one assumption, against transformers' own public behaviour where there is one.
"""

import ast
import importlib
import inspect
import logging
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModel, AutoModelForImageClassification, Pipeline, PreTrainedModel, SiglipVisionModel
from transformers.pipelines import PIPELINE_REGISTRY

import vlm_par_hf
from modeling_tests.tiny import tiny_backbone_config, tiny_clear_config, tiny_clear_model, tiny_inputs, tiny_model
from vlm_par_hf import upstream
from vlm_par_hf.images import preprocessing as pixels
from vlm_par_hf.upstream import TOWERS, OwnParameters, collect_load_report, init, naflex_embeddings
from vlm_par_hf.utils import embedded_path


ROOT = Path(vlm_par_hf.__file__).parent
KINDS = {"clip": "clip", "siglip": "fixed", "siglip2": "naflex"}
# Private or undocumented; only `upstream.py` may name them.
INTERNAL = ("transformers.masking_utils", "transformers.modeling_utils", "transformers.initialization",
            "transformers.pipelines", "transformers.configuration_utils", "transformers.image_utils",
            "transformers.models.")  # fmt: skip


def build(kind):
    torch.manual_seed(0)
    return AutoModel.from_config(tiny_backbone_config(kind)).eval()


def pixels_for(kind):
    return tiny_inputs("naflex" if kind == "siglip2" else "fixed")


def test_nothing_else_imports_internals():
    found = []
    for path in ROOT.rglob("*.py"):
        if path.name == "upstream.py" or "embedded" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            found += [f"{path.name}:{node.lineno}: {name}" for name in names if name.startswith(INTERNAL)]
    assert not found, "\n".join(found)


def test_init_weights_is_called_for_every_module_and_leaves_loaded_tensors_alone(tmp_path):
    """`_init_weights(module)` sees every module of ours, and `init.*_` skips what a checkpoint has filled."""
    model = tiny_model()
    model.save_pretrained(tmp_path)
    loaded = AutoModel.from_pretrained(tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    heads = loaded.attribute_heads
    assert isinstance(heads, OwnParameters) and not isinstance(nn.Linear(1, 1), OwnParameters)
    fresh = type(model)(model.config)
    assert (fresh.attribute_heads.norm_weight == 1).all() and (fresh.attribute_heads.gate == 0).all()
    for name in ("zeros_", "ones_", "copy_", "constant_", "normal_", "uniform_", "xavier_uniform_"):
        assert callable(getattr(init, name)), name


def test_swin_and_vit_as_the_branches_of_clear():
    """A stage takes `always_partition` and returns its tokens first; positions of a ViT are resized where they must
    be; a `ViTModel` can be built without the layer that would get no gradients."""
    model, pixels = tiny_clear_model(), tiny_inputs("clear")["pixel_values"]
    nothing = [nn.Identity()] * 2
    with torch.no_grad():
        own = model.swin(pixels, always_partition=True).last_hidden_state
        torch.testing.assert_close(upstream.run_swin(model.swin, pixels, nothing), own)
        assert torch.equal(upstream.run_vit(model.vit, pixels), model.vit(pixels).last_hidden_state)
        square = tiny_clear_model(vit_config={**model.vit.config.to_dict(), "image_size": 32}).vit
        resized = square(pixels, interpolate_pos_encoding=True).last_hidden_state
        assert torch.equal(upstream.run_vit(square, pixels), resized)
    assert model.vit.pooler is None and not upstream.unused_parameters(model.vit)
    assert [type(one).__name__ for one in upstream.last_stages(model.swin)] == ["SwinStage", "LayerNorm"]
    assert [type(one).__name__ for one in upstream.last_stages(model.vit)] == ["ViTLayer", "LayerNorm"]


def test_a_small_grid_breaks_the_plain_swin():
    """The reason for `always_partition`; if this passes one day, `run_swin` can do without it."""
    config = tiny_clear_config().swin_config
    config.window_size = 7
    with pytest.raises(RuntimeError, match="must match"):
        AutoModel.from_config(config).eval()(tiny_inputs("clear")["pixel_values"])


def test_saved_names_are_renamed_as_from_pretrained_does(tmp_path):
    model = tiny_clear_model()
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert "vit.encoder.layer.0.output.dense.weight" in saved
    found = upstream.names_in_memory(model, saved)
    assert found.keys() == model.state_dict().keys()
    assert upstream.names_in_memory(model, model.state_dict()).keys() == found.keys()  # a second time changes nothing


def test_the_load_report_is_one_record_of_one_logger(tmp_path, caplog):
    model = build("siglip")
    model.vision_model.config.architectures = None
    model.save_pretrained(tmp_path)
    with collect_load_report() as report:
        AutoModelForImageClassification.from_pretrained(tmp_path)  # its classifier is in no checkpoint of a backbone
    assert len(report) == 1 and "classifier" in report[0]
    assert not logging.getLogger("transformers.modeling_utils").filters


def test_the_registry_of_pipelines():
    row = PIPELINE_REGISTRY.supported_tasks["pedestrian-attributes"]
    assert issubclass(row["impl"], Pipeline) and row["pt"] == (AutoModel,)
    assert row["default"]["model"][0] == str(embedded_path("heads")) and row["type"] == "image"
    assert not upstream.is_task_registered("pedestrian-attributes", Pipeline)


def test_sub_configurations_are_built_by_their_spec():
    config = vlm_par_hf.VlmParConfig(vlm_config={"model_type": "siglip"})
    assert type(config.vlm_config).__name__ == "SiglipConfig"
    fields = inspect.signature(upstream.SubConfigSpec).parameters
    assert {"config_class", "model_type"} <= set(fields)


def test_the_fast_image_processors_have_these_names_and_settings():
    for name in pixels._FAST:
        module, _, cls = name.rpartition(".")
        processor = getattr(importlib.import_module(module), cls)()
        for setting in ("do_resize", "do_rescale", "do_normalize", "image_mean", "image_std", "rescale_factor"):
            assert hasattr(processor, setting), f"{cls}.{setting}"
    assert upstream.naflex_image_size(256, 128, 16, 128) == (256, 128)


def test_naflex_positions_are_a_square_table_that_is_resized():
    vision = build("siglip2").vision_model
    (parts,) = [found for module in vision.modules() if (found := naflex_embeddings(module)) is not None]
    assert parts.positions.ndim == 3 and parts.positions.shape[0] == parts.positions.shape[1]
    patches = torch.zeros(1, 6, parts.patch_embedding.weight.shape[1])
    with torch.no_grad():
        own = vision.embeddings(patches, torch.tensor([[3, 2]]))
        torch.testing.assert_close(own, parts.patch_embedding(patches) + parts.resized_positions(3, 2))
    assert naflex_embeddings(nn.Linear(1, 1)) is None


@pytest.mark.parametrize("kind", KINDS)
def test_the_insides_of_the_vision_tower_add_up_to_it(kind):
    """Embeddings, layers and last LayerNorm one by one are the tower, and its pooled output follows from them."""
    vlm, towers, inputs = build(kind), TOWERS[kind], pixels_for(kind)
    mask = inputs.get("pixel_attention_mask")
    with torch.no_grad():
        expected = vlm.vision_model(**inputs)
        states = towers.embed_images(vlm, inputs["pixel_values"], inputs.get("spatial_shapes"))
        bias = None
        if mask is not None:
            bias = torch.zeros(mask.shape).masked_fill(mask == 0, torch.finfo(torch.float32).min)[:, None, None]
        for layer in towers.layers(vlm):
            states = layer(states, attention_mask=bias)
        if towers.has_pooling_head:
            torch.testing.assert_close(towers.leave(vlm, states), expected.last_hidden_state)
            ones = torch.zeros(len(states), 1, 1, states.shape[1]) if bias is None else bias
            probe = towers.probe(vlm).expand(len(states), -1, -1)
            pooled, parts = towers.pool(vlm, probe, towers.leave(vlm, states), ones)
            torch.testing.assert_close(pooled[:, 0], expected.pooler_output)
            assert parts.keys.shape[2] == states.shape[1]
        else:
            torch.testing.assert_close(states, expected.last_hidden_state)
            torch.testing.assert_close(towers.leave(vlm, states[:, 0]), expected.pooler_output)
            image_embeds = vlm.get_image_features(inputs["pixel_values"]).pooler_output
            torch.testing.assert_close(towers.project(vlm, expected.pooler_output), image_embeds)


@pytest.mark.parametrize("kind", KINDS)
def test_a_further_token_goes_through_a_layer_as_a_patch_does(kind):
    """A token that is a copy of a patch, and sees what the patch sees, leaves the layer as the patch does."""
    vlm, towers = build(kind), TOWERS[kind]
    layer = next(towers.layers(vlm))
    states = torch.randn(2, 5, vlm.config.vision_config.hidden_size)
    with torch.no_grad():
        tokens, parts = towers.attend(layer, states[:, 1:3], states, torch.zeros(2, 1, 2, 5))
        torch.testing.assert_close(tokens, layer(states, attention_mask=None)[:, 1:3], rtol=1e-4, atol=1e-5)
    assert parts.queries.shape[2] == 2 and parts.keys.shape[2] == parts.values.shape[2] == 5


@pytest.mark.parametrize("kind", KINDS)
def test_words_through_the_text_tower_are_its_text_features(kind):
    """Also that the causal mask is made without a warning: its last argument was renamed in 5.24."""
    vlm, towers = build(kind), TOWERS[kind]
    length = vlm.config.text_config.max_position_embeddings
    ids = torch.randint(5, 60, (3, length))
    end = vlm.config.text_config.eos_token_id
    last = torch.full((3,), length - 1)
    if not towers.pools_last_place:
        ids[:, -1] = end
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("error")
        found = towers.encode_words(vlm, towers.embed_words(vlm, ids), last)
        torch.testing.assert_close(found, vlm.get_text_features(ids).pooler_output, rtol=1e-4, atol=1e-5)
    assert towers.word_table(vlm).shape[1] == vlm.config.text_config.hidden_size


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_can_start_where_the_tower_has_its_own(kind):
    vlm, towers = build(kind), TOWERS[kind]
    places = len(vlm.vision_model.embeddings.position_embedding.weight)
    start = towers.start_of_tokens(vlm, torch.ones(4, places))
    assert start.shape[-1] == vlm.config.vision_config.hidden_size and start.isfinite().all()
    unused = {id(one) for one in towers.unused_vision_parameters(vlm, has_tokens=False)}
    assert unused <= {id(one) for one in vlm.vision_model.parameters()}


def test_class_attributes_that_we_set_are_still_read():
    source = inspect.getsource(PreTrainedModel)
    for name in ("_supports_sdpa", "_supports_attention_backend", "_keep_in_fp32_modules_strict"):
        assert name in source, name
    assert "_keys_to_ignore_on_save" in inspect.getsource(PreTrainedModel.save_pretrained)
    model = AutoModel.from_config(tiny_backbone_config("siglip"), attn_implementation="eager")
    assert upstream.attention_implementation(model) == "eager"
    assert isinstance(model.vision_model, (nn.Module, SiglipVisionModel))


def test_what_is_saved_alone():
    """`add_adapter` sets it; `get_peft_model`, which leaves saving to its own class, does not."""
    assert upstream.saves_adapter_alone(tiny_model("naflex")) is False


def test_a_trainer_draws_with_the_sampler_that_it_is_given(tmp_path):
    from transformers import Trainer, TrainingArguments

    rows = [{"x": torch.tensor(float(index))} for index in range(6)]
    arguments = TrainingArguments(
        str(tmp_path), per_device_train_batch_size=2, remove_unused_columns=False, report_to="none", use_cpu=True
    )
    trainer = Trainer(nn.Linear(1, 1), arguments, train_dataset=rows)
    upstream.sample_with(trainer, [5, 3, 3, 0])
    assert [batch["x"].tolist() for batch in trainer.get_train_dataloader()] == [[5, 3], [3, 0]]
