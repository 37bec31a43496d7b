import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from transformers import AutoProcessor, AutoTokenizer, GemmaTokenizer
from transformers.image_utils import ChannelDimension

from modeling_tests.tiny import randomize, tiny_model, tiny_processor, tiny_schema, tiny_tokenizer
from vlm_par_hf.base.outputs import ParOutput
from vlm_par_hf.models.vlm_par import VlmParProcessor


def picture(size=(40, 90), seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8))


KINDS = ("naflex", "fixed")
SHAPES = {"naflex": (12, 48), "fixed": (3, 16, 16)}


@pytest.mark.parametrize("kind", KINDS)
def test_batched_equals_single(kind):
    processor = tiny_processor(kind)
    pictures = [picture((40, 90)), picture((90, 40), 1), picture((16, 16), 2), picture((3, 200), 3)]
    batch = processor(images=pictures, return_tensors="pt")
    assert batch["pixel_values"].shape == (4, *SHAPES[kind]) and batch["pixel_values"].dtype == torch.float32
    for row, one in enumerate(pictures):
        single = processor(images=one)
        for name, value in batch.items():
            assert torch.equal(single[name][0], value[row]), name
    if kind == "naflex":
        assert batch["spatial_shapes"].dtype == torch.int64
        assert batch["pixel_attention_mask"].sum(1).tolist() == batch["spatial_shapes"].prod(1).tolist()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", ["L", "RGBA", "CMYK", "P", "I;16", "1", "LA"])
def test_every_mode_gives_numbers(kind, mode):
    image = picture().convert("L").convert("I;16") if mode == "I;16" else picture().convert(mode)
    values = tiny_processor(kind)(images=[image])["pixel_values"]
    assert values.isfinite().all() and values.abs().max() <= 1.0001


@pytest.mark.parametrize("kind", KINDS)
def test_a_pixel_is_an_image(kind):
    assert tiny_processor(kind)(images=[Image.new("RGB", (1, 1))])["pixel_values"].isfinite().all()


def test_a_pedestrian_crop_is_pixel_exact(tmp_path):
    from transformers.models.siglip2.image_processing_pil_siglip2 import Siglip2ImageProcessorPil

    Siglip2ImageProcessorPil().save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    processor = VlmParProcessor.from_backbone(tmp_path)
    image = picture((128, 256))
    batch = processor(images=image)
    assert batch["spatial_shapes"].tolist() == [[16, 8]] and batch["pixel_attention_mask"].all()
    pixels = torch.from_numpy(np.array(image)).reshape(16, 16, 8, 16, 3).permute(0, 2, 1, 3, 4).reshape(1, 128, 768)
    torch.testing.assert_close(batch["pixel_values"], pixels / 127.5 - 1)
    assert VlmParProcessor.from_backbone(tmp_path, max_num_patches=64)(images=image)["pixel_values"].shape[1] == 64
    assert processor(images=image, max_num_patches=32)["pixel_values"].shape == (1, 32, 768)


def test_wrong_inputs_are_named():
    processor = tiny_processor()
    with pytest.raises(ValueError, match="images is empty"):
        processor(images=[])
    with pytest.raises(ValueError, match="text is empty"):
        processor(text=[])
    with pytest.raises(ValueError, match="both None"):
        processor()
    with pytest.raises(TypeError, match="text must be text"):
        processor(text=["a", 3])
    with pytest.raises(ValueError, match=r"(?i)nan|finite"):
        processor(images=[np.full((20, 10, 3), np.nan)])


def test_text_is_lowered_padded_right_and_has_no_mask():
    processor = tiny_processor()
    batch = processor(text=["Is there a HAT?", "is there a hat?"], images=picture())
    assert batch["input_ids"].shape == (2, 64) and "attention_mask" not in batch
    assert torch.equal(batch["input_ids"][0], batch["input_ids"][1])
    ids = processor.encode_texts(["Is there a HAT?"])[0]
    assert batch["input_ids"][0].tolist() == ids + [0] * (64 - len(ids)) and ids[-1] == 1


