"""Find people by an attribute that the model was never trained on.

    python examples/focus_open_attributes.py                                   # drawings, the embedded backbone
    python examples/focus_open_attributes.py --ask "wearing a skirt" "in white lower clothing"
    python examples/focus_open_attributes.py --model folder --images crops/*.jpg --ask "wearing a red scarf"

Without `--model` it first trains FOCUS on drawn pedestrians, without the attributes of `HELD_OUT`, in some minutes on
two CPU cores. Then the pipeline is asked for attributes by their text alone. The result is a picture of the people
with the highest probability, and of where the model looked. The embedded backbone was trained on captions of all
attributes of the drawings: the held-out ones are new to FOCUS, not to its backbone. With `--model` nothing is trained.
"""

import argparse
import logging
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps
from transformers import pipeline

from vlm_par_hf import dataset_schema, get_schema, load_par_dataset
from vlm_par_hf.images import open_image
from vlm_par_hf.training import TrainSettings, train


# What to ask for, with the attribute and label of the drawings that tell whether it is right. These attributes are
# held out of training.
HELD_OUT = {
    "wearing a long coat": ("LongCoat", "yes"),
    "with short sleeves": ("ShortSleeve", "yes"),
    "in blue lower clothing": ("LowerColor", "blue"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ask", nargs="+", metavar="TEXT", help="what to look for; default: what was held out")
    parser.add_argument("--model", help="a FOCUS checkpoint; none: one is trained on drawings")
    parser.add_argument("--images", nargs="+", metavar="FILE", help="pictures of one person each; none: drawings")
    parser.add_argument("--num-train", type=int, default=2000, help="drawings to train on")
    parser.add_argument("--epochs", type=float, default=6)
    parser.add_argument("--backbone", default="embedded")
    parser.add_argument("--people", type=int, default=200, help="drawings to search")
    parser.add_argument("--show", type=int, default=5, help="people to show per text")
    parser.add_argument("--out", type=Path, default=Path("outputs/focus"))
    options = parser.parse_args()
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("vlm_par_hf").setLevel(logging.INFO)

    asked = options.ask or list(HELD_OUT)
    model = options.model or train_without(options)
    pipe = pipeline("pedestrian-attributes", model=str(model), attributes=asked, batch_size=32)

    people = None
    if options.images:
        images = [open_image(path) for path in options.images]
    else:
        drawn = load_par_dataset("synthetic", seed=1, num_train=1, num_validation=1, num_test=options.people)
        people, images = drawn["test"], list(drawn["test"]["image"])
    answers = [result["attributes"] for result in pipe(images)]
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for text in asked:
        chances = np.array([answer[text]["probabilities"]["yes"] for answer in answers])
        order = np.argsort(-chances)[: options.show]
        note = f"the {len(order)} most probable of {len(images)} pictures"
        if people is not None and text in HELD_OUT:
            note += "; " + how_right(people, text, order)
        print(f"{text}: {note}")
        shown = [images[index] for index in order]
        overlays = [result["overlays"][text] for result in pipe(shown, explain=[text])]
        rows.append((text, note, list(zip(shown, overlays, chances[order]))))
    sheet(rows).save(options.out / "found.png")
    print(f"wrote {options.out / 'found.png'}")


def sheet(rows: list, height: int = 200, gap: int = 14) -> Image.Image:
    """A row per text: the people found, and to the right of each where the model looked."""
    width = max(round(height * image.width / image.height) for _, _, found in rows for image, _, _ in found)
    columns = max(len(found) for _, _, found in rows)
    title, small = ImageFont.load_default(20), ImageFont.load_default(14)
    lines = [f"{note}; beside each picture, where it looked" for _, note, _ in rows]
    size = max(columns * (2 * width + 2 * gap), *(round(small.getlength(line)) for line in lines)) + 2 * gap
    paper = Image.new("RGB", (size, len(rows) * (height + 100) + gap), "white")
    draw = ImageDraw.Draw(paper)
    for row, ((text, _, found), line) in enumerate(zip(rows, lines)):
        top = row * (height + 100) + gap
        draw.text((gap, top), f"asked for: {text}", font=title, fill="black")
        draw.text((gap, top + 26), line, font=small, fill="dimgray")
        for column, (image, overlay, chance) in enumerate(found):
            left = gap + column * (2 * width + 2 * gap)
            for offset, picture in ((0, image), (width + 2, overlay)):
                paper.paste(ImageOps.contain(picture.convert("RGB"), (width, height)), (left + offset, top + 50))
            draw.text((left, top + 54 + height), f"{100 * chance:.0f} %", font=small, fill="black")
    return paper


def train_without(options) -> Path:
    """Train on all attributes of the drawings except those of `HELD_OUT`."""
    unseen = {attribute for attribute, _ in HELD_OUT.values()}
    schema = get_schema("synthetic")
    seen = schema.subset(name for name in schema.names if name not in unseen)
    result = train(
        "synthetic",
        options.out / "model",
        family="focus_par",
        backbone=options.backbone,
        schema=seen,
        dataset_options={
            "num_train": options.num_train,
            "num_validation": max(20, options.num_train // 5),
            "num_test": 1,
        },
        settings=TrainSettings(epochs=options.epochs),
        overwrite=True,
    )
    return result.output_dir


def how_right(people, text: str, order: np.ndarray) -> str:
    """How many of the people found have what was asked for, and how many of all people have it."""
    attribute, label = HELD_OUT[text]
    schema = dataset_schema(people)
    labels = np.asarray(people["labels"])[:, schema.index(attribute)]
    right = labels == schema[attribute].labels.index(label)
    return f"{right[order].sum()} of them right, {100 * right.mean():.0f} % of all people have it; never trained on"


if __name__ == "__main__":
    main()
