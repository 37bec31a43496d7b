"""Finding people by attributes: what the trained head of CLEAR is worth beside scores that need no training.

    python benchmarks/retrieval.py --data rendered                  # RENDERED people that backbone and heads never saw
    PAR_DATA=... python benchmarks/retrieval.py --data pa100k_mini  # REAL crops, five folds by persons
    python benchmarks/retrieval.py --data rendered --num-train 200 --num-test 100 --epochs 2 --head-epochs 2 --seeds 1

In each round (seed or fold) a recogniser is trained on the train split: VLM-PAR over the embedded backbone, without a
question (`fusion="none"`), whose epoch is chosen on validation. Its pooled vectors and probabilities are the inputs of
all methods; the adapters are trained on the same train split, and their epoch is chosen on validation too. Test people
were seen by none of them, and no person of test is in another split.

Two protocols:

- *vectors*, the published one: every attribute vector of the test split is a query, right is who has exactly it.
  Rendered people have hundreds of attributes' combinations, so nearly every vector is unique: there it is the vectors
  of the attributes in `RENDERED`.
- *conditions*, what people type: one to three of these labels that a drawn person of the test split has, all else
  open.

Printed and written per method: the mean over rounds, with a 95 % interval from resampled queries. `random` is the
expected value of a random order.
"""

import argparse
import json
import logging
import platform
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from folds import NUM_FOLDS, person_folds, real_crops, split_of_fold
from pages import command_of, markdown_table

from vlm_par_hf import RetrieverConfig, VlmParModel, VlmParProcessor, dataset_schema, load_par_dataset
from vlm_par_hf.labels.schema import UNKNOWN_LABEL
from vlm_par_hf.metrics.retrieval import attribute_categories, attribute_retrieval, unseen_categories
from vlm_par_hf.retrieval.modeling_retriever import AttributeRetriever
from vlm_par_hf.retrieval.ranking import rank_people
from vlm_par_hf.retrieval.texts import text_encoder
from vlm_par_hf.retrieval.vectors import people_vectors
from vlm_par_hf.training import RetrievalSettings, TrainSettings, compute_features, train
from vlm_par_hf.training.fitting_adapters import People, fit_adapters
from vlm_par_hf.utils import atomic_write_json


logger = logging.getLogger("retrieval")

RENDERED = ("Hat", "HairLength", "UpperColor", "LowerColor", "LowerType", "Sleeves", "Backpack")
SPLITS = ("train", "validation", "test")
NUMBERS = ("mAP_standard", "mAP_trapezoid", "rank_1", "rank_5", "rank_10", "mINP", "mADM")
# Heads beside the one with all of the paper's choices: name -> fields of RetrieverConfig.
HEADS = {
    "adapters": {},
    "adapters, word embeddings": {"text_form": "words"},
    "adapters, prompts as slots": {"template": "prompts"},
    "adapters, sentence flattened": {"text_form": "flatten", "text_length": 64},
    "adapters, partly open queries in training": {"open_share": 0.5},
    "adapters, without probabilities": {"uses_probabilities": False},
    "adapters, size 64": {"embedding_size": 64},
    "adapters, size 128": {"embedding_size": 128},
}
CONDITIONS = 300  # queries of a round


def chosen_heads(args) -> dict[str, dict]:
    heads = {name: fields for name, fields in HEADS.items() if not args.only or name in args.only}
    if args.text_model:
        named = {"text_model": args.text_model}
        heads["adapters, language model"] = named
        heads["adapters, language model, flattened"] = {**named, "text_form": "flatten", "text_length": 64}
    return heads


def rounds_of(args) -> list[tuple[int, dict]]:
    """Per seed or fold its number and the splits."""
    if args.data == "pa100k_mini":
        data = real_crops()
        folds = person_folds(np.asarray(data["person_id"]))
        return [
            (fold, {name: data.select(rows) for name, rows in split_of_fold(folds, fold).items()})
            for fold in range(args.folds)
        ]
    sizes = {"num_train": args.num_train, "num_validation": args.num_validation, "num_test": args.num_test}
    return [(seed, load_par_dataset("rendered", seed=seed, **sizes)) for seed in range(args.seeds)]


def recognise(splits: dict, seed: int, args, cache: Path) -> dict[str, People]:
    """What a recogniser that is trained on the train split gives for each split; kept in `cache`."""
    file = cache / f"people-{args.head_epochs}.npz"
    if not file.is_file():
        settings = TrainSettings(epochs=args.head_epochs, batch_size=64, seed=seed, progress=False)
        with tempfile.TemporaryDirectory() as folder:
            result = train(
                splits, folder, backbone="embedded", model_options={"fusion": "none"}, settings=settings,
                dataset_name=args.data, cache_features=cache,
            )  # fmt: skip
        logger.info("  recogniser: validation mA %.2f", 100 * result.best_mA)
        arrays = {}
        for name in SPLITS:
            features = compute_features(
                result.model, splits[name], result.processor, 64, directory=cache / name, progress=False
            )
            vectors = people_vectors(result.model, features.batches(256))
            arrays |= {
                f"{name}_e": vectors.image_embeds,
                f"{name}_p": vectors.probabilities,
                f"{name}_l": features.labels,
            }
        np.savez(file, **arrays)
    with np.load(file) as arrays:
        return {name: People(*(arrays[f"{name}_{kind}"] for kind in "epl")) for name in SPLITS}