@pytest.mark.parametrize("kind", KINDS)
def test_save_and_load(kind, tmp_path):
    processor = tiny_processor(kind)
    if kind == "naflex":
        processor.image_processor.max_num_patches = 20
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert type(loaded) is VlmParProcessor
    before, after = (one(images=[picture()], text="A Hat") for one in (processor, loaded))
    assert before.keys() == after.keys()
    for name in before:
        assert torch.equal(before[name], after[name]), name
    loaded.save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "processor_config.json").read_text())
    assert again == json.loads((tmp_path / "processor_config.json").read_text())


def test_text_is_lowered_after_reload_of_a_fixed_resolution_folder(tmp_path):
    """Those repositories name GemmaTokenizer, which never lower-cases, whatever their files say."""
    tiny_model("fixed").vlm.save_pretrained(tmp_path / "backbone")
    processor = tiny_processor("fixed")
    processor.image_processor.save_pretrained(tmp_path / "backbone")
    data = json.loads(tiny_tokenizer().backend_tokenizer.to_str())["model"]
    gemma = GemmaTokenizer(
        vocab=data["vocab"],
        merges=[tuple(pair) for pair in data["merges"]],
        add_bos_token=False,
        add_eos_token=True,
        padding_side="left",
    )
    gemma.save_pretrained(tmp_path / "backbone")
    backbone = VlmParProcessor.from_backbone(tmp_path / "backbone")
    assert type(backbone.tokenizer).__name__.startswith("Gemma")
    backbone.save_pretrained(tmp_path / "saved")
    expected = processor.encode_texts(["is there a hat?"])
    for one in (backbone, AutoProcessor.from_pretrained(tmp_path / "saved")):
        assert one.encode_texts(["Is there a HAT?"]) == one.encode_texts(["is there a hat?"]) == expected
        ids = one(text="Is there a HAT?")["input_ids"][0].tolist()
        assert ids[: len(expected[0])] == expected[0] and len(ids) == 64 and set(ids[len(expected[0]) :]) == {0}


@pytest.mark.parametrize("name", ["tokenizer.json", "processor_config.json"])
def test_a_missing_file_is_named(name, tmp_path):
    tiny_model().save_pretrained(tmp_path)
    tiny_processor().save_pretrained(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=name):
        VlmParProcessor.from_pretrained(tmp_path)
    with pytest.raises(OSError, match=name):
        AutoProcessor.from_pretrained(tmp_path)


# Outputs


def test_post_process_attributes():
    schema = tiny_schema(kway=True)
    logits = torch.full((2, 5, 4), -1e4)
    logits[:, :3, :2] = torch.tensor([[0.0, 2.0], [0.0, -0.3], [1.0, 0.0]])
    logits[:, 3] = torch.tensor([0.0, 3.0, 1.0, -1.0])
    logits[:, 4, :3] = torch.tensor([0.0, 0.0, 5.0])
    logits[1, 0, :2] = torch.tensor([0.0, 0.0])
    processor = tiny_processor()
    people = processor.post_process_attributes(ParOutput(logits=logits), schema=schema)
    assert [list(person) for person in people] == [list(schema.names)] * 2
    first = people[0]
    assert {name: found["label"] for name, found in first.items()} == {
        "Hat": "yes",
        "Backpack": "yes",  # p = 0.43, its threshold is 0.4
        "Female": "no",
        "UpperColor": "white",
        "BagSide": "none",
    }
    assert first["Hat"]["score"] == pytest.approx(torch.tensor(2.0).sigmoid().item())
    assert first["Backpack"]["score"] == first["Backpack"]["probabilities"]["yes"] < 0.5
    assert first["Female"]["score"] == first["Female"]["probabilities"]["no"]
    assert sum(first["BagSide"]["probabilities"].values()) == pytest.approx(1)
    assert list(first["BagSide"]["probabilities"]) == ["left", "right", "none"]
    assert people[1]["Hat"]["label"] == "no"  # 0.5 is not above the threshold
    json.dumps(people)
    assert processor.post_process_attributes(logits, schema) == people
    assert processor.post_process_attributes(logits.bfloat16(), schema)[0]["UpperColor"]["label"] == "white"
    assert "Female" not in processor.post_process_attributes(logits, schema, sensitive=False)[0]


