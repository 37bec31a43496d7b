"""CLEAR against its equations in plain loops, and how its branches are built, loaded and frozen."""

import copy
import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoModel,
    Dinov2Config,
    Dinov2Model,
    SwinForImageClassification,
    SwinModel,
    ViTForImageClassification,
)

from modeling_tests.models.clear_par import reference
from modeling_tests.tiny import (
    randomize,
    tiny_clear_config,
    tiny_clear_model,
    tiny_clear_processor,
    tiny_inputs,
    tiny_model,
    tiny_processor,
    tiny_schema,
)
from vlm_par_hf import get_schema
from vlm_par_hf.base.modeling import ParPreTrainedModel
from vlm_par_hf.models.clear_par import ClearParConfig, ClearParModel, ClearParProcessor
from vlm_par_hf.models.clear_par.fusion_clear_par import ChannelAttention, CrossFusion


FORMS = {
    "default": {},
    "paper": {"casa": "paper", "swin_pooling": "flatten", "fusion_projection": "before"},
    "released": {"casa": "code"},
    "concat": {"fusion": "concat", "casa": "none"},
    "vit": {"branches": "vit"},
    "swin": {"branches": "swin"},
}


def build(**config):
    return randomize(tiny_clear_model(**config))


@pytest.mark.parametrize("name", FORMS)
def test_the_answers_are_those_of_the_equations(name):
    model = build(**FORMS[name]).double()
    pixels = tiny_inputs("clear", 2)["pixel_values"].double()
    with torch.no_grad():
        output = model(pixels)
    expected = reference.logits_of(model, pixels)
    for person, scores in enumerate(expected):
        for attribute, row in enumerate(scores):
            found = output.logits[person, attribute, : len(row)].tolist()
            assert found == pytest.approx(row, rel=1e-9, abs=1e-9), (name, person, attribute)


def test_the_loss_of_the_paper_is_binary_cross_entropy():
    model = build(kway=False, loss=ClearParConfig.paper().loss, freeze="none").double()
    pixels, labels = tiny_inputs("clear", 3)["pixel_values"].double(), torch.tensor([[0, 1, 1], [1, 1, 0], [0, 0, 0]])
    with torch.no_grad():
        loss = model(pixels, labels=labels).loss
    expected = reference.binary_cross_entropy(reference.logits_of(model, pixels), labels.tolist())
    assert float(loss) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("settings", [{"kind": "weighted_bce", "reduction": "sum"}, {"kind": "focal"}, {}])
def test_every_loss_and_unknown_labels(settings):
    priors = [[1 / one.num_labels] * one.num_labels for one in tiny_schema(kway=True)]
    model = build(loss={**settings, "priors": priors} if "reduction" in settings else settings)
    labels = torch.tensor([[1, 0, 1, 3, 2], [0, -100, 1, 0, -100]])
    inputs = tiny_inputs("clear", 2)
    loss = model.train()(**inputs, labels=labels).loss
    loss.backward()
    assert loss.isfinite() and model.classifier.weight.grad.any()
    model.zero_grad()
    model(**inputs, labels=torch.full_like(labels, -100)).loss.backward()
    assert not model.classifier.weight.grad.any()


def test_a_fresh_channel_attention_returns_its_input_and_the_printed_one_does_not():
    for kind in ("fixed", "code", "paper"):
        model = tiny_clear_model(casa=kind)
        for module, (rows, columns) in zip(model.casa, model.config.swin_grids):
            tokens = torch.randn(2, rows * columns, 4)
            assert torch.equal(module(tokens), tokens) == (kind != "paper")
    tokens = torch.randn(2, 6, 4)
    with torch.no_grad():
        for kind in ("fixed", "code"):  # what the code writes is the same numbers in other places
            torch.manual_seed(0)
            module = ChannelAttention(6, kind, 0.0)
            added = module(tokens) - tokens
            if kind == "fixed":
                expected = added
            else:
                torch.testing.assert_close(added.flatten(1).sort().values, expected.flatten(1).sort().values)
                assert not torch.allclose(added, expected)


def test_attention_between_the_branches():
    model, inputs = build(), tiny_inputs("clear", 2)
    with torch.no_grad():
        output = model(**inputs, output_attentions=True)
    svcf, vscf = output.attentions
    assert svcf.shape == (2, 4, 1 + 32) and vscf.shape == (2, 4, 1 + 8)
    for one in (svcf, vscf):
        torch.testing.assert_close(one.sum(-1), torch.ones(2, 4))
    assert output.image_embeds.shape == (2, 24 + 32)
    with pytest.raises(ValueError, match="fusion='concat' there is no attention"):
        build(fusion="concat")(**inputs, output_attentions=True)


