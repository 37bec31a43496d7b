import logging
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from modeling_tests.bands import build_data
from modeling_tests.tiny import tiny_focus_model, tiny_model, tiny_processor, tiny_schema
from vlm_par_hf.data import AugmentedDataset, ParAugmentation, ParCollator
from vlm_par_hf.training import FeatureDataset, compute_features, feature_views


@pytest.fixture(scope="module")
def model():
    return tiny_model("naflex")


@pytest.fixture(scope="module")
def processor():
    return tiny_processor("naflex")


@pytest.fixture(scope="module")
def features(model, processor, data):
    return compute_features(
        model, data["train"], processor, batch_size=10, views=feature_views(True, 2), dtype=torch.float32,
        progress=False,
    )  # fmt: skip


def seen(model, processor, row):
    batch = ParCollator(processor)([row])
    with torch.no_grad():
        patches, pooled, _ = model.get_image_features(**{k: v for k, v in batch.items() if k != "labels"})
    return patches[0], pooled[0]


def assert_view(features, view, index, row, model, processor):
    found = features.store.read([index], [view])
    patches, pooled = seen(model, processor, row)
    torch.testing.assert_close(found["patch_embeds"][0], patches, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found["image_embeds"][0], pooled, atol=1e-5, rtol=1e-5)


def test_features_are_what_the_model_computes(model, processor, data, features):
    batch = ParCollator(processor)([data["train"][index] for index in (7, 3)])
    batch.pop("labels")
    with torch.no_grad():
        expected = model(**batch).logits
        found = model(**features.store.read([7, 3])).logits
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_the_flipped_view_is_the_mirrored_image(model, processor, data, features):
    mirrored = AugmentedDataset(data["train"], ParAugmentation(model.config.schema, flip=1.0, pad=0.0))[5]
    assert_view(features, "flip", 5, mirrored, model, processor)


@pytest.mark.parametrize("k", [1, 2])
def test_crop_k_is_what_the_augmentation_shows_in_epoch_k(model, processor, data, features, k):
    assert features.views == ("identity", "flip", "crop1", "crop2-flip")
    cropped = AugmentedDataset(data["train"], ParAugmentation(model.config.schema, flip=float(k == 2), pad=0.05))
    cropped.set_epoch(k)
    moved = 0
    for index in range(6):
        assert_view(features, features.views[1 + k], index, cropped[index], model, processor)
        plain = features.store.read([index], [("identity", "flip")[k - 1]])["patch_embeds"]
        moved += not torch.allclose(features.store.read([index], [features.views[1 + k]])["patch_embeds"], plain)
    assert moved > 3, "the crops are the whole image"


def test_mirrored_views_have_mirrored_labels():
    data = build_data(tiny_schema(kway=True), {"train": 40})["train"]
    model, processor = tiny_model("kway"), tiny_processor("kway")
    features = compute_features(
        model, data, processor, views=feature_views(True, 3), dtype="float32", flip=0.5, progress=False
    )
    plain, side = np.asarray(data["labels"]), model.config.schema.index("BagSide")
    turned = 0
    for index in range(len(features)):
        item = features[index]
        views = {
            view: torch.equal(features.store.read([index], [view])["patch_embeds"][0], item["patch_embeds"])
            for view in features.views
        }
        assert any(views.values())
        flipped = any(same for view, same in views.items() if view.endswith("flip"))
        expected = plain[index].copy()
        if flipped and expected[side] in (0, 1):
            expected[side] = 1 - expected[side]
            turned += 1
        assert item["labels"].tolist() == expected.tolist()
    assert 3 < turned < 30


def test_the_view_depends_on_seed_epoch_and_index_only(features):
    def views(seed, epoch, order, flip=0.5):
        dataset = FeatureDataset(
            features.store, features.labels, schema=tiny_schema(), seed=seed, flip=flip
        )  # fmt: skip
        dataset.set_epoch(epoch)
        assert dataset.epoch == epoch
        items = dataset.__getitems__(order)
        return {index: item["patch_embeds"].sum().item() for index, item in zip(order, items, strict=True)}

    order = list(range(len(features)))
    first = views(0, 0, order)
    assert views(0, 0, order[::-1]) == first
    assert views(0, 1, order) != first
    assert views(1, 0, order) != first
    for index in order:
        assert features[index]["patch_embeds"].sum().item() == first[index]
    kinds = {
        view: features.store.read(order, [view] * len(order))["patch_embeds"].sum((1, 2)) for view in features.views
    }
    shown = [
        next(view for view, sums in kinds.items() if sums[index].item() == first[index]) for index in order
    ]  # fmt: skip
    assert set(shown) == set(features.views)
    assert 0.25 < np.mean([view.endswith("flip") for view in shown]) < 0.75
    straight = views(0, 0, order, flip=0.0)
    assert all(straight[i] in (kinds["identity"][i].item(), kinds["crop1"][i].item()) for i in order)


