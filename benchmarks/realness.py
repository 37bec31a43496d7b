"""How real rendered people look to a network that knows photographs of people.

    PAR_DATA=... python benchmarks/realness.py --network PATH.xml --patches 1126 --pooled 1135

Two numbers on the network's pooled features, each for drawings and for rendered people against the real crops of
`pa100k_mini`, and, as a scale, for one half of the real persons against the other:

- `probe AUC`: of a linear probe that tells real from made, in five folds without a common person; 50 would be real,
  and 100 is what a network that looks closely enough will reach for any rendering;
- `distance`: the Frechet distance between two Gaussians fitted to the features, in units of the real features'
  total variance.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from folds import NUM_FOLDS, person_folds, real_crops
from transfer import fit_probe, network_features

from vlm_par_hf import load_par_dataset
from vlm_par_hf.metrics.ranking import roc_auc


def probe_auc(real: np.ndarray, made: np.ndarray, real_persons: np.ndarray, made_persons: np.ndarray) -> float:
    """AUC of a balanced probe; a picture is predicted by a probe that has not seen its person."""
    vectors = torch.from_numpy(np.concatenate([real, made])).double()
    targets = torch.cat([torch.ones(len(real), 1), torch.zeros(len(made), 1)]).double()
    folds = np.concatenate([person_folds(real_persons), person_folds(made_persons)])
    scores = np.zeros(len(vectors))
    for fold in range(NUM_FOLDS):
        train = folds != fold
        mean, std = vectors[train].mean(0), vectors[train].std(0).clamp_min(1e-6)
        weights = list(fit_probe((vectors[train] - mean) / std, targets[train], (1e-2,)))[-1]
        scores[~train] = ((vectors[~train] - mean) / std @ weights[:-1] + weights[-1]).squeeze(1).numpy()
    return roc_auc(scores, targets[:, 0].numpy().astype(np.int64))


def distance(real: np.ndarray, made: np.ndarray) -> float:
    """Squared Frechet distance between Gaussians, over the real features' total variance."""
    first, second = np.cov(real, rowvar=False), np.cov(made, rowvar=False)
    # The trace of the root of a product of two covariances, by the singular values of a product of roots.
    roots = [vectors * np.sqrt(np.maximum(values, 0)) for values, vectors in map(np.linalg.eigh, (first, second))]
    shared = np.linalg.svd(roots[0].T @ roots[1], compute_uv=False).sum()
    gap = ((real.mean(0) - made.mean(0)) ** 2).sum()
    return float((gap + np.trace(first) + np.trace(second) - 2 * shared) / np.trace(first))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", type=Path, required=True)
    parser.add_argument("--patches", required=True)
    parser.add_argument("--pooled", required=True)
    parser.add_argument("--pictures", type=int, default=1600)
    args = parser.parse_args()
    real = real_crops()
    sets = {"real": (list(real["image"]), np.array(real["person_id"]))}
    for name in ("synthetic", "rendered"):
        options = {"num_train": args.pictures, "num_validation": 1, "num_test": 1, "seed": 5}
        data = load_par_dataset(name, **options)["train"]
        sets[name] = (list(data["image"]), np.array(data["person_id"]))
    vectors = {
        name: network_features(args.network, args.patches, args.pooled, images)["pooled"]
        for name, (images, _) in sets.items()
    }
    persons = {name: ids for name, (_, ids) in sets.items()}
    half = person_folds(persons["real"], 2) == 0
    rows = [("other real persons", vectors["real"][half], vectors["real"][~half], persons["real"][half],
             persons["real"][~half])]  # fmt: skip
    for name in ("synthetic", "rendered"):
        rows.append((name, vectors["real"], vectors[name], persons["real"], persons[name]))
    print(f"{len(vectors['real'])} real crops; the made ones are of population seed 5\n")
    print("| against real crops | pictures | probe AUC | distance |\n|---|---|---|---|")
    for name, first, second, first_persons, second_persons in rows:
        auc = 100 * probe_auc(first, second, first_persons, second_persons)
        print(f"| {name} | {len(second)} | {auc:.1f} | {distance(first, second):.2f} |")


if __name__ == "__main__":
    main()
