import numpy as np
import pytest

from vlm_par_hf.data.synthetic.rendered.raster import interpolate, rasterize, smoothed, vertex_normals


pytest.importorskip("numba")


@pytest.fixture
def scene():
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.uniform(-6, 30, (60, 2)), rng.uniform(1, 3, (60, 1))], 1).astype(np.float32)
    return points, rng.uniform(-0.5, 1, 60).astype(np.float32), rng.integers(0, 60, (40, 3)).astype(np.int32)


def _plain(points, cut, faces, height, width):
    """The nearest triangle over each pixel's middle, one pixel and one triangle after the other."""
    depth, triangle = np.full((height, width), np.inf), np.full((height, width), -1)
    for y in range(height):
        for x in range(width):
            for t, (a, b, c) in enumerate(faces):
                matrix = np.array([[points[i, 0], points[i, 1], 1.0] for i in (a, b, c)]).T
                if abs(np.linalg.det(matrix)) < 1e-9:
                    continue
                shares = np.linalg.solve(matrix, (x + 0.5, y + 0.5, 1.0))
                z = shares @ points[[a, b, c], 2]
                if (shares >= 0).all() and shares @ cut[[a, b, c]] >= 0 and z < depth[y, x]:
                    depth[y, x], triangle[y, x] = z, t
    return depth, triangle


def test_each_pixel_sees_the_nearest_triangle_that_has_no_hole_there(scene):
    points, cut, faces = scene
    depth, triangle, weights = rasterize(points, cut, faces, 20, 24)
    expected_depth, expected_triangle = _plain(points, cut, faces, 20, 24)
    same = triangle == expected_triangle
    assert same.mean() > 0.995  # an edge that runs through a pixel's middle is on either side
    np.testing.assert_allclose(depth[same], expected_depth[same], rtol=1e-4)
    assert (triangle >= 0).mean() > 0.3 and (triangle < 0).any()
    rows = np.flatnonzero(triangle.ravel() >= 0)
    seen = interpolate(triangle.ravel()[rows], weights.reshape(-1, 2)[rows], faces, points)
    middles = np.stack([rows % 24, rows // 24], 1) + 0.5
    np.testing.assert_allclose(seen[:, :2], middles, atol=1e-3)
    np.testing.assert_allclose(seen[:, 2], depth.ravel()[rows], rtol=1e-4)


def test_what_is_behind_the_camera_is_not_seen(scene):
    points, cut, faces = scene
    points[:, 2] = -1
    assert (rasterize(points, cut, faces, 20, 24)[1] == -1).all()


def test_normals_of_a_ball_point_outwards():
    from vlm_par_hf.data.synthetic.rendered.shapes import ball

    mesh = ball("ball", (1.0, 1.0, 1.0), rows=12, columns=24)
    normals = vertex_normals(mesh.vertices, mesh.faces)
    outwards = np.abs((normals * mesh.vertices).sum(1))
    assert outwards[24:-24].min() > 0.95


def test_smoothing_goes_half_way_to_the_neighbours():
    vertices = np.array([[0, 0, 0], [4, 0, 0], [8, 4, 0]], np.float32)
    neighbours = np.array([[1, 1], [0, 2], [1, 1]], np.int32)
    np.testing.assert_allclose(smoothed(vertices, neighbours, 1), [[2, 0, 0], [4, 1, 0], [6, 2, 0]])