def fit_head(fields: dict, people: dict[str, People], model, processor, seed: int, args) -> AttributeRetriever:
    """A head of the given fields, trained on the train split."""
    encoder = text_encoder(fields.get("text_model"), model, processor)
    width = encoder.embed_words(["a"]) if fields.get("text_form") in ("words", "flatten") else encoder.encode(["a"])
    categories = np.unique(people["train"].labels, axis=0)
    options = {"uses_probabilities": True, "embedding_size": 256, **fields}
    config = RetrieverConfig(
        attributes=model.config.schema.to_list(), image_width=people["train"].image_embeds.shape[1],
        num_categories=len(categories), text_width=width.shape[1], **options,
    )  # fmt: skip
    torch.manual_seed(seed)
    retriever = AttributeRetriever(config)
    retriever.categories.copy_(torch.from_numpy(categories))
    retriever.set_text_encoder(encoder)
    settings = RetrievalSettings(epochs=args.epochs, seed=seed)
    fit = fit_adapters(retriever, people["train"], people["validation"], settings, progress=False)
    logger.info("    %s: best epoch %d, validation mAP %.2f", fields, fit.best_epoch, 100 * fit.best_mAP)
    return retriever


def draw_conditions(labels: np.ndarray, schema, seed: int) -> np.ndarray:
    """Different queries of one to three labels, int64 `(Q, A)`: a person of the split has them. Of binary attributes
    they are positive, as in a search; sensitive attributes are not asked."""
    random = np.random.default_rng(seed)
    found: set[tuple[int, ...]] = set()
    for _ in range(20 * CONDITIONS):
        row = labels[random.integers(len(labels))]
        asked = [
            a for a, one in enumerate(schema)
            if not one.sensitive and (row[a] == 1 if one.is_binary else row[a] != UNKNOWN_LABEL)
        ]  # fmt: skip
        if len(asked) < 3:
            continue
        query = np.full(len(schema), UNKNOWN_LABEL)
        kept = random.choice(asked, random.integers(1, 4), replace=False)
        query[kept] = row[kept]
        found.add(tuple(query.tolist()))
        if len(found) == CONDITIONS:
            break
    return np.array(sorted(found))


def measure(scores: np.ndarray, queries: np.ndarray, labels: np.ndarray, seen: np.ndarray) -> list[dict]:
    """The numbers of each query for which somebody right is there, with `unseen`."""
    unseen = unseen_categories(queries, seen)
    rows = []
    for one, query, is_unseen in zip(scores, queries, unseen):
        found = attribute_retrieval(one[None], query[None], labels)
        if found["queries"]:
            names = (*NUMBERS, "chance_mAP_standard")
            rows.append({"unseen": bool(is_unseen), **{name: found[name] for name in names}})
    return rows


def summarise(
    rounds: list[list[dict]], name: str, which: str | None = None, resamples: int = 1000
) -> list[float] | None:
    """The mean over rounds of the mean over queries, and its 95 % interval from resampled queries."""
    values = [
        np.array([row[name] for row in rows if which is None or row["unseen"] == (which == "unseen")])
        for rows in rounds
    ]
    values = [one for one in values if len(one)]
    if not values:
        return None
    random = np.random.default_rng(0)
    drawn = np.mean([one[random.integers(0, len(one), (resamples, len(one)))].mean(1) for one in values], axis=0)
    return [float(np.mean([one.mean() for one in values])), *np.quantile(drawn, [0.025, 0.975]).tolist()]