def test_post_process_thresholds():
    schema, processor = tiny_schema(), tiny_processor()
    logits = torch.tensor([[[0.0, 1.0], [0.0, 1.0], [0.0, 1.0]]])  # p = 0.73

    def labels(threshold):
        found = processor.post_process_attributes(logits, schema, threshold=threshold)[0]
        return [found[name]["label"] for name in schema.names]

    assert labels(None) == labels(0.7) == ["yes"] * 3
    assert labels(0.8) == ["no"] * 3
    assert labels({"Backpack": 0.9}) == ["yes", "no", "yes"]
    with pytest.raises(ValueError, match="threshold of attribute 'Hat' must lie between 0 and 1, got 2"):
        labels({"Hat": 2})
    with pytest.raises(KeyError, match="Hatt"):
        labels({"Hatt": 0.5})


def test_post_process_names_a_foreign_schema():
    with pytest.raises(ValueError, match=r"logits must have shape \(people, 5, 4\).*got \(2, 3, 2\)"):
        tiny_processor().post_process_attributes(torch.zeros(2, 3, 2), tiny_schema(kway=True))


def test_real_images_batched_equal_single():
    if not os.environ.get("PAR_DATA"):
        pytest.skip("PAR_DATA is not set: needs the folder with real PA-100K images")
    paths = sorted((Path(os.environ["PAR_DATA"]) / "pa100k_mini" / "data").glob("*.jpg"))[:12]
    model, processor = randomize(tiny_model()), tiny_processor()
    with torch.no_grad():
        logits = model(**processor(images=[str(path) for path in paths])).logits
        for row, path in enumerate(paths):
            single = model(**processor(images=path)).logits[0]
            torch.testing.assert_close(single, logits[row], rtol=1e-5, atol=1e-5)
    assert logits.std(0)[:, 1].min() > 0


def test_the_tiny_tokenizer_is_a_real_one(tmp_path):
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    assert isinstance(Tokenizer.from_file(str(tmp_path / "tokenizer.json")), Tokenizer)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded("A zebra ☃!")["input_ids"] == tokenizer("A zebra ☃!")["input_ids"]
    assert loaded.decode(loaded("is there a hat?")["input_ids"], skip_special_tokens=True) == "is there a hat?"


def test_a_patch_grid_squashes_every_image_to_it(tmp_path):
    image_processor = tiny_processor().image_processor
    rng = np.random.default_rng(0)
    images = [
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in ((64, 32), (10, 90), (7, 7))
    ]
    for grid in [(rows, columns) for rows in range(1, 18) for columns in range(1, 18, 3)]:
        processor = VlmParProcessor(image_processor, tiny_tokenizer(), patch_grid=grid)
        inputs = processor(images=images)
        assert inputs["spatial_shapes"].tolist() == [list(grid)] * 3
        assert inputs["pixel_values"].shape[1] == grid[0] * grid[1] and bool(inputs["pixel_attention_mask"].all())
    processor.save_pretrained(tmp_path)
    loaded = AutoProcessor.from_pretrained(tmp_path)
    assert loaded.patch_grid == list(grid)
    assert torch.equal(loaded(images=images)["pixel_values"], inputs["pixel_values"])
    squashed = [image.resize((4 * grid[1], 4 * grid[0]), Image.Resampling.BILINEAR) for image in images]
    assert torch.equal(processor(images=squashed)["pixel_values"], inputs["pixel_values"])


def test_a_wrong_patch_grid_is_refused():
    with pytest.raises(
        ValueError, match=r"patch_grid must be a number of rows and of columns of patches, got \(16, 0\)"
    ):
        tiny_processor().fix_patch_grid((16, 0))
    with pytest.raises(ValueError, match=r"patch_grid=\(4, 4\), but SiglipImageProcessorPil makes images of a fixed"):
        tiny_processor("fixed").fix_patch_grid((4, 4))


