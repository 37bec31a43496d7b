"""The picture of the README: the photographs that ship, and rendered people, answered by the default model.

    python benchmarks/front_page.py --out docs/people.jpg

The rendered people are the first ones of a seed that no training used. Nobody was chosen, and wrong answers stay.
"""

import argparse
from pathlib import Path

from PIL import Image
from transformers import pipeline

import vlm_par_hf
from vlm_par_hf.data.synthetic.rendered.people import RenderedPerson, Shot
from vlm_par_hf.data.synthetic.rendered.render import render_picture
from vlm_par_hf.images.example_crops import EXAMPLES
from vlm_par_hf.visualization import people_grid


SEED = 20_260


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("outputs/people.jpg"))
    options = parser.parse_args()

    people = {
        f"photograph {number}": Image.open(vlm_par_hf.example_crop(name)) for number, name in enumerate(EXAMPLES, 1)
    }
    for number in range(3):
        person = RenderedPerson.sample(SEED, number)
        people[f"rendered {number + 1}"] = render_picture(person, Shot.sample(person, 0)).image

    pipe = pipeline("pedestrian-attributes", sensitive=False, only_positive=True)
    pictures = list(people.values())
    sheet = people_grid(
        pictures, pipe(pictures), columns=3, names=list(people), max_lines=8, picture_height=250, font_size=16
    )
    options.out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(options.out, quality=88)
    print(f"wrote {options.out}: {sheet.width} x {sheet.height}, {options.out.stat().st_size // 1000} KB")


if __name__ == "__main__":
    main()
