"""What frozen features are worth on photographs: a linear probe on real crops, in five folds without a common person.

    PAR_DATA=... python benchmarks/transfer.py embedded                  # a backbone by name or folder
    PAR_DATA=... python benchmarks/transfer.py embedded FOLDER FOLDER    # several, with differences to the first
    PAR_DATA=... python benchmarks/transfer.py embedded --network PATH.xml --patches 1126 --pooled 1135
                                                                         # and a network in OpenVINO's format

The probe is logistic regression with balanced classes on standardised features, of the pooled output and of the pooled
output beside the mean patch. One strength of its L2 penalty for all attributes is chosen by AUC in the four training
folds (each of them predicted by a probe of the other three); thresholds are fitted on the same predictions, and the
fifth fold is predicted once. Scores of the five tested folds are pooled per attribute, as those of convex problems of
nearly the same data can be (quality.py, whose models can differ in scale, compares within folds):

- `auc`: area under the ROC curve;
- `mA`: mean of the true positive and true negative rate where the probability exceeds 0.5;
- `mA_fitted`: the same at the threshold with the best mA on the predictions of the training folds.

All are means over the attributes of which enough pictures have both answers (`folds.py`), with 95 % intervals from a
bootstrap over persons. A backbone that has seen these crops must not be measured here; but five of them can, each of
which has not seen one fold (`folds.py --out`): a name with `{fold}` in it, such as `runs/fold{fold}/checkpoint`.
"""

import argparse
import logging
import os
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from folds import NUM_FOLDS, person_folds, real_crops, scored_attributes

from vlm_par_hf import get_schema, pixels
from vlm_par_hf.metrics.ranking import ResampledRanking, roc_auc
from vlm_par_hf.utils import atomic_write_json, backbone_files, require


logger = logging.getLogger("transfer")

PENALTIES = (1e-1, 3e-2, 1e-2, 3e-3, 1e-3, 3e-4)  # from strong to weak; each fit starts from the one before
SOURCES = ("pooled", "pooled + mean patch")
METRICS = ("auc", "mA", "mA_fitted")


