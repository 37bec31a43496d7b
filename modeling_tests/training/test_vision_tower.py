"""Training inside the vision tower: LoRA beside the heads, and the last layers."""

import pytest
import torch
from transformers import AutoModel

from modeling_tests.tiny import randomize, tiny_focus_model, tiny_inputs, tiny_model
from modeling_tests.training_runs import FOCUS, QUICK, Interrupt, assert_same_weights, run
from vlm_par_hf.base.adapters import has_adapters
from vlm_par_hf.training import TrainSettings, train


LORA = {"lora": 2, "lora_layers": 1, "adapter_learning_rate": 1e-2, "max_steps": 4, "eval_steps": 2}
LAST = "vision_model.encoder.layers.1."


@torch.no_grad()
def answer(model):
    return model.eval()(**tiny_inputs("naflex")).logits


def moved(model, start):
    """The tensors of the backbone that differ from those of another model."""
    before = start.vlm.state_dict()
    return {name for name, value in model.vlm.state_dict().items() if not torch.equal(value, before[name])}


@pytest.fixture(scope="module")
def merged(data, tmp_path_factory):
    pytest.importorskip("peft", reason="needs the extra peft")
    return run(data, tmp_path_factory.mktemp("lora") / "run", model=randomize(tiny_model("naflex")), **LORA)


def test_lora_ends_in_a_checkpoint_as_any_other(merged):
    assert merged.model.config.lora is None and not has_adapters(merged.model)
    names = {f"{LAST}self_attn.{name}.weight" for name in ("q_proj", "v_proj")}
    assert moved(merged.model, randomize(tiny_model("naflex"))) == names
    assert torch.equal(answer(AutoModel.from_pretrained(merged.output_dir)), answer(merged.model))


def test_what_is_kept_in_between_loads_too(merged):
    best = AutoModel.from_pretrained(merged.output_dir / "checkpoints" / f"checkpoint-{merged.best_step}")
    assert best.config.lora == {"rank": 2, "alpha": 4, "layers": 1, "targets": ["q_proj", "v_proj"]}
    best.config.decisions = merged.model.config.decisions  # fitted at the end
    torch.testing.assert_close(answer(best), answer(merged.model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stop", [3, 4])
def test_an_interrupted_run_with_lora_continues_as_if_it_had_not_been(data, merged, tmp_path, stop):
    # 4 steps: the second one is killed between its last checkpoint and its result.
    common = {"model": randomize(tiny_model("naflex")), **LORA}
    with pytest.raises(KeyboardInterrupt):
        run(data, tmp_path / "cut", callbacks=[_AfterSaving(stop)], **common)
    assert not (tmp_path / "cut" / "config.json").exists()
    continued = run(data, tmp_path / "cut", resume=True, **{**common, "model": randomize(tiny_model("naflex"))})
    assert continued.best_step == merged.best_step
    assert_same_weights(continued.model.state_dict(), merged.model.state_dict())


class _AfterSaving(Interrupt):
    """Ends a run after a step, and after its checkpoint if there is one."""

    def on_step_end(self, args, state, control, **kwargs):
        if not control.should_save:
            super().on_step_end(args, state, control, **kwargs)

    def on_save(self, args, state, control, **kwargs):
        super().on_step_end(args, state, control, **kwargs)


def test_heads_alone_keep_the_adapters_beside_them(data, backbone, tmp_path):
    pytest.importorskip("peft", reason="needs the extra peft")
    settings = TrainSettings(**{**QUICK, **LORA, "bf16": True})
    result = train(
        data, tmp_path / "run", backbone=backbone, model_options={"save_backbone": False}, settings=settings
    )
    again = AutoModel.from_pretrained(result.output_dir)
    assert_same_weights(again.state_dict(), result.model.state_dict(), atol=0, rtol=0)
    assert again.config.lora["rank"] == 2 and has_adapters(again)
    assert not any(one.requires_grad for one in again.vlm.parameters())
    start = AutoModel.from_pretrained(result.output_dir)
    start.merge_lora()
    torch.testing.assert_close(answer(start), answer(again), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="the backbone is not that of .* any more"):
        start.save_pretrained(tmp_path / "merged")
    again.save_pretrained(tmp_path / "copy")
    assert torch.equal(answer(AutoModel.from_pretrained(tmp_path / "copy")), answer(again))


def test_another_family_with_lora(data, focus_backbone, tmp_path):
    pytest.importorskip("peft", reason="needs the extra peft")
    options = {"family": "focus_par", "backbone": focus_backbone, "model_options": FOCUS}
    result = train(data, tmp_path / "run", settings=TrainSettings(**{**QUICK, **LORA}), **options)
    names = {f"{LAST}self_attn.{name}.weight" for name in ("q_proj", "v_proj")}
    assert moved(result.model, tiny_focus_model("naflex")) == names
    assert torch.equal(answer(AutoModel.from_pretrained(result.output_dir)), answer(result.model))


def test_the_last_layers(data, tmp_path):
    start = randomize(tiny_model("naflex"))
    result = run(data, tmp_path / "run", model=start, train_layers=1, backbone_learning_rate=1e-3, max_steps=2)
    found = moved(result.model, randomize(tiny_model("naflex")))
    assert {name for name in found if name.startswith(LAST)} and "vision_model.head.probe" in found
    assert all(name.startswith((LAST, "vision_model.post_layernorm", "vision_model.head")) for name in found)
    groups = {group["name"]: group["lr"] for group in start.parameter_groups(3e-3)}
    assert groups["backbone"] == 1e-5 < groups["classifier"]


def test_the_last_layers_of_another_family():
    model = tiny_focus_model("clip")
    model.train_last_layers(1)
    learns = {name for name, one in model.vlm.named_parameters() if one.requires_grad}
    assert "visual_projection.weight" in learns
    assert all(name.startswith((LAST, "vision_model.post_layernorm", "visual_projection")) for name in learns)