def test_two_views_are_drawn_as_ever(model, processor, data):
    """A recorded run must be repeatable: the draw between image and mirror image is one coin per item."""
    found = compute_features(model, data["train"], processor, views=("identity", "flip"), seed=3, progress=False)
    found.set_epoch(2)
    coins = [np.random.default_rng((3, 2, index)).random() < 0.5 for index in range(len(found))]
    expected = found.store.read(range(len(found)), [("identity", "flip")[coin] for coin in coins])
    items = found.__getitems__(range(len(found)))
    assert torch.equal(ParCollator()(items)["patch_embeds"], expected["patch_embeds"])


def test_items_batches_and_size(features, model):
    item = features[0]
    assert item["patch_embeds"].dtype == torch.float32 and item["patch_mask"].dtype == torch.bool
    assert item["labels"].dtype == torch.int64 and item["labels"].shape == (len(model.config.schema),)
    batches = list(features.batches(7))
    assert [len(batch["labels"]) for batch in batches] == [7] * 6 + [6]
    assert torch.equal(torch.cat([batch["labels"] for batch in batches]), torch.from_numpy(features.labels))
    some = next(features.batches(7, rows=[4, 40]))
    assert torch.equal(some["patch_embeds"][1], features.store.read([40])["patch_embeds"][0])
    assert torch.equal(some["labels"], torch.from_numpy(features.labels[[4, 40]]))
    assert features.nbytes == 4 * 48 * (12 * 32 * 4 + 32 * 4 + 12)
    assert torch.equal(features[-1]["image_embeds"], features[len(features) - 1]["image_embeds"])
    with pytest.raises(IndexError, match="index 48 is outside of 48 samples"):
        features[len(features)]


def test_a_batch_is_not_copied_again_by_the_collator(features):
    rows = features.__getitems__([3, 1, 2])
    batch = ParCollator(schema=tiny_schema())(rows)
    assert batch["patch_embeds"] is rows.tensors["patch_embeds"]
    assert [len(rows), len(list(rows))] == [3, 3]
    by_item = ParCollator()([features[index] for index in (3, 1, 2)])
    for name, value in by_item.items():
        assert torch.equal(batch[name], value), name


def test_data_without_labels_and_data_that_is_a_plain_list(model, processor, data):
    rows = [data["test"][index] for index in range(6)]
    found = compute_features(model, rows, processor, progress=False)
    assert found.labels.tolist() == [row["labels"] for row in rows]
    bare = compute_features(model, [{"image": row["image"]} for row in rows], processor, progress=False)
    assert bare.labels is None and "labels" not in bare[0] and "labels" not in next(bare.batches())
    assert torch.equal(bare[2]["patch_embeds"], found[2]["patch_embeds"])
    with pytest.raises(ValueError, match="labels in 5 of 6 rows: expected all or none"):
        compute_features(model, [*rows[:5], {"image": rows[5]["image"]}], processor, progress=False)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float16", 1e-3), ("bfloat16", 8e-3), ("int8", 8e-3)])
def test_smaller_dtypes_are_close(model, processor, data, features, dtype, tolerance):
    small = compute_features(model, data["train"], processor, dtype=dtype, progress=False)
    found, exact = small.store.read([3, 9]), features.store.read([3, 9])
    assert found["patch_embeds"].dtype == torch.float32
    largest = exact["patch_embeds"].abs().amax(-1, keepdim=True)
    error = (found["patch_embeds"] - exact["patch_embeds"]).abs() / largest
    assert 0 < error.max() < tolerance
    assert small.nbytes < features.nbytes / len(features.views) * (0.6 if dtype != "int8" else 0.4)