def run_round(number: int, splits: dict, args) -> dict[str, dict[str, list[dict]]]:
    """Method -> protocol -> numbers of each query."""
    cache = args.work / f"{args.data}-{args.num_train}-{number}"
    people = recognise(splits, number, args, cache)
    # Texts are read by the embedded backbone's own tower, which is that of every recogniser here.
    model = VlmParModel.from_backbone("embedded", attributes=dataset_schema(splits["train"]), fusion="none")
    processor = VlmParProcessor.from_backbone("embedded")
    schema, test = model.config.schema, people["test"]
    asked = [schema.index(name) for name in RENDERED] if args.data == "rendered" else list(range(len(schema)))
    only = {name: _only(people[name].labels, asked) for name in SPLITS}
    queries = np.full((len(attribute_categories(only["test"][:, asked])[0]), len(schema)), UNKNOWN_LABEL)
    queries[:, asked] = attribute_categories(only["test"][:, asked])[0]
    protocols = {
        "vectors": (queries, only["test"], only["train"]),
        "conditions": (draw_conditions(only["test"], schema, number), only["test"], only["train"]),
    }
    found: dict[str, dict[str, list[dict]]] = {}

    def add(method: str, scoring: str, **given) -> None:
        found[method] = {}
        for protocol, (wanted, labels, seen) in protocols.items():
            scores = rank_people(
                scoring, wanted, schema, probabilities=test.probabilities, image_embeds=test.image_embeds,
                model=model, processor=processor, **given,
            )  # fmt: skip
            found[method][protocol] = measure(scores, wanted, labels, seen)
        means = {name: 100 * summarise([rows], "mAP_standard")[0] for name, rows in found[method].items()}
        logger.info("  %s: %s", method, {name: round(value, 2) for name, value in means.items()})

    for scoring in ("log_likelihood", "l1", "text"):
        add(scoring, scoring)
    learned = {name: one._replace(labels=only[name]) for name, one in people.items()}
    for name, fields in chosen_heads(args).items():
        try:
            retriever = fit_head(fields, learned, model, processor, number, args)
        except ValueError as error:  # a sentence longer than the text tower reads
            logger.info("  %s: %s", name, error)
            continue
        add(name, "adapters", retriever=retriever)
        if name == "adapters":
            add("adapters, hard alone", "adapters_hard", retriever=retriever)
            add("adapters, soft alone", "adapters_soft", retriever=retriever)
    return found


def _only(labels: np.ndarray, asked: list[int]) -> np.ndarray:
    found = np.full_like(labels, UNKNOWN_LABEL)
    found[:, asked] = labels[:, asked]
    return found


def table(result: dict, protocol: str) -> str:
    """As Markdown; attribute vectors are also measured apart where the train split does not have them."""
    names = ("mAP_standard", "rank_1", "rank_5", "rank_10", "mINP", "mADM")
    head = ["method", *names, *(["mAP, unseen", "times chance"] if protocol == "vectors" else [])]

    def cell(value) -> str:
        return "-" if value is None else f"{100 * value[0]:.1f} [{100 * value[1]:.1f}, {100 * value[2]:.1f}]"

    rows = []
    for method, found in result.items():
        row = found[protocol]
        cells = [method, *(cell(row["all"][name]) for name in names)]
        if protocol == "vectors":
            unseen, chance = row["unseen"]["mAP_standard"], row["unseen"]["chance_mAP_standard"]
            cells += [cell(unseen), "-" if unseen is None else f"{unseen[0] / chance[0]:.1f}"]
        rows.append(cells)
    last = ["random", cell(row["all"]["chance_mAP_standard"]), *[""] * (len(names) - 1)]
    rows.append([*last, cell(row["unseen"]["chance_mAP_standard"]), "1.0"] if protocol == "vectors" else last)
    return markdown_table(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=("rendered", "pa100k_mini"), default="rendered")
    parser.add_argument("--num-train", type=int, default=2000)
    parser.add_argument("--num-validation", type=int, default=500)
    parser.add_argument("--num-test", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=1, help="populations of rendered people")
    parser.add_argument("--folds", type=int, default=NUM_FOLDS, help="of the real crops")
    parser.add_argument("--epochs", type=int, default=20, help="of the adapters")
    parser.add_argument("--head-epochs", type=int, default=20, help="of the recogniser")
    parser.add_argument("--only", nargs="*", choices=HEADS, help="these heads")
    parser.add_argument("--text-model", help="a language model for two more heads")
    parser.add_argument("--work", type=Path, default=Path("work/retrieval"), help="keeps features")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "retrieval.json")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("vlm_par_hf").setLevel(logging.WARNING)
    rounds = []
    for number, splits in rounds_of(args):
        logger.info("%s, round %d", args.data, number)
        rounds.append(run_round(number, splits, args))
        result = {}
        for method in rounds[0]:
            result[method] = {}
            for protocol in ("vectors", "conditions"):
                rows = [one[method][protocol] for one in rounds if method in one]
                names = (*NUMBERS, "chance_mAP_standard")
                result[method][protocol] = {
                    which: {name: summarise(rows, name, None if which == "all" else which) for name in names}
                    for which in ("all", "seen", "unseen")
                } | {"queries": [len(one) for one in rows]}
        saved = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {}
        saved[args.data] = {
            "command": command_of(sys.argv), "rounds": len(rounds), "machine": platform.machine(),
            "torch": torch.__version__, "methods": result,
        }  # fmt: skip
        atomic_write_json(args.out, saved)
    for protocol in ("vectors", "conditions"):
        print(f"\n{'RENDERED' if args.data == 'rendered' else 'REAL'}, {protocol}, {len(rounds)} rounds\n")
        print(table(result, protocol))
    print(f"\nwrote {args.out}")


if __name__ == "__main__":
    main()
