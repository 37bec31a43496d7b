"""Predict the attributes of people in pictures with any checkpoint, and draw the result.

    python examples/predict.py                                      # the example crops, by the embedded model
    python examples/predict.py crop1.jpg crop2.jpg --model folder   # your crops (one person each), your checkpoint
    python examples/predict.py street.jpg --boxes "10,20,60,160 80,15,140,170" --model folder
    python examples/predict.py street.jpg --detector facebook/detr-resnet-50 --model folder

It takes seconds on one CPU core. How far the embedded model can be trusted is logged and written into the picture. A
detector is a model on the Hugging Face Hub; it is downloaded on first use.
"""

import argparse
from pathlib import Path

from PIL import Image
from transformers import pipeline

import vlm_par_hf
from vlm_par_hf.images import open_image
from vlm_par_hf.images.example_crops import EXAMPLES
from vlm_par_hf.inference.trust import trust_note
from vlm_par_hf.visualization import draw_boxes, explanation_grid, is_positive_answer, people_grid


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="*", help="pictures; none: the example crops, which are photographs")
    parser.add_argument("--model", help="a checkpoint folder or repository; by default the embedded model")
    parser.add_argument("--boxes", help='people in a single picture: "x0,y0,x1,y1 x0,y0,x1,y1 ..."')
    parser.add_argument("--detector", help="an object-detection model that finds the people")
    parser.add_argument("--explain", nargs="*", metavar="NAME", help="show which patches these answers rest on")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--output", type=Path, default=Path("outputs/predict.png"))
    options = parser.parse_args()
    if options.boxes and len(options.images) != 1:
        parser.error("--boxes needs exactly one picture")

    # Without model= the pipeline uses the embedded model and logs a warning.
    pipe = pipeline("pedestrian-attributes", model=options.model, batch_size=options.batch_size)
    schema = pipe.model.config.schema
    options.output.parent.mkdir(parents=True, exist_ok=True)

    if options.boxes or options.detector:
        sheet = people_in_scenes(pipe, schema, options)
    else:
        sheet = one_person_per_picture(pipe, schema, options)
    sheet.save(options.output)
    print(f"wrote {options.output}")


def one_person_per_picture(pipe, schema, options) -> Image.Image:
    paths = options.images or [vlm_par_hf.example_crop(name) for name in EXAMPLES]
    images, names = [open_image(path) for path in paths], [Path(path).name for path in paths]
    title = "Predicted attributes"
    note = trust_note(pipe.model) or f"{len(images)} pictures, model: {options.model}"
    results = pipe(images, explain=options.explain or False)
    for index, result in enumerate(results):
        print(f"{names[index]}: {in_words(result, schema)}")
    if options.explain:
        note = "light: the patches that the answer rests on, each picture on its own scale"
        return explanation_grid(images, results, names=names, title=title, note=note)
    return people_grid(images, results, names=names, title=title, note=note)


def people_in_scenes(pipe, schema, options) -> Image.Image:
    scenes = []
    detector = pipeline("object-detection", model=options.detector) if options.detector else None
    boxes = [[float(value) for value in box.split(",")] for box in options.boxes.split()] if options.boxes else None
    for path in options.images:
        people = pipe(path, boxes=boxes) if boxes else pipe(path, detector=detector)
        for person in people:
            print(f"{path} {person['box']}: {in_words(person, schema)}")
        tags = [positive_names(person, schema)[:4] for person in people]
        scenes.append(draw_boxes(open_image(path), [person["box"] for person in people], tags))
    sheet = Image.new("RGB", (max(scene.width for scene in scenes), sum(scene.height for scene in scenes)))
    top = 0
    for scene in scenes:
        sheet.paste(scene, (0, top))
        top += scene.height
    return sheet


def positive_names(person, schema) -> list[str]:
    return [
        name if schema[name].is_binary else f"{name}: {answer['label']}"
        for name, answer in person["attributes"].items()
        if is_positive_answer(answer["label"], schema[name])
    ]


def in_words(person, schema) -> str:
    return ", ".join(positive_names(person, schema)) or "nothing"


if __name__ == "__main__":
    main()