def test_the_size_is_said_and_too_much_is_refused_before_it_is_taken(model, processor, data, caplog, monkeypatch):
    with caplog.at_level(logging.INFO, logger="vlm_par_hf"):
        compute_features(model, data["train"], processor, views=("identity", "flip"), progress=False)
    assert "features of 48 images x 2 view(s) x 12 patches x 32 as float16: 0.00 GiB of memory" in caplog.text
    monkeypatch.setattr("vlm_par_hf.features.computing._fill", lambda *args: pytest.fail("it began nevertheless"))
    with pytest.raises(ValueError, match=r"would take .* GiB and memory_gib=1e-06.*precompute_features=False"):
        compute_features(model, data["train"], processor, memory_gib=1e-6, progress=False)


def test_wrong_arguments(model, processor, data):
    def compute(rows=data["train"], model=model, **options):
        return compute_features(model, rows, processor, progress=False, **options)

    with pytest.raises(ValueError, match=r"views=\('flip',\): expected different names, the first one 'identity'"):
        compute(views=("flip",))
    with pytest.raises(ValueError, match="view 'crop0': expected"):
        compute(views=("identity", "crop0"))
    with pytest.raises(ValueError, match="pad=0: random crops"):
        compute(views=("identity", "crop1"), pad=0)
    with pytest.raises(ValueError, match="dtype='float64': expected one of float32, float16, bfloat16, int8"):
        compute(dtype=torch.float64)
    with pytest.raises(ValueError, match="crops=-1: expected 0 or more"):
        feature_views(crops=-1)
    with pytest.raises(ValueError, match="dataset is empty"):
        compute(data["train"].select([]))
    with pytest.raises(ValueError, match="frozen backbone"):
        compute(model=tiny_model("naflex", freeze_backbone=False))
    with pytest.raises(ValueError, match="FocusParModel trains a part of its vision tower.*train from images"):
        compute(model=tiny_focus_model())
    with pytest.raises(ValueError, match="FoldedVlmParModel cannot be trained.*the model that it was made from"):
        compute(model=model.fold())


def test_labels_must_fit(features):
    with pytest.raises(ValueError, match="labels has 47 rows and the features are of 48 images"):
        FeatureDataset(features.store, features.labels[:47], schema=tiny_schema())
    with pytest.raises(ValueError, match=r"schema is None: the labels of the views \['flip', 'crop2-flip'\]"):
        FeatureDataset(features.store, features.labels)


class _Growing:
    """Stands in for a model whose batches are padded to different numbers of patches."""

    training = False
    supports_features = supports_training = True
    trains_vision_tower = False
    device = torch.device("cpu")

    def __init__(self, schema, scale=1.0):
        self.config = SimpleNamespace(schema=schema)
        self.calls = 0
        self.scale = scale

    def eval(self):
        return self

    def train(self, mode=True):
        return self

    def get_image_features(self, pixel_values, **inputs):
        self.calls += 1
        B, N = len(pixel_values), 1 + self.calls
        return torch.full((B, N, 4), self.scale), torch.ones(B, 4), torch.ones(B, N, dtype=torch.bool)


@pytest.mark.parametrize("rows_per_shard", [None, 4, 5])
def test_batches_of_unequal_length_are_padded_under_the_mask(model, processor, data, rows_per_shard):
    found = compute_features(
        _Growing(tiny_schema()), data["train"].select(range(10)), processor, batch_size=4, dtype="int8",
        rows_per_shard=rows_per_shard, progress=False,
    )  # fmt: skip
    whole = found.store.read(range(10))
    # The first call only asks for the shape.
    lengths = {None: [3] * 4 + [4] * 4 + [5] * 2, 4: [3] * 4 + [4] * 4 + [5] * 2, 5: [3] * 4 + [4] + [5] * 4 + [6]}
    assert whole["patch_mask"].sum(-1).tolist() == lengths[rows_per_shard]
    assert torch.equal(whole["patch_embeds"][..., 0] != 0, whole["patch_mask"])


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_features_that_cannot_be_stored_are_refused(model, processor, data, dtype):
    rows = data["train"].select(range(4))
    with pytest.raises(ValueError, match="patch_embeds of image 0 is not finite"):
        compute_features(_Growing(tiny_schema(), float("nan")), rows, processor, dtype=dtype, progress=False)
    with pytest.raises(ValueError, match="reaches 1e.06, beyond the range of dtype='float16'.*'bfloat16'"):
        compute_features(_Growing(tiny_schema(), 1e6), rows, processor, progress=False)