@torch.no_grad()
def backbone_features(name: str, images, batch_size: int = 32) -> dict[str, np.ndarray]:
    """Pooled output and mean patch of the vision tower, each float32 `(N, D)`, with the checkpoint's own processor."""
    from transformers import AutoModel, AutoProcessor

    path = backbone_files(name)
    model = AutoModel.from_pretrained(path, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(path).image_processor
    pooled, patches = [], []
    for start in range(0, len(images), batch_size):
        inputs = pixels.preprocess_images(processor, images[start : start + batch_size])
        output = model.get_image_features(**inputs)
        mask = inputs["pixel_attention_mask"][..., None].float()
        pooled.append(output.pooler_output)
        patches.append((output.last_hidden_state * mask).sum(1) / mask.sum(1))
    return {"pooled": torch.cat(pooled).numpy(), "mean patch": torch.cat(patches).numpy()}


def fold_features(name: str, images) -> dict[str, np.ndarray]:
    """The same of five backbones, one per fold, each float32 `(5, N, D)`."""
    found = [backbone_features(name.format(fold=fold), images) for fold in range(NUM_FOLDS)]
    return {source: np.stack([one[source] for one in found]) for source in found[0]}


def network_features(path: Path, patches: str, pooled: str, images, batch_size: int = 32) -> dict[str, np.ndarray]:
    """The same of a convolutional network of which two tensors are named; its input is BGR in [0, 255], squashed."""
    core = require("openvino", extra="export").Core()
    model = core.read_model(path)
    model.add_outputs([patches, pooled])
    height, width = list(model.input(0).partial_shape)[2:]
    model.reshape([-1, 3, height.get_length(), width.get_length()])
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    size = (width.get_length(), height.get_length())
    found = {"pooled": [], "mean patch": []}
    for start in range(0, len(images), batch_size):
        batch = [np.asarray(image.resize(size, 2)) for image in images[start : start + batch_size]]  # 2: bilinear
        values = np.stack(batch)[..., ::-1].transpose(0, 3, 1, 2).astype(np.float32)
        output = compiled(np.ascontiguousarray(values))
        found["pooled"].append(output[pooled].reshape(len(batch), -1).copy())
        found["mean patch"].append(output[patches].mean((2, 3)))
    return {source: np.concatenate(parts) for source, parts in found.items()}


def fit_probe(vectors: torch.Tensor, targets: torch.Tensor, penalties=PENALTIES, steps: int = 60):
    """Yields weights `(D + 1, A)`, the bias last, for each penalty: all attributes in one convex problem.

    Args:
        vectors: float64 `(N, D)`, standardised.
        targets: float64 `(N, A)`, 0 or 1. Both classes of an attribute weigh the same.
    """
    positives = targets.sum(0)
    negatives = len(targets) - positives
    weight = targets / positives.clamp_min(1) + (1 - targets) / negatives.clamp_min(1)
    weight = weight / 2 * ((positives > 0) & (negatives > 0))
    ones = torch.cat([vectors, vectors.new_ones(len(vectors), 1)], 1)
    coefficients = vectors.new_zeros(ones.shape[1], targets.shape[1], requires_grad=True)
    for penalty in penalties:
        optimizer = torch.optim.LBFGS([coefficients], max_iter=steps, history_size=20, line_search_fn="strong_wolfe")
        optimizer.step(partial(_objective, coefficients, ones, targets, weight, penalty))
        yield coefficients.detach().clone()


def _objective(coefficients, inputs, targets, weight, penalty) -> torch.Tensor:
    coefficients.grad = None
    loss = F.binary_cross_entropy_with_logits(inputs @ coefficients, targets, weight, reduction="sum")
    loss = loss + penalty / 2 * coefficients[:-1].square().sum()
    loss.backward()
    return loss


def probe(vectors: np.ndarray, labels: np.ndarray, folds: np.ndarray) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """Logits `(N, A)` of every picture by a probe that has not seen its fold, the threshold fitted for it `(N, A)`,
    and the penalty that was chosen for each fold.

    Args:
        vectors: `(N, D)`, or `(5, N, D)`: those with which each fold is tested.
        labels: 0 or 1, `(N, A)`.
        folds: `(N,)`.
    """
    targets = torch.from_numpy(labels).double()
    logits, thresholds, chosen = np.zeros(labels.shape), np.zeros(labels.shape), []

    def fitted(features, train: np.ndarray, held_out: np.ndarray, penalties) -> list[np.ndarray]:
        """The logits of the held-out pictures, for each penalty."""
        mean, std = features[train].mean(0), features[train].std(0).clamp_min(1e-6)
        inputs = (features[held_out] - mean) / std
        weights = fit_probe((features[train] - mean) / std, targets[train], penalties)
        return [(inputs @ one[:-1] + one[-1]).numpy() for one in weights]

    for fold in range(NUM_FOLDS):
        features = torch.from_numpy(vectors if vectors.ndim == 2 else vectors[fold]).double()
        inner = np.zeros((len(PENALTIES), *labels.shape))
        train = folds != fold
        for held_out in set(range(NUM_FOLDS)) - {fold}:
            inner[:, folds == held_out] = fitted(features, train & (folds != held_out), folds == held_out, PENALTIES)
        aucs = [mean_auc(one[train], labels[train]) for one in inner]
        best = int(np.argmax(aucs))
        chosen.append(PENALTIES[best])
        logits[~train] = fitted(features, train, ~train, PENALTIES[: best + 1])[-1]
        for attribute in range(labels.shape[1]):
            thresholds[~train, attribute] = best_threshold(inner[best, train, attribute], labels[train, attribute])
    return logits, thresholds, chosen


def mean_auc(scores: np.ndarray, labels: np.ndarray) -> float:
    return float(np.mean([roc_auc(scores[:, a], labels[:, a] == 1) for a in scored_attributes(labels, 1)]))


def best_threshold(scores: np.ndarray, labels: np.ndarray) -> float:
    """The threshold above which the mean of the true positive and the true negative rate is largest: between two
    scores."""
    order = np.argsort(scores)
    ranked, positive = scores[order], labels[order] == 1
    below = np.cumsum(~positive) / max(1, (~positive).sum()) - np.cumsum(positive) / max(1, positive.sum())
    cut = int(np.argmax(below[:-1]))
    return float((ranked[cut] + ranked[cut + 1]) / 2)


def resampled(
    logits: np.ndarray, thresholds: np.ndarray, labels: np.ndarray, persons: np.ndarray, bootstrap: int, seed: int = 0
) -> dict[str, np.ndarray]:
    """Metric -> `(attributes, 1 + bootstrap)`, the first column for the pictures themselves, the others for resamples
    of the persons. The same seed draws the same resamples, so that differences of two features are paired."""
    _, picture_person = np.unique(persons, return_inverse=True)
    count = picture_person.max() + 1
    drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), bootstrap)
    counts = np.concatenate([np.ones((1, count), int), drawn]).astype(np.int32)
    per_picture = counts[:, picture_person]
    result = {metric: [] for metric in METRICS}
    for attribute in scored_attributes(labels):
        true = labels[:, attribute] == 1
        result["auc"].append(ResampledRanking(logits[:, attribute], true, picture_person).compute(counts)[0])
        for metric, cut in (("mA", 0.0), ("mA_fitted", thresholds[:, attribute])):
            right = (logits[:, attribute] > cut) == true
            rates = [(per_picture[:, side] @ right[side]) / per_picture[:, side].sum(1) for side in (true, ~true)]
            result[metric].append(np.mean(rates, axis=0))
    return {metric: 100 * np.stack(rows) for metric, rows in result.items()}