def test_branches_of_one_width_are_not_aligned():
    assert isinstance(CrossFusion(8, 8, 2, "after").align, nn.Identity)
    assert isinstance(CrossFusion(8, 8, 2, "before").align, nn.Linear)
    assert isinstance(CrossFusion(8, 4, 2, "after").align, nn.Linear)


@pytest.mark.parametrize(
    ("choose", "sizes"),
    [
        # Channel-aware attention: q, k and v of 2048, 512, 128 and 32 positions; as printed there is no v.
        (ClearParConfig.released, {"casa": 13_429_728, "svcf": 4_195_328, "classifier": 26 * 2049}),
        (ClearParConfig.paper, {"casa": 13_429_728 * 2 // 3, "svcf": 5 * 1024**2, "swin_pool": 33_555_456}),
    ],
)
def test_the_sizes_of_the_paper(choose, sizes):
    with torch.device("meta"):
        model = ClearParModel(choose(attributes=get_schema("pa100k")))
        output = model(torch.empty(2, 3, 256, 128), output_attentions=True)
    assert output.image_embeds.shape == (2, 2048) and output.logits.shape == (2, 26, 2)
    assert [one.shape[-1] for one in output.attentions] == [163, 33]
    assert model.config.swin_grids == [(64, 32), (32, 16), (16, 8), (8, 4)]
    for name, size in sizes.items():
        assert sum(one.numel() for one in getattr(model, name).parameters()) == size, name


# Built over pretrained branches


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of a ViT and a Swin with heads of another task over square pictures, of a DINOv2, and their models."""
    base = tmp_path_factory.mktemp("branches")
    config = tiny_clear_config()
    torch.manual_seed(3)
    vit_config, swin_config = copy.deepcopy(config.vit_config), copy.deepcopy(config.swin_config)
    vit_config.image_size = swin_config.image_size = 32
    sources = {
        "vit": ViTForImageClassification(vit_config),
        "swin": SwinForImageClassification(swin_config),
        "dinov2": Dinov2Model(
            Dinov2Config(
                hidden_size=32, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=32, patch_size=4
            )
        ),
    }
    for name, model in sources.items():
        model.save_pretrained(base / name)
    return base, sources


SMALL = {"attributes": tiny_schema(), "image_size": [32, 16], "num_fusion_heads": 4}


def test_pretrained_branches_are_loaded_without_their_heads(folders, tmp_path):
    base, sources = folders
    model = ClearParModel.from_backbone(f"{base / 'vit'}+{base / 'swin'}", **SMALL)
    assert not model.training
    for name in ("vit", "swin"):
        own, loaded = getattr(sources[name], name).state_dict(), getattr(model, name).state_dict()
        for key, tensor in loaded.items():
            assert torch.equal(tensor, own[key]), key
    assert model.config.backbone_name == f"{base / 'vit'}+{base / 'swin'}"
    inputs = tiny_inputs("clear")
    with torch.no_grad():  # the channel-aware attention starts as nothing, so the Swin answers as it did alone
        alone = sources["swin"].swin.eval()(**inputs, always_partition=True).last_hidden_state.mean(1)
        model.config.fusion = "concat"
        plain = ClearParModel(model.config).eval()
        plain.load_state_dict(model.state_dict(), strict=False)
        expected = model.swin_norm(alone)
        torch.testing.assert_close(plain(**inputs).image_embeds[:, :24], expected, rtol=1e-5, atol=1e-5)
    model.save_pretrained(tmp_path)
    assert str(base) not in json.dumps(json.loads((tmp_path / "config.json").read_text())["vit_config"])


def test_dinov2_and_single_branches(folders, tmp_path):
    base, _ = folders
    inputs = tiny_inputs("clear")
    model = ClearParModel.from_backbone(base / "dinov2", branches="vit", **SMALL)
    assert not hasattr(model, "swin") and not model.vit.embeddings.mask_token.requires_grad
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(AutoModel.from_pretrained(tmp_path)(**inputs).logits, model(**inputs).logits)
    alone = ClearParModel.from_backbone(base / "swin", branches="swin", **SMALL)
    both = ClearParModel.from_backbone(f"{base / 'dinov2'}+{base / 'swin'}", **SMALL)
    assert alone(**inputs).image_embeds.shape == (3, 24) and both(**inputs).image_embeds.shape == (3, 56)
    model.train()(**inputs, labels=torch.zeros(3, 3, dtype=torch.int64)).loss.backward()
    assert all(one.grad is not None for one in model.parameters() if one.requires_grad)


def test_names_of_branches_that_cannot_be_used(folders, tmp_path):
    base, _ = folders
    vit, swin = base / "vit", base / "swin"
    for name, match in {
        str(vit): "expected a ViT or DINOv2 and a Swin with a plus between them",
        f"{vit}+{swin}+{swin}": "with a plus between them",
        f"{swin}+{vit}": "vit_config must be the configuration of a vit or dinov2 checkpoint.*got model_type 'swin'",
    }.items():
        with pytest.raises(ValueError, match=match):
            ClearParModel.from_backbone(name, **SMALL)
    with pytest.raises(FileNotFoundError, match="the vit branch: there is no folder"):
        ClearParModel.from_backbone(f"{tmp_path / 'missing'}+{swin}", **SMALL)
    with pytest.raises(ValueError, match="revision 'one': expected one for each branch"):
        ClearParModel.from_backbone(f"{vit}+{swin}", revision="one", **SMALL)
    model = SwinModel(tiny_clear_config().swin_config)
    state = {key: tensor for key, tensor in model.state_dict().items() if key != "layernorm.weight"}
    model.save_pretrained(tmp_path / "part", state_dict=state)
    with pytest.raises(ValueError, match=r"part lacks 1 tensors of the branch, the first is 'layernorm.weight'"):
        ClearParModel.from_backbone(tmp_path / "part", branches="swin", **SMALL)
    tiny_model("fixed").save_pretrained(tmp_path / "other")
    with pytest.raises(ValueError, match="holds a 'vlm_par' model, expected 'clear_par'; to start from branches"):
        ClearParModel.from_pretrained(tmp_path / "other")


def test_fresh_branches_by_name():
    model = ClearParModel.from_backbone("fresh-tiny", attributes=tiny_schema())
    assert model.config.backbone_name == "fresh-tiny" and not model.training
    assert model(torch.zeros(1, 3, 256, 128)).image_embeds.shape == (1, 256)
    with pytest.raises(ValueError, match="freeze='both', but the branches of 'fresh-tiny' have random weights"):
        ClearParModel.from_backbone("fresh-tiny", attributes=tiny_schema(), freeze="both")


# What trains


def test_what_is_frozen():
    def trains(model):
        return {name for name, one in model.named_parameters() if one.requires_grad}

    everything = {name for name, _ in tiny_clear_model().named_parameters()}
    assert trains(tiny_clear_model(freeze="none")) == everything
    own = {name for name in everything if not name.startswith(("vit.", "swin."))}
    both, last = tiny_clear_model(freeze="both"), tiny_clear_model(freeze="last_stages")
    assert trains(both) == own and any(name.startswith("casa.") for name in own)
    ends = ("vit.layers.1.", "vit.layernorm.", "swin.encoder.layers.1.", "swin.layernorm.")
    assert trains(last) == own | {name for name in everything if name.startswith(ends)}
    both.train(), last.train()
    assert both.training and both.casa.training and not both.vit.training and not both.swin.training
    assert last.vit.training and last.swin.training
    assert not both.trains_vision_tower and last.trains_vision_tower


def test_parameter_groups_hold_every_trainable_parameter_once():
    for name, branch_rate in ((None, 0.128 / 32), ("owner/vit+owner/swin", 1e-5)):
        model = tiny_clear_model(backbone_name=name)
        groups = model.parameter_groups(1e-3)
        found = [parameter for group in groups for parameter in group["params"]]
        assert len(found) == len(set(found)) == len(list(model.parameters()))
        rates = {group["name"]: group["lr"] for group in groups}
        assert rates == {"classifier": 1e-3, "fusion": 0.128 / 32, "branches": branch_rate}
        for group in groups:
            assert all((one.ndim >= 2) == (group["weight_decay"] > 0) for one in group["params"])


def test_the_bias_starts_at_the_shares_of_the_labels():
    model = tiny_clear_model()
    with torch.no_grad():
        model.classifier.weight.zero_()
    priors = [[0.9, 0.1], [0.5, 0.5], [0.2, 0.8], [0.1, 0.2, 0.3, 0.4], [0.2, 0.3, 0.5]]
    model.init_bias_from_priors(priors)
    probabilities = model(**tiny_inputs("clear", 1)).logits.softmax(-1)[0]
    for row, prior in zip(probabilities, priors):
        assert row[: len(prior)].tolist() == pytest.approx(prior, abs=1e-6)
    for wrong, match in (
        (priors[:2], "one entry per attribute"),
        ([[0.1, 2.0], *priors[1:]], "'Hat' must be 2 shares"),
    ):
        with pytest.raises(ValueError, match=match):
            model.init_bias_from_priors(wrong)


# Files


def test_tensors_of_a_file_load_under_both_names(tmp_path):
    """transformers saves ViT and Swin under older names, which `Trainer` gives to `load_state_dict` as they are."""
    model = build()
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert saved.keys() != model.state_dict().keys()
    for state in (saved, model.state_dict()):
        other = tiny_clear_model(seed=1)
        result = other.load_state_dict(state, strict=False)
        assert not result.missing_keys and not result.unexpected_keys
        for name, tensor in model.state_dict().items():
            assert torch.equal(other.state_dict()[name], tensor), name


def test_the_resolution_belongs_to_the_weights(tmp_path):
    model = build()
    with pytest.raises(ValueError, match=r"expected \(B, 3, 32, 16\).*image_processor.size.*casa='fixed'"):
        model(torch.zeros(1, 3, 16, 16))
    with pytest.raises(ValueError, match="pixel_values is None"):
        model()
    with pytest.raises(ValueError, match="patch_embeds: expected pixel_values"):
        model(patch_embeds=torch.zeros(1))
    with pytest.raises(ValueError, match="output_hidden_states is True: this model has two branches"):
        model(**tiny_inputs("clear"), output_hidden_states=True)
    # A square table of positions of the ViT can be resized; weights over positions cannot.
    vit = {**tiny_clear_config().vit_config.to_dict(), "image_size": 32}
    build(vit_config=vit).save_pretrained(tmp_path / "locked")
    with pytest.raises(ValueError, match="image_size=.*cannot be changed when they are loaded"):
        AutoModel.from_pretrained(tmp_path / "locked", image_size=[16, 16])
    free = build(casa="none", vit_config=vit)
    assert not free.config.locks_resolution
    free.save_pretrained(tmp_path / "free")
    loaded = AutoModel.from_pretrained(tmp_path / "free", image_size=[48, 24])
    assert loaded(torch.zeros(1, 3, 48, 24)).logits.shape == (1, 5, 4)
    with pytest.raises(ValueError, match=r"expected \(B, 3, 48, 24\).*load it with image_size"):
        loaded(torch.zeros(1, 3, 32, 16))


def test_the_processor_reads_no_texts(tmp_path):
    processor = tiny_clear_processor()
    with pytest.raises(ValueError, match="text was given, but ClearParProcessor has no tokenizer"):
        processor(text=["a hat"])
    with pytest.raises(ValueError, match="ClearParProcessor has no tokenizer"):
        processor.encode_texts(["a hat"])
    with pytest.raises(ValueError, match="max_num_patches is 64, but pictures have a fixed size"):
        ClearParProcessor.from_backbone("fresh-tiny", max_num_patches=64)


def test_the_processor_takes_the_normalisation_of_the_branches(folders, tmp_path, caplog):
    base, _ = folders
    name = f"{base / 'vit'}+{base / 'swin'}"
    imagenet = [0.485, 0.456, 0.406]
    assert list(ClearParProcessor.from_backbone(name).image_processor.image_mean) == imagenet  # none is saved there
    half = tiny_processor("fixed").image_processor
    for one in ("vit", "swin"):
        (tmp_path / one).mkdir()
        half.save_pretrained(tmp_path / one)
    pair = f"{tmp_path / 'vit'}+{tmp_path / 'swin'}"
    assert list(ClearParProcessor.from_backbone(pair).image_processor.image_mean) == [0.5] * 3
    tiny_clear_processor().image_processor.save_pretrained(tmp_path / "swin")
    mixed = ClearParProcessor.from_backbone(pair, image_size=(64, 32)).image_processor
    assert list(mixed.image_mean) == imagenet and dict(mixed.size) == {"height": 64, "width": 32}
    assert "those of ImageNet are taken" in caplog.text


def test_it_is_an_ordinary_model():
    assert issubclass(ClearParModel, ParPreTrainedModel) and not ClearParModel.supports_features
    model = tiny_clear_model()
    embeddings = model.get_input_embeddings()
    assert embeddings is model.vit.get_input_embeddings()
