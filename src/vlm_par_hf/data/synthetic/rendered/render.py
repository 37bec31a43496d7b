"""A picture of a rendered person: the scene before a camera, light, and what each pixel sees."""

from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image

from .backdrop import paint_backdrop, paint_occluder
from .bodies import load_bank
from .garments import dress_body
from .paint import Surface, paint
from .people import RenderedPerson, Shot
from .photograph import photograph
from .pose import pose_body, rotation
from .raster import interpolate, rasterize, vertex_normals
from .shapes import Mesh, join, times
from .things import carried_things


__all__ = [
    "SUPERSAMPLE",
    "Camera",
    "RenderedPicture",
    "build_figure",
    "draw_figure",
    "ground_shadow",
    "horizon_row",
    "reduced",
    "render_picture",
]

SUPERSAMPLE = 2
_NO_PERSON = -1


@dataclass(frozen=True)
class RenderedPicture:
    """A picture and what it shows of its person.

    Attributes:
        image: RGB.
        visible: part or thing -> how many pixels of the picture show it.
        whole: the same with nothing in front of it and the crop's edge away; about, for a thing that is not convex.
        boxes: part or thing -> left, top, right, bottom of what is visible, in pixels.
    """

    image: Image.Image
    visible: dict[str, int]
    whole: dict[str, int]
    boxes: dict[str, tuple[int, int, int, int]] = field(repr=False)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        return self.image.size


@dataclass(frozen=True)
class _Figure:
    """A person's meshes in the world's space, in metres; the person stands at the origin, turned to the camera."""

    mesh: Mesh
    parts: np.ndarray
    names: tuple[str, ...]
    person: RenderedPerson

    def shifted(self, shift: np.ndarray) -> "_Figure":
        return replace(self, mesh=self.mesh.moved(None, shift))


@dataclass(frozen=True)
class Camera:
    """Where the world's points are in the picture.

    `axes` holds right, down and forward as rows; a pixel is at `center + focal * (right, down) / forward`.
    """

    place: np.ndarray
    axes: np.ndarray
    focal: float
    center: np.ndarray
    width: int
    height: int

    def project(self, vertices: np.ndarray) -> np.ndarray:
        """Pixel x and y and distance, float32 `(V, 3)`."""
        view = times(vertices - self.place, self.axes.T)
        pixels = self.center + self.focal * view[:, :2] / view[:, 2:]
        return np.concatenate([pixels, view[:, 2:]], 1).astype(np.float32)


def build_figure(person: RenderedPerson, shot: Shot) -> _Figure:
    """All meshes of a person in a shot."""
    rng = np.random.default_rng((person.seed, person.person_id, 7))  # clothes and hair do not change between pictures
    bank = load_bank()
    body = bank.body(person.female, person.age, person.body)
    shells = dress_body(bank, body, person, rng)
    rng = np.random.default_rng((person.seed, person.person_id, 8, shot.seed))
    posed = pose_body(bank, body, person, shot, rng)
    meshes = [shell.posed(bank, posed) for shell in shells] + carried_things(person, shot, posed, rng)
    mesh, parts, names = join(meshes)
    turn = rotation("y", shot.azimuth).astype(np.float32)
    mesh = replace(mesh, vertices=times(mesh.vertices, turn.T))
    return _Figure(replace(mesh, normals=vertex_normals(mesh.vertices, mesh.faces)), parts, names, person)


