"""A gallery of a million people: how long it takes to fill and to search, beside an exact scan by numpy.

    python benchmarks/gallery.py --out FOLDER                # about 3 GB on disk
    python benchmarks/gallery.py --out FOLDER --rows 50000   # less

Probabilities and vectors are generated: `rows / 5` identities with five pictures each, 26 binary attributes, 256
numbers whose variances fall as 1 / k. Each stage is a process of its own: `fill` adds people in batches and makes the
index; `search` opens the gallery and asks; `scan` holds the same numbers in numpy arrays and compares all of them. The
first round of searches, which reads columns, is shown apart. Recall is the share of the ten people of the exact scan
that a search finds; times of `search` and `scan` are of the same run and the same queries.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from vlm_par_hf.labels.tables import get_schema
from vlm_par_hf.retrieval.columns import column_names
from vlm_par_hf.retrieval.gallery import Gallery, GalleryInfo
from vlm_par_hf.retrieval.queries import Query
from vlm_par_hf.utils import atomic_write_json


SCHEMA = get_schema("pa100k")
SIZE, TOP, VIEWS = 256, 10, 5
BATCH = 20_000
# Attributes that do not exclude each other.
CHOSEN = [a for a, one in enumerate(SCHEMA) if one.group is None]
KINDS = (
    "attribute filter, <= 1 %", "attribute filter, 5 to 30 %", "filter <= 1 % + vector", "filter 5 to 30 % + vector",
    "vector", "log-likelihood, all people",
)  # fmt: skip


def generate(start: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities of "yes", float32 `(count, 26)`, and vectors of length 1, float16 `(count, 256)`."""
    scales = (np.arange(1, SIZE + 1) ** -0.5).astype(np.float32)
    turn = np.linalg.qr(np.random.default_rng(0).normal(size=(SIZE, SIZE)))[0].astype(np.float32)
    first = start // VIEWS
    identities = np.random.default_rng([1, first])
    people = -(-count // VIEWS)
    shares = np.random.default_rng(2).uniform(0.02, 0.4, len(SCHEMA))
    has = identities.random((people, len(SCHEMA))) < shares
    own = identities.normal(size=(people, SIZE)).astype(np.float32)
    own[:, : len(SCHEMA)] += 2 * has - 1
    views = np.random.default_rng([3, first])
    rows = np.arange(count) // VIEWS
    logits = (2 * has[rows] - 1) * 2.5 + views.normal(size=(count, len(SCHEMA))) * 1.2
    vectors = ((own[rows] + 0.7 * views.normal(size=(count, SIZE)).astype(np.float32)) * scales) @ turn
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return (1 / (1 + np.exp(-logits))).astype(np.float32), vectors.astype(np.float16)


def memory() -> dict[str, float]:
    """Of this process, in MB: now and at most."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {name: int(lines[key].split()[0]) / 1000 for name, key in (("now", "VmRSS"), ("peak", "VmHWM"))}


def fill(folder: Path, rows: int) -> dict:
    """Fills the gallery, and writes the same numbers for the scan."""
    info = GalleryInfo(
        SCHEMA, "generated", "0" * 32, "0" * 32,
        {"source": "image_embeds", "size": SIZE, "name": "generated", "fingerprint": "0" * 32},
    )  # fmt: skip
    gallery = Gallery.create(folder / "gallery", info)
    options = {"mode": "w+", "shape": (rows, SIZE), "dtype": np.float16}
    vectors = np.lib.format.open_memmap(folder / "vectors.npy", **options)
    options = {"mode": "w+", "shape": (rows, len(SCHEMA)), "dtype": np.float32}
    probabilities = np.lib.format.open_memmap(folder / "probabilities.npy", **options)
    seconds = 0.0
    for start in range(0, rows, BATCH):
        part = slice(start, min(rows, start + BATCH))
        probabilities[part], vectors[part] = generate(start, part.stop - start)
        both = np.stack([1 - probabilities[part], probabilities[part]], axis=-1)
        begin = time.perf_counter()
        gallery.add(
            {"path": f"/pictures/{start + i:08d}.jpg", "probabilities": both[i], "embedding": vectors[start + i]}
            for i in range(len(both))
        )
        seconds += time.perf_counter() - begin
    vectors.flush(), probabilities.flush()
    begin = time.perf_counter()
    gallery.create_index()
    indexed = time.perf_counter() - begin
    size = sum(path.stat().st_size for path in (folder / "gallery").rglob("*") if path.is_file())
    return {"rows": rows, "add_seconds": seconds, "index_seconds": indexed, "disk_mb": size / 1e6, "memory": memory()}


def make_queries(folder: Path, count: int) -> list[dict]:
    """Conditions by the share of people who meet them, and vectors: other pictures of people in the gallery."""
    rng = np.random.default_rng(9)
    probabilities = np.load(folder / "probabilities.npy", mmap_mode="r")
    vectors = np.load(folder / "vectors.npy", mmap_mode="r")
    sample = probabilities[:: max(1, len(probabilities) // 50_000)] > 0.5
    found: dict[str, list[list[int]]] = {"few": [], "many": []}
    while min(map(len, found.values())) < count:
        names = sorted(rng.choice(CHOSEN, rng.integers(1, 4), replace=False).tolist())
        share = sample[:, names].all(1).mean()
        kind = "few" if 0.0005 < share <= 0.01 else "many" if 0.05 <= share <= 0.3 else None
        if kind:
            found[kind].append(names)
    queries = []
    for i in range(count):
        vector = vectors[rng.integers(len(vectors))].astype(np.float32)
        vector += rng.normal(size=SIZE).astype(np.float32) * 0.02
        queries.append({"few": found["few"][i], "many": found["many"][i], "vector": vector.tolist()})
    return queries


def arguments(kind: str, query: dict) -> dict:
    """What `Gallery.search` gets."""

    def asked(names: str) -> Query:
        return Query.from_dict({SCHEMA.names[a]: "yes" for a in query[names]}, SCHEMA, allow_sensitive=True)

    vector = {"vector": np.float32(query["vector"])}
    return {
        KINDS[0]: lambda: {"query": asked("few"), "filter": asked("few")},
        KINDS[1]: lambda: {"query": asked("many"), "filter": asked("many")},
        KINDS[2]: lambda: {**vector, "filter": asked("few")},
        KINDS[3]: lambda: {**vector, "filter": asked("many")},
        KINDS[4]: lambda: vector,
        KINDS[5]: lambda: {"query": asked("few")},
    }[kind]()


def measure(queries: list[dict], ask, *, rounds: int) -> dict:
    """Milliseconds of each query and what was found: in the last round, and apart from it the median of the first one,
    in which most queries read columns that none has read before.

    By the clock, and of all threads of this process ("computing"), which other load on the machine disturbs less.
    """
    found, times = {}, {}
    for kind in KINDS:
        clock, computing = np.zeros((2, rounds, len(queries)))
        for number in range(rounds):
            found[kind] = []
            for position, query in enumerate(queries):
                begin, began = time.perf_counter(), time.process_time()
                found[kind].append(ask(kind, query))
                clock[number, position] = 1000 * (time.perf_counter() - begin)
                computing[number, position] = 1000 * (time.process_time() - began)
        times[kind] = {
            "first": float(np.median(clock[0])), "p50": float(np.median(clock[-1])),
            "p95": float(np.percentile(clock[-1], 95)), "computing": float(np.median(computing[-1])),
        }  # fmt: skip
    return {"times": times, "found": found, "memory": memory()}


def search(folder: Path, queries: list[dict]) -> dict:
    gallery = Gallery.open(folder / "gallery")

    def ask(kind: str, query: dict) -> list[int]:
        people = gallery.search(**arguments(kind, query), top=TOP, allow_sensitive=True).people
        return [int(Path(one["path"]).stem) for one in people]

    return measure(queries, ask, rounds=2)


def scan(folder: Path, queries: list[dict]) -> dict:
    """All rows compared by numpy, in arrays that lie in memory."""
    vectors = np.load(folder / "vectors.npy")
    for start in range(0, len(vectors), 1 << 14):  # rounded as in the gallery, which brings them to length 1 again
        part = vectors[start : start + (1 << 14)].astype(np.float32)
        vectors[start : start + len(part)] = part / np.linalg.norm(part, axis=1, keepdims=True)
    columns = np.ascontiguousarray(np.load(folder / "probabilities.npy").T)

    def best(scores: np.ndarray) -> list[int]:
        top = np.argpartition(-scores, min(TOP, len(scores) - 1))[:TOP]
        return [int(row) for row in top[np.argsort(-scores[top], kind="stable")] if np.isfinite(scores[row])]

    def similarities(vector: np.ndarray) -> np.ndarray:
        found = np.empty(len(vectors), np.float32)
        for start in range(0, len(vectors), 1 << 14):
            found[start : start + (1 << 14)] = vectors[start : start + (1 << 14)].astype(np.float32) @ vector
        return found

    def ask(kind: str, query: dict) -> list[int]:
        names = query["few" if kind in (KINDS[0], KINDS[2], KINDS[5]) else "many"]
        if kind == KINDS[4]:
            return best(similarities(np.float32(query["vector"])))
        if kind in (KINDS[0], KINDS[1], KINDS[5]):
            scores = sum(np.log(np.clip(columns[a], 1e-6, 1)) for a in names)
        else:
            scores = similarities(np.float32(query["vector"]))
        if kind != KINDS[5]:
            scores = np.where(np.logical_and.reduce([columns[a] > 0.5 for a in names]), scores, -np.inf)
        return best(scores)

    return measure(queries, ask, rounds=1)


def engine(folder: Path, queries: list[dict]) -> dict:
    """What LanceDB alone takes, for comparison: its filter on columns, and the inner product with `log_likelihood`."""
    table = Gallery.open(folder / "gallery")._table
    names = list(column_names(SCHEMA).values())
    times: dict[str, list[float]] = {"filter": [], "log_likelihood": []}
    for query in queries[:10]:
        begin = time.perf_counter()
        table.search().where(" AND ".join(f"`{names[a]}` > 0.5" for a in query["few"])).select(["path"]).to_arrow()
        times["filter"].append(1000 * (time.perf_counter() - begin))
        weights = np.zeros(4 * len(SCHEMA), np.float32)
        weights[[2 * a + 1 for a in query["few"]]] = 1
        begin = time.perf_counter()
        found = table.search(weights, vector_column_name="log_likelihood").distance_type("dot").limit(TOP)
        found.select(["path", "_distance"]).to_arrow()
        times["log_likelihood"].append(1000 * (time.perf_counter() - begin))
    return {name: float(np.median(each)) for name, each in times.items()}


def table(report: dict) -> str:
    """The report as Markdown."""
    ours, scanned = report["search"], report["scan"]
    names = (
        "search", "p50 ms", "p95 ms", "first round ms", "computing ms", "scan: p50 ms", "computing ms", "clock",
        "computing",
    )  # fmt: skip
    lines = [f"| {' | '.join(names)} | recall@10 |", "|---" * (len(names) + 1) + "|"]
    for kind in KINDS:
        one, other = ours["times"][kind], scanned["times"][kind]
        # Equal scores may stand in another order: what counts is who is among the ten.
        pairs = [(set(a), set(b)) for a, b in zip(ours["found"][kind], scanned["found"][kind])]
        recall = float(np.mean([len(a & b) / max(1, len(b)) for a, b in pairs]))
        lines.append(
            f"| {kind} | {one['p50']:.1f} | {one['p95']:.1f} | {one['first']:.0f} | {one['computing']:.1f} | "
            f"{other['p50']:.0f} | {other['computing']:.0f} | 1/{other['p50'] / one['p50']:.0f} | "
            f"1/{other['computing'] / max(0.1, one['computing']):.0f} | {recall:.3f} |"
        )
    made = report["fill"]
    lines += [
        "",
        f"{made['rows']:,} people: added in {made['add_seconds']:.0f} s, index of vectors in "
        f"{made['index_seconds']:.0f} s, {made['disk_mb']:.0f} MB on disk; memory of the searcher "
        f"{ours['memory']['now']:.0f} MB, at most {ours['memory']['peak']:.0f} MB. The engine alone: filter "
        f"{report['engine']['filter']:.0f} ms, inner product with the second vector "
        f"{report['engine']['log_likelihood']:.0f} ms.",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for gallery and arrays; filled once")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--report", type=Path, help="JSON file of what was measured")
    parser.add_argument("--stage", choices=("fill", "search", "scan", "engine"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    results = args.out / "results"
    if args.stage:
        if args.stage == "fill":
            found = fill(args.out, args.rows)
        else:
            queries = json.loads((args.out / "queries.json").read_text())
            found = {"search": search, "scan": scan, "engine": engine}[args.stage](args.out, queries)
        atomic_write_json(results / f"{args.stage}.json", found)
        return
    stages = ("fill", "search", "scan", "engine")
    for stage in stages:
        if stage == "fill" and (results / "fill.json").exists():
            continue
        if stage == "search":
            atomic_write_json(args.out / "queries.json", make_queries(args.out, args.queries))
        command = [sys.executable, __file__, "--out", str(args.out), "--rows", str(args.rows), "--stage", stage]
        subprocess.run(command, check=True, env={**os.environ, "LANCE_LOG": "error"})
    report = {stage: json.loads((results / f"{stage}.json").read_text()) for stage in stages}
    print(table(report))
    if args.report:
        for stage in ("search", "scan"):
            del report[stage]["found"]
        atomic_write_json(args.report, report)


if __name__ == "__main__":
    main()
