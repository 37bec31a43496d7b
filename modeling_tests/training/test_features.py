from types import SimpleNamespace

import numpy as np
import pytest
import torch

from modeling_tests.tiny import tiny_model, tiny_processor
from vlm_par_hf.data import AugmentedDataset, ParAugmentation, ParCollator
from vlm_par_hf.training import FeatureDataset, compute_features


@pytest.fixture(scope="module")
def model():
    return tiny_model("naflex")


@pytest.fixture(scope="module")
def processor():
    return tiny_processor("naflex")


@pytest.fixture(scope="module")
def features(model, processor, data):
    return compute_features(
        model, data["train"], processor, batch_size=10, views=("identity", "flip"), dtype=torch.float32, progress=False
    )


def test_features_are_what_the_model_computes(model, processor, data, features):
    batch = ParCollator(processor)([data["train"][index] for index in (7, 3)])
    batch.pop("labels")
    with torch.no_grad():
        expected = model(**batch).logits
    # Which view an item shows is drawn, so the comparison asks for the first view.
    identity = FeatureDataset(
        features.patch_embeds, features.image_embeds, features.patch_mask, features.labels, views=features.views,
        flip=0.0,
    )  # fmt: skip
    rows = ParCollator()([identity[7], identity[3]])
    with torch.no_grad():
        found = model(**{name: rows[name] for name in ("patch_embeds", "image_embeds", "patch_mask")}).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_the_flipped_view_is_the_mirrored_image_with_mirrored_labels(model, processor, data, features):
    mirrored = AugmentedDataset(data["train"], ParAugmentation(model.config.schema, flip=1.0, pad=0.0))[5]
    batch = ParCollator(processor)([mirrored])
    with torch.no_grad():
        patches, pooled, _ = model.get_image_features(**{k: v for k, v in batch.items() if k != "labels"})
    torch.testing.assert_close(features.patch_embeds[1, 5], patches[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(features.image_embeds[1, 5], pooled[0], atol=1e-5, rtol=1e-5)
    assert features.labels[1, 5].tolist() == mirrored["labels"].tolist()


def test_the_view_depends_on_seed_epoch_and_index_only(features):
    def views(seed, epoch, order):
        dataset = FeatureDataset(
            features.patch_embeds, features.image_embeds, features.patch_mask, features.labels, views=features.views,
            seed=seed,
        )  # fmt: skip
        dataset.set_epoch(epoch)
        return {index: torch.equal(dataset[index]["patch_embeds"], features.patch_embeds[1, index]) for index in order}

    order = list(range(len(features)))
    first = views(0, 0, order)
    assert views(0, 0, order[::-1]) == first
    assert views(0, 1, order) != first
    assert views(1, 0, order) != first
    assert 0.25 < np.mean(list(first.values())) < 0.75


def test_items_and_size(features, model):
    item = features[0]
    assert item["patch_embeds"].dtype == torch.float32 and item["patch_mask"].dtype == torch.bool
    assert item["labels"].dtype == torch.int64 and item["labels"].shape == (len(model.config.schema),)
    assert sum(len(batch["labels"]) for batch in features.batches(7)) == len(features)
    assert features.nbytes > features.patch_embeds.numel() * 4
    with pytest.raises(IndexError):
        features[len(features)]


def test_half_precision_is_close(model, processor, data, features):
    half = compute_features(model, data["train"], processor, progress=False)
    assert half.patch_embeds.dtype == torch.float16 and len(half.views) == 1
    torch.testing.assert_close(half[3]["patch_embeds"], features.patch_embeds[0, 3], atol=2e-3, rtol=2e-3)


def test_too_much_memory_is_refused_before_it_is_taken(model, processor, data):
    with pytest.raises(ValueError, match=r"would take .* GiB and memory_gib=1e-06.*precompute_features=False"):
        compute_features(model, data["train"], processor, memory_gib=1e-6, progress=False)


def test_wrong_arguments(model, processor, data):
    with pytest.raises(ValueError, match="views="):
        compute_features(model, data["train"], processor, views=("flip",), progress=False)
    with pytest.raises(ValueError, match="dataset is empty"):
        compute_features(model, data["train"].select([]), processor, progress=False)
    thawed = tiny_model("naflex", freeze_backbone=False)
    with pytest.raises(ValueError, match="frozen backbone"):
        compute_features(thawed, data["train"], processor, progress=False)


class _Growing:
    """Stands in for a model whose batches are padded to different numbers of patches."""

    training = False
    device = torch.device("cpu")

    def __init__(self, config, scale=1.0):
        self.config = config
        self.calls = 0
        self.scale = scale

    def eval(self):
        return self

    def train(self, mode=True):
        return self

    def get_image_features(self, pixel_values, **inputs):
        self.calls += 1
        B, N = len(pixel_values), 2 + self.calls
        return torch.full((B, N, 4), self.scale), torch.ones(B, 4), torch.ones(B, N, dtype=torch.bool)


def test_batches_of_unequal_length_are_padded_under_the_mask(model, processor, data):
    config = SimpleNamespace(freeze_backbone=True, schema=model.config.schema)
    found = compute_features(
        _Growing(config), data["train"].select(range(10)), processor, batch_size=4, progress=False
    )
    assert found.patch_mask.sum(-1)[0].tolist() == [3] * 4 + [4] * 4 + [5] * 2
    assert torch.equal(found.patch_embeds[0, :, :, 0] != 0, found.patch_mask[0])


def test_features_beyond_half_precision_are_refused(model, processor, data):
    config = SimpleNamespace(freeze_backbone=True, schema=model.config.schema)
    with pytest.raises(ValueError, match="beyond the range of torch.float16"):
        compute_features(_Growing(config, 1e6), data["train"].select(range(4)), processor, progress=False)
    with pytest.raises(ValueError, match="not finite"):
        compute_features(_Growing(config, float("nan")), data["train"].select(range(4)), processor, progress=False)


def test_shapes_must_agree(features):
    with pytest.raises(ValueError, match="expected .views, samples, patches, width."):
        FeatureDataset(features.patch_embeds[0], features.image_embeds, features.patch_mask, features.labels)
    with pytest.raises(ValueError, match="views and samples differ"):
        FeatureDataset(
            features.patch_embeds, features.image_embeds[:, :3], features.patch_mask, features.labels,
            views=features.views,
        )  # fmt: skip