@pytest.mark.parametrize("kind", KINDS)
def test_the_calls_of_the_documentation_of_siglip2(kind):
    """Texts with padding and max_length beside images, and a patch budget beside texts."""
    processor, texts = tiny_processor(kind), ["a photo of 2 cats", "a photo of 2 dogs"]
    more = {"max_num_patches": 9} if kind == "naflex" else {}
    found = processor(text=texts, images=picture(), padding="max_length", max_length=32, return_tensors="pt", **more)
    assert found["input_ids"].shape == (2, 32)
    expected = processor(images=[picture()], **more)
    assert torch.equal(found["pixel_values"], expected["pixel_values"])
    text_alone = processor(text=texts, padding="max_length", truncation=True, return_tensors="pt")
    assert text_alone["input_ids"].shape == (2, 64) and "pixel_values" not in text_alone
    for padding in (True, False, "longest", "do_not_pad"):
        with pytest.raises(ValueError, match='padding is .*expected "max_length"'):
            processor(text=texts, padding=padding)
    with pytest.raises(ValueError, match="has .* tokens, more than max_length=4"):
        processor(text=texts, truncation=False, max_length=4)
    assert torch.equal(processor(text=texts, truncation=False)["input_ids"], text_alone["input_ids"])


@pytest.mark.parametrize("kind", KINDS)
def test_what_a_caller_says_of_range_and_layout_is_true_or_refused(kind):
    """These were applied to pictures that had been brought to uint8 and channels last already."""
    processor, image = tiny_processor(kind), picture()
    expected = processor(images=image)["pixel_values"]
    whole = np.asarray(image)
    share = (whole / 255).astype(np.float32)
    for array in (whole, share, torch.from_numpy(whole.copy()), torch.from_numpy(share)):
        first = array.permute(2, 0, 1) if isinstance(array, torch.Tensor) else array.transpose(2, 0, 1)
        for given, layout in ((array, "channels_last"), (first, "channels_first"), (first, ChannelDimension.FIRST)):
            found = processor(images=[given], input_data_format=layout)["pixel_values"]
            torch.testing.assert_close(found, expected)
    for array in (share, torch.from_numpy(share)):
        torch.testing.assert_close(processor(images=[array], do_rescale=False)["pixel_values"], expected)
    torch.testing.assert_close(
        processor(images=image, do_rescale=True, rescale_factor=1 / 255)["pixel_values"], expected
    )
    for given in (image, whole, torch.from_numpy(whole.copy())):
        with pytest.raises(ValueError, match=r"do_rescale is False.*image 0.*floating-point"):
            processor(images=[given], do_rescale=False)
    with pytest.raises(ValueError, match=r"rescale_factor is 1, expected 0\.0039"):
        processor(images=image, rescale_factor=1)
    with pytest.raises(ValueError, match="channels_first.*PIL image"):
        processor(images=image, input_data_format="channels_first")
    with pytest.raises(ValueError, match="input_data_format is 'sideways'"):
        processor(images=whole, input_data_format="sideways")
    with pytest.raises(TypeError, match="does not know one of the arguments colour"):
        processor(images=image, colour="red")


@pytest.mark.parametrize(
    "question",
    [
        "la persona indossa un cappello?",
        "trägt die person einen hut?",
        "这个人戴帽子吗？",
        "هل يرتدي الشخص قبعة؟",
        "на человеке шляпа?",
    ],
)
def test_questions_in_another_language_reach_the_model_whole(question):
    """A tokenizer of SigLIP 2 falls back to bytes, so no character becomes unknown."""
    processor = tiny_processor()
    ids = processor.encode_texts([question])[0]
    assert processor.tokenizer.unk_token_id not in ids
    assert processor.tokenizer.decode(ids, skip_special_tokens=True) == question
    model = tiny_model()
    english = tiny_schema()
    asked = english.with_questions({"Hat": question})
    encoded = []
    for schema in (english, asked):
        model.exchange_attributes(schema, processor)
        encoded.append(model.config.question_input_ids)
    assert model.config.schema["Hat"].question == question
    assert encoded[0][0] != encoded[1][0] and encoded[0][1:] == encoded[1][1:]