def _aim_camera(figure: _Figure, shot: Shot) -> Camera:
    """The camera that makes the crop which the shot asks for."""
    pitch = np.radians(shot.pitch)
    forward = np.array([0, -np.sin(pitch), -np.cos(pitch)])
    down = np.array([0, -np.cos(pitch), np.sin(pitch)])
    axes = np.stack([np.array([1.0, 0, 0]), down, forward])
    mesh = figure.mesh
    framed = mesh.cut >= 0
    if "umbrella" in figure.names:  # a detector's box holds the person, not what is above
        framed[mesh.faces[figure.parts == figure.names.index("umbrella")]] = False
    seen = mesh.vertices[framed]
    middle = 0.5 * (seen.min(0) + seen.max(0))
    place = middle - forward * shot.distance
    raw = Camera(place, axes, 1.0, np.zeros(2), 0, 0)
    box = raw.project(seen)
    low, high = box[:, :2].min(0), box[:, :2].max(0)
    height = shot.height
    aspect = float(np.clip(max(shot.aspect, 1.04 * (high[0] - low[0]) / (high[1] - low[1]) / shot.zoom), 0.22, 0.75))
    width = max(16, round(height * aspect))
    focal = height * shot.zoom / (high[1] - low[1])
    center = np.array([width, height]) * (0.5 + np.array(shot.shift)) - focal * 0.5 * (low + high)
    scale = SUPERSAMPLE
    return Camera(place, axes, focal * scale, center * scale, width * scale, height * scale)


def _sun(shot: Shot) -> np.ndarray:
    azimuth, elevation = np.radians(shot.light[:2])
    return np.array([np.cos(elevation) * np.sin(azimuth), np.sin(elevation), np.cos(elevation) * np.cos(azimuth)])


def _shadow_map(figure: _Figure, sun: np.ndarray, size: int = 144):
    """Distances that the sun sees, and a function that says which points lie in the shadow."""
    helper = np.array([0.0, 1.0, 0.0]) if abs(sun[1]) < 0.95 else np.array([1.0, 0.0, 0.0])
    right = np.cross(helper, sun)
    right /= np.linalg.norm(right)
    axes = np.stack([right, np.cross(sun, right), -sun]).astype(np.float32)
    view = times(figure.mesh.vertices, axes.T)
    low, high = view.min(0), view.max(0)
    scale = size / (high[:2] - low[:2]).max()
    points = np.concatenate([(view[:, :2] - low[:2]) * scale, view[:, 2:] - low[2] + 1.0], 1).astype(np.float32)
    depth, _, _ = rasterize(points, figure.mesh.cut, figure.mesh.faces, size, size)

    def in_shadow(world: np.ndarray) -> np.ndarray:
        seen = times(world, axes.T)
        pixel = np.clip(((seen[:, :2] - low[:2]) * scale).astype(np.int32), 0, size - 1)
        return seen[:, 2] - low[2] + 1.0 - 0.03 > depth[pixel[:, 1], pixel[:, 0]]

    return in_shadow


@dataclass
class _Layer:
    """What a person looks like to the camera: only where `rows` (flat pixels) see something."""

    rows: np.ndarray
    depth: np.ndarray
    color: np.ndarray
    surface: Surface


def draw_figure(figure: _Figure, camera: Camera, shot: Shot, rng: np.random.Generator) -> _Layer:
    """What the camera sees of a figure in the light of a shot."""
    mesh = figure.mesh
    points = camera.project(mesh.vertices)
    depth, triangle, weights = rasterize(points, mesh.cut, mesh.faces, camera.height, camera.width)
    rows = np.flatnonzero(triangle.ravel() >= 0)
    triangle, weights = triangle.ravel()[rows], weights.reshape(-1, 2)[rows]
    values = np.concatenate([mesh.surface, mesh.arm[:, None], mesh.normals, mesh.vertices], 1)
    seen = interpolate(triangle, weights, mesh.faces, values)
    surface = Surface(seen[:, :3], seen[:, 3], figure.parts[triangle], figure.names)
    paint(surface, figure.person, rng)
    normal, world = seen[:, 4:7], seen[:, 7:10]
    normal = normal / (np.linalg.norm(normal, axis=1, keepdims=True) + 1e-6)
    away = ((camera.place - world) * normal).sum(1) < 0  # the inside of a sleeve or a hem
    normal[away] *= -1
    _, _, strength, sky = shot.light
    sun = _sun(shot)
    direct = np.maximum(times(normal, sun[:, None])[:, 0], 0)
    if strength > 0.3:
        direct = direct * (1 - 0.85 * _shadow_map(figure, sun)(world))
    # The sky is above, the ground throws some of it back; low and inner places see less of either.
    ambient = sky * (0.74 + 0.36 * normal[:, 1] + 0.10 * normal[:, 2])
    light = ambient + 0.9 * strength * direct
    light[away] *= 0.55
    color = np.clip(surface.color, 0.01, 1) ** 2.2 * light[:, None]
    color = np.clip(color, 0, 1) ** (1 / 2.2)
    return _Layer(rows, depth.ravel()[rows], color.astype(np.float32), surface)


