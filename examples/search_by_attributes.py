"""Find people by what they wear, from nothing: train the adapters, index 20,000 people, ask, and draw what is found.

    python examples/search_by_attributes.py                                          # about an hour on two cores
    python examples/search_by_attributes.py --people 2000 --num-train 1000           # some minutes

1. Renders people and trains the retrieval head of CLEAR over the embedded recogniser, on the rendered label space.
2. Measures it beside scores that need no training, in the tables of the paper (`tables.md`).
3. Renders other people into parquet files, and indexes them in a gallery, as `vlm-par index` does.
4. Asks for five descriptions by probabilities and by the adapters, and draws a sheet for each.
5. Draws queries and people in two dimensions, as figure 4 of the paper.

After an interruption the same command goes on where it stopped. All people here are RENDERED; docs/retrieval.md says
what was measured on photographs.
"""

import argparse
from pathlib import Path

import numpy as np

from vlm_par_hf import load_par_dataset
from vlm_par_hf.data.synthetic.rendered import write_rendered_dataset
from vlm_par_hf.metrics.retrieval import attribute_categories
from vlm_par_hf.retrieval.encoding import PersonEncoder
from vlm_par_hf.retrieval.gallery import Gallery
from vlm_par_hf.retrieval.indexing import index_people
from vlm_par_hf.retrieval.queries import Query
from vlm_par_hf.retrieval.scoring import matches
from vlm_par_hf.retrieval.sheets import draw_search, map_of_people
from vlm_par_hf.training import RetrievalSettings
from vlm_par_hf.training.retrieval import evaluate_retrieval, train_retrieval
from vlm_par_hf.utils import atomic_write_text, embedded_path


QUERIES = (
    "red top, backpack, short hair",
    "hat, blue trousers",
    "UpperColor=white|yellow, shorts, not backpack",
    "suitcase",
    "umbrella, long coat",
)
# What the paper calls a category is a vector of all labels. Rendered people have 43 attributes, and nearly every
# vector occurs once; so the tables are about the vectors of these.
ASKED = ["Hat", "HairLength", "UpperColor", "LowerColor", "LowerType", "Sleeves", "Backpack"]
SCORES = ("log_likelihood", "l1", "adapters", "adapters_hard", "adapters_soft")


def truth_of(folder: Path, schema) -> dict[str, np.ndarray]:
    """The true labels of the people in parquet files, int64 `(rows, A)` by file."""
    import pyarrow.parquet

    files = sorted(folder.rglob("*.parquet"))
    return {
        str(file.resolve()): np.stack(pyarrow.parquet.read_table(file, columns=["labels"])["labels"].to_pylist())
        for file in files
    }


def ask(gallery: Gallery, encoder: PersonEncoder, query: Query, score: str, top: int):
    """The people for a query, ranked by one of `SCORES`."""
    if score in SCORES[:2]:
        return gallery.search(query, score=score, top=top)
    return gallery.search(query, vector=encoder.embed_query(query, score), top=top)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--people", type=int, default=20_000, help="how many are indexed")
    parser.add_argument("--num-train", type=int, default=4000, help="people that the adapters are trained on")
    parser.add_argument("--num-test", type=int, default=1000, help="people of the tables")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--top", type=int, default=20)
    parser.add_argument("--model", default=str(embedded_path("heads_rendered")), help="recogniser of rendered labels")
    parser.add_argument("--out", type=Path, default=Path("search_by_attributes"), help="folder to write")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    options = {"num_train": args.num_train, "num_validation": max(20, args.num_train // 5), "num_test": args.num_test}
    data = load_par_dataset("rendered", seed=7, **options)
    head = args.out / "head"
    settings = RetrievalSettings(epochs=args.epochs)
    train_retrieval(args.model, data, head, dataset_name="rendered", attributes=ASKED, settings=settings, resume=True)
    evaluate_retrieval(
        args.model, data, retriever=head, attributes=ASKED, dataset_name="rendered", output_dir=args.out / "tables",
        overwrite=True,
    )  # fmt: skip

    people = args.out / "people"
    write_rendered_dataset(people, num_train=0, num_test=args.people, seed=8)
    encoder = PersonEncoder(head, batch_size=32)
    report = index_people(people, args.out / "gallery", encoder=encoder)
    gallery = Gallery.open(args.out / "gallery")
    if len(gallery) >= 10_000:
        gallery.create_index()

    truth = truth_of(people, gallery.schema)
    everybody = np.concatenate(list(truth.values()))
    lines = [
        f"# {len(gallery):,} RENDERED people", "",
        f"The share of the first {args.top} people who are what was asked for (an attribute that the picture hides "
        "counts as wrong), and of all people.", "",
        f"| query | {' | '.join(SCORES)} | all people |", "|---|" + "---|" * (len(SCORES) + 1),
    ]  # fmt: skip
    for number, text in enumerate(QUERIES, start=1):
        query = Query.parse(text, gallery.schema)
        right = np.logical_and.reduce(list(matches(query, everybody, gallery.schema).values()))
        shares = []
        for score in SCORES:
            found = ask(gallery, encoder, query, score, args.top)
            labels = np.stack([truth[one["path"]][one["row"]] for one in found.people])
            shares.append(np.logical_and.reduce(list(matches(query, labels, gallery.schema).values())).mean())
            if score in ("log_likelihood", "adapters"):
                draw_search(found, args.out / f"query_{number}_{score}.png", title=text)
        numbers = " | ".join(f"{100 * share:.0f} %" for share in shares)
        lines.append(f"| {text.replace('|', ' or ')} | {numbers} | {100 * right.mean():.2f} % |")
    atomic_write_text(args.out / "queries.md", "\n".join(lines) + "\n")
    draw_map(gallery, encoder, truth, args.out / "map.png")

    print((args.out / "tables" / "retrieval.md").read_text())
    print("\n".join(lines))
    print(f"\n{report['people']} people in {args.out / 'gallery'}; sheets, tables and map in {args.out}")


def draw_map(gallery: Gallery, encoder: PersonEncoder, truth: dict[str, np.ndarray], path: Path) -> None:
    """The most common descriptions among the people, each with up to 20 of them, in the space of the adapters."""
    schema = gallery.schema
    asked = [schema.index(name) for name in ("UpperColor", "LowerColor", "LowerType")]
    rows = [(file, row) for file, labels in truth.items() for row in range(len(labels))]
    labels = np.concatenate(list(truth.values()))[:, asked]
    known = (labels >= 0).all(1)
    categories, members = attribute_categories(labels[known])
    rows = [one for one, keep in zip(rows, known) if keep]
    common = np.argsort(-np.bincount(members), kind="stable")[:10]
    vectors, names, queries = [], [], []
    for category in common:
        mine = np.flatnonzero(members == category)[:20]
        wanted = {schema[a].name: schema[a].labels[label] for a, label in zip(asked, categories[category])}
        query = Query.from_dict(wanted, schema)
        queries.append(encoder.embed_query(query))
        vectors.append(gallery.embeddings([rows[one] for one in mine]))
        names.append(", ".join(wanted.values()))
    map_of_people(np.stack(queries), vectors, path, names=names)


if __name__ == "__main__":
    main()