def interval(values: np.ndarray) -> dict[str, float]:
    """Value and 95 % interval of the mean over attributes, from `(attributes, 1 + bootstrap)`."""
    means = values.mean(0)
    low, high = np.percentile(means[1:], [2.5, 97.5])
    return {"value": round(float(means[0]), 2), "low": round(float(low), 2), "high": round(float(high), 2)}


def measure(features: dict[str, np.ndarray], labels, persons, names: list[str], bootstrap: int) -> tuple[dict, dict]:
    """Results as plain JSON types, and the resamples behind them: source -> metric -> what `resampled` gives."""
    folds = person_folds(persons)
    vectors = {
        SOURCES[0]: features["pooled"],
        SOURCES[1]: np.concatenate([features["pooled"], features["mean patch"]], -1),
    }
    result, samples = {}, {}
    for source, matrix in vectors.items():
        started = time.perf_counter()
        logits, thresholds, penalties = probe(matrix, labels, folds)
        samples[source] = resampled(logits, thresholds, labels, persons, bootstrap)
        result[source] = {metric: interval(values) for metric, values in samples[source].items()} | {
            "width": matrix.shape[-1],
            "penalties": penalties,
            "attributes": {
                names[a]: {metric: round(float(samples[source][metric][k, 0]), 2) for metric in METRICS}
                for k, a in enumerate(scored_attributes(labels))
            },
        }
        logger.info("  %s: %.0f s", source, time.perf_counter() - started)
    return result, samples


def cell(entry: dict[str, float], sign: str = "") -> str:
    return f"{entry['value']:{sign}.1f} ({entry['low']:{sign}.1f} to {entry['high']:{sign}.1f})"


def table(results: dict[str, dict]) -> str:
    lines = [f"| features | probe on | {' | '.join(METRICS)} |", "|---" * (2 + len(METRICS)) + "|"]
    for name, result in results.items():
        for source in SOURCES:
            cells = [cell(result[source][metric]) for metric in METRICS]
            lines.append(f"| {name} | {source} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("backbones", nargs="*", help='"embedded" or folders; {fold} stands for 0 to 4')
    parser.add_argument("--network", type=Path, help="a network in OpenVINO's format (.xml)")
    parser.add_argument("--patches", default="1126", help="its tensor of patch features, (B, D, rows, columns)")
    parser.add_argument("--pooled", default="1135", help="its tensor of pooled features, (B, D)")
    parser.add_argument("--bootstrap", type=int, default=1000)
    parser.add_argument("--out", type=Path, help="JSON with all results")
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    if not args.backbones and args.network is None:
        parser.error("name a backbone, or a network with --network")

    data = real_crops()
    labels, persons = np.asarray(data["labels"]), np.asarray(data["person_id"])
    images = [image.convert("RGB") for image in data["image"]]
    names = get_schema("pa100k").names
    sources = {
        name: partial(fold_features if "{fold}" in name else backbone_features, name, images)
        for name in args.backbones
    }
    if args.network is not None:
        sources[args.network.stem] = lambda: network_features(args.network, args.patches, args.pooled, images)
    results, samples = {}, {}
    for name, compute in sources.items():
        logger.info("%s", name)
        results[name], samples[name] = measure(compute(), labels, persons, names, args.bootstrap)
    first, *others = results
    for name in others:
        results[name]["minus_first"] = {
            source: {
                metric: interval(samples[name][source][metric] - samples[first][source][metric]) for metric in METRICS
            }
            for source in SOURCES
        }
    count = len(scored_attributes(labels))
    print(f"\n{len(data)} real crops, five folds without a common person, {count} attributes, 95 % over persons\n")
    print(table(results))
    for name in others:
        for source in SOURCES:
            cells = [f"{metric} {cell(results[name]['minus_first'][source][metric], '+')}" for metric in METRICS]
            print(f"\n{name} minus {first}, {source}: {', '.join(cells)}")
    if args.out is not None:
        machine = f"{os.uname().machine}, torch {torch.__version__}"
        atomic_write_json(args.out, {"machine": machine, "bootstrap": args.bootstrap, "results": results})
        print(f"\nwrote {args.out}")


if __name__ == "__main__":
    main()