def ground_shadow(
    figure: _Figure, camera: Camera, shot: Shot, *, feet: tuple[float, float, float] = (0.0, 0.0, 0.0)
) -> np.ndarray:
    """How dark the ground is around somebody who stands at `feet`, float32 `(height, width)` of the reduced picture,
    0 to 1."""
    sun, strength = _sun(shot), shot.light[2]
    vertices = figure.mesh.vertices
    flat = vertices - sun * (vertices[:, 1:2] / max(sun[1], 0.25))
    small = replace(
        camera, focal=camera.focal / 4, center=camera.center / 4, width=camera.width // 4 + 1,
        height=camera.height // 4 + 1,
    )  # fmt: skip
    _, triangle, _ = rasterize(small.project(flat), figure.mesh.cut, figure.mesh.faces, small.height, small.width)
    shadow = Image.fromarray(((triangle >= 0) * 255).astype(np.uint8))
    size = (camera.width // SUPERSAMPLE, camera.height // SUPERSAMPLE)
    dark = np.asarray(shadow.resize(size, Image.Resampling.BILINEAR), np.float32) / 255
    # Without sun a soft spot under the feet remains.
    x_feet, y_feet = small.project(np.array([feet]))[0, :2] * 4 / SUPERSAMPLE
    spread = camera.focal / SUPERSAMPLE / shot.distance
    y, x = np.ogrid[: size[1], : size[0]]
    spot = np.exp(-(((x - x_feet) / (0.32 * spread)) ** 2) - ((y - y_feet) / (0.14 * spread)) ** 2)
    return np.maximum(dark * 0.55 * min(1.0, strength * 1.4), spot * 0.4).astype(np.float32)


def horizon_row(camera: Camera, shot: Shot) -> int:
    """The row of the reduced picture where the ground ends."""
    return round((camera.center[1] - camera.focal * np.tan(np.radians(shot.pitch))) / SUPERSAMPLE)


def _bystanders(person: RenderedPerson, shot: Shot, rng: np.random.Generator) -> list[_Figure]:
    """Other people, behind this one or, as an occluder, before it."""
    figures = []
    places = [(number, False) for number in shot.others]
    if shot.occluder == "person":
        places.append((10_000_000 + shot.seed % 1_000_000, True))
    for number, before in places:
        other = RenderedPerson.sample(person.seed, number)
        seen = replace(Shot.sample(other, shot.index, shot.camera), light=shot.light)
        side = rng.choice((-1, 1))
        ahead = rng.uniform(0.6, 1.3) if before else -rng.uniform(0.3, 4.0)
        across = rng.uniform(0.25, 0.5) if before else rng.uniform(0.3, 1.0)
        figures.append(build_figure(other, seen).shifted(np.array([side * across, 0, ahead], np.float32)))
    return figures


def render_picture(person: RenderedPerson, shot: Shot) -> RenderedPicture:
    """Render one picture of a person: the same for the same arguments.

    Raises:
        ImportError: the extra `rendered` is not installed.
    """
    rng = np.random.default_rng((person.seed, person.person_id, 9, shot.seed, shot.index))
    figure = build_figure(person, shot)
    camera = _aim_camera(figure, shot)
    width, height = camera.width // SUPERSAMPLE, camera.height // SUPERSAMPLE
    place = np.random.default_rng((shot.seed, 10))
    background = paint_backdrop(width, height, horizon_row(camera, shot), shot.camera, place)
    background = background * (1 - ground_shadow(figure, camera, shot))[..., None]

    count = camera.width * camera.height
    depth = np.full(count, np.inf, np.float32)
    color = np.zeros((count, 3), np.float32)
    part = np.full(count, _NO_PERSON, np.int16)
    layers = [draw_figure(figure, camera, shot, np.random.default_rng((person.seed, person.person_id, 11)))]
    for other in _bystanders(person, shot, rng):
        layers.append(draw_figure(other, camera, shot, rng))
    for number, layer in enumerate(layers):
        nearer = layer.depth < depth[layer.rows]
        rows = layer.rows[nearer]
        depth[rows], color[rows] = layer.depth[nearer], layer.color[nearer]
        part[rows] = layer.surface.part[nearer] if number == 0 else _NO_PERSON
    color = reduced(color.reshape(camera.height, camera.width, 3))
    alpha = reduced(np.isfinite(depth).reshape(camera.height, camera.width, 1).astype(np.float32))
    pixels = color + (1 - alpha) * background
    part = part.reshape(camera.height, camera.width)
    if shot.occluder not in (None, "person"):
        over, cover = paint_occluder(shot.occluder, width, height, rng)
        pixels = pixels * (1 - cover[..., None]) + over * cover[..., None]
        hidden = (cover > 0.5).repeat(SUPERSAMPLE, 0).repeat(SUPERSAMPLE, 1)
        part = np.where(hidden, _NO_PERSON, part)
    names = layers[0].surface.names
    visible, boxes = _count(part, names)
    image = Image.fromarray(photograph(pixels, shot, rng))
    return RenderedPicture(image, visible, _whole(figure, camera), boxes)


def reduced(pixels: np.ndarray) -> np.ndarray:
    """The mean of each square of supersampled pixels."""
    steps = range(SUPERSAMPLE)
    return sum(pixels[i::SUPERSAMPLE, j::SUPERSAMPLE] for i in steps for j in steps) / np.float32(SUPERSAMPLE**2)


def _count(part: np.ndarray, names: list[str]) -> tuple[dict[str, int], dict[str, tuple[int, int, int, int]]]:
    """Visible pixels and box of each part, in pixels of the reduced picture."""
    counts = np.bincount(part[part >= 0], minlength=len(names))
    visible, boxes = {}, {}
    for number, name in enumerate(names):
        visible[name] = round(counts[number] / SUPERSAMPLE**2)
        if visible[name]:
            rows, columns = (np.flatnonzero((part == number).any(axis)) // SUPERSAMPLE for axis in (1, 0))
            boxes[name] = (int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1)
    return visible, boxes


def _whole(figure: _Figure, camera: Camera) -> dict[str, int]:
    """How many pixels each part would cover alone: the area of its triangles that face the camera.

    The parts are those of `paint`, so that a part's visible share is known also where the crop's edge cuts it off.
    """
    mesh = figure.mesh
    corners = mesh.faces
    points = camera.project(mesh.vertices)[:, :2]
    a, b, c = (points[corners[:, i]] for i in range(3))
    area = np.abs((b[:, 0] - a[:, 0]) * (c[:, 1] - a[:, 1]) - (c[:, 0] - a[:, 0]) * (b[:, 1] - a[:, 1])) / 2
    middle, normal = mesh.vertices[corners].mean(1), mesh.normals[corners].mean(1)
    facing = ((camera.place - middle) * normal).sum(1) > 0
    shown = facing & (mesh.cut[corners].mean(1) >= 0)
    surface = Surface(
        mesh.surface[corners[shown]].mean(1), mesh.arm[corners[shown]].mean(1), figure.parts[shown], figure.names
    )
    person = figure.person
    paint(surface, person, np.random.default_rng((person.seed, person.person_id, 11)))
    sizes = np.bincount(surface.part, weights=area[shown], minlength=len(surface.names))
    return {name: round(sizes[i] / SUPERSAMPLE**2) for i, name in enumerate(surface.names)}
