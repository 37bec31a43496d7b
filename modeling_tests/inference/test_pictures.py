"""How pictures are read: every kind of source, a few ahead, by threads, and what cannot be read."""

import io
import itertools
import os
import threading
import time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence
from transformers.pipelines.pt_utils import KeyDataset

from modeling_tests.crops import Rows, close, crop, make_pipe
from vlm_par_hf.inference import pictures
from vlm_par_hf.inference.pictures import TASK


class TestSources:
    def test_all_kinds_of_source_agree(self, pipe, tmp_path):
        image = crop()
        path = tmp_path / "crop.png"
        image.save(path)
        data = path.read_bytes()
        expected = pipe(image)
        array = np.asarray(image)
        tensor = torch.from_numpy(array.copy())
        sources = (str(path), path, data, bytearray(data), io.BytesIO(data), array, tensor, array / 255.0)
        for source in (*sources, {"image": image}, {"bytes": data, "path": None}, {"image": {"bytes": data}}):
            assert close(pipe(source), expected, 1e-4), type(source)

    def test_url(self, pipe, tmp_path):
        crop().save(tmp_path / "crop.png")
        (tmp_path / "page.html").write_text("<html>")
        handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        server.RequestHandlerClass.log_message = lambda *args: None
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            here = {"allow_private_urls": True, "timeout": 5}
            assert close(pipe(f"{address}/crop.png", **here), pipe(crop()))
            assert close(pipe([f"{address}/crop.png"], **here), [pipe(crop())])
            with pytest.raises(ValueError, match="could not read http://.*missing.png: .*404"):
                pipe(f"{address}/missing.png", **here)
            with pytest.raises(ValueError, match="page.html holds no picture"):
                pipe(f"{address}/page.html", **here)
            with pytest.raises(ValueError, match="the address 127.0.0.1, which is not public"):
                pipe(f"{address}/crop.png")
            for rows in (iter([f"{address}/crop.png"]), [{"image": f"{address}/crop.png"}]):
                with pytest.raises(ValueError, match="item 0 .*is a URL, .*only with allow_urls=True"):
                    list(pipe(rows, **here))
            rows = [{"image": {"path": f"{address}/crop.png", "bytes": None}}]
            assert close(pipe(rows, allow_urls=True, **here), [pipe(crop())])
            with pytest.raises(ValueError, match="is a URL"):
                pipe(f"{address}/crop.png", allow_urls=False, **here)
        finally:
            server.shutdown()
            server.server_close()


class TestReading:
    pictures = [crop(seed, size=(10 + 7 * seed, 60 - 5 * seed)) for seed in range(7)]

    @pytest.mark.parametrize("threads", [0, 1, 3])
    def test_memory_is_bounded(self, naflex, threads):
        taken = []

        def endless():
            for index in itertools.count():
                taken.append(index)
                yield self.pictures[0]

        stream = naflex(endless(), batch_size=4, num_workers=threads)
        assert not taken
        for count, _ in enumerate(itertools.islice(stream, 10), 1):
            # A batch that is answered, and one with an item per thread that is prepared; without threads none.
            assert len(taken) <= count + 4 + (4 + threads if threads else 0)

    def test_large_pictures_are_opened_a_few_ahead(self, naflex):
        taken = []

        def frames():
            for index in range(50):
                taken.append(index)
                yield {"image": self.pictures[0], "boxes": [[0, 0, 5, 5]] * 20}

        next(naflex(frames(), batch_size=16, num_workers=2))
        assert len(taken) <= 4  # not 16 + 2

    def test_empty_pictures_do_not_pile_up(self, naflex):
        taken = []

        def pictures():
            for index in range(200):
                taken.append(index)
                yield {"image": self.pictures[0], "boxes": [[0, 0, 5, 5]] if index == 0 else []}

        first = next(naflex(pictures(), batch_size=4, num_workers=2))
        assert len(first) == 1 and len(taken) <= 19

    @pytest.mark.parametrize("threads", [0, 1, 3, 20])
    def test_threads_change_nothing(self, pipe, tmp_path, threads):
        paths = []
        for index, picture in enumerate(self.pictures):
            paths.append(str(tmp_path / f"{index}.png"))
            picture.save(paths[-1])
        state = torch.get_rng_state()
        expected = [pipe(picture) for picture in self.pictures]
        for inputs in (paths, iter(paths), self.pictures, [Path(path).read_bytes() for path in paths]):
            assert close(list(pipe(inputs, num_workers=threads, batch_size=3)), expected)
        assert torch.equal(state, torch.get_rng_state())
        boxes = [[[0, 0, 8, 8], [1, 1, 9, 9]], [], *[[[0, 0, 4, 20 - index]] * index for index in range(5)]]
        expected = [pipe(picture, boxes=one) for picture, one in zip(self.pictures, boxes)]
        assert close(pipe(paths, boxes=boxes, num_workers=threads, batch_size=3), expected)
        with pytest.raises(FileNotFoundError, match=r"^item 1 \(.*gone.png\)"):
            pipe([paths[0], str(tmp_path / "gone.png")], num_workers=threads)

    def test_threads_open_while_the_model_answers(self, tmp_path, monkeypatch):
        pipe = make_pipe()
        crop().save(tmp_path / "crop.png")
        opened = []
        open_picture = pictures.open_picture

        def noted(source, **options):
            opened.append(threading.current_thread().name)
            return open_picture(source, **options)

        monkeypatch.setattr(pictures, "open_picture", noted)
        forward, answered = pipe.model.forward, []

        def waiting(pixel_values, **inputs):
            # The next four come in while this forward lasts; were they opened by its thread, they never would.
            deadline = time.monotonic() + 20
            while len(opened) < min(12, len(answered) + 8):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            answered.extend(pixel_values)
            return forward(pixel_values, **inputs)

        monkeypatch.setattr(pipe.model, "forward", waiting)
        pipe([str(tmp_path / "crop.png")] * 12, batch_size=4, num_workers=1)
        assert len(opened) == len(answered) == 12
        assert all(name.startswith(TASK) for name in opened)

    def test_the_caller_may_go_on_with_his_picture(self, naflex):
        colors = ["red", "green", "blue", "white", "black", "gray"]
        expected = [naflex(Image.new("RGB", (24, 48), color)) for color in colors]

        def one_canvas():
            canvas, array = Image.new("RGB", (24, 48)), np.zeros((48, 24, 3), np.uint8)
            for index, color in enumerate(colors):
                canvas.paste(color, (0, 0, 24, 48))
                array[:] = canvas
                yield canvas if index % 2 else array

        assert close(list(naflex(one_canvas(), batch_size=2, num_workers=2)), expected)

    def test_an_animation_frame_by_frame(self, naflex, tmp_path):
        frames = [crop(seed) for seed in range(4)]
        frames[0].save(tmp_path / "film.png", save_all=True, append_images=frames[1:])
        with Image.open(tmp_path / "film.png") as film:
            found = list(naflex(ImageSequence.Iterator(film), batch_size=2, num_workers=2))
        assert close(found, naflex(frames))

    def test_an_abandoned_stream_ends_its_threads(self, naflex):
        def readers():
            return [thread for thread in threading.enumerate() if thread.name.startswith(TASK)]

        def wait_for_none():
            deadline = time.monotonic() + 30
            while readers() and time.monotonic() < deadline:
                time.sleep(0.01)
            assert not readers()

        wait_for_none()  # those of other tests
        stream = naflex(itertools.repeat(self.pictures[0]), batch_size=2, num_workers=3)
        next(stream)
        assert readers()
        del stream
        wait_for_none()

    def test_an_image_column_is_decoded_by_threads(self, naflex, tmp_path):
        datasets = pytest.importorskip("datasets")
        (tmp_path / "bad.jpg").write_bytes(b"<html>404</html>")
        crop().save(tmp_path / "good.png")
        paths = [str(tmp_path / "good.png"), str(tmp_path / "bad.jpg")]
        dataset = datasets.Dataset.from_dict({"picture": paths}).cast_column("picture", datasets.Image())
        stream = naflex(KeyDataset(dataset, "picture"))
        assert close(next(stream), naflex(crop()))
        with pytest.raises(ValueError, match=r"item 1: image .*bad.jpg' is a web page, not an image"):
            next(stream)
        black = dataset.with_transform(lambda batch: {"image": [Image.new("RGB", (9, 9)) for _ in batch["picture"]]})
        assert close(next(naflex(black)), naflex(Image.new("RGB", (9, 9))))

    def test_an_error_names_the_item_and_comes_after_the_answers_before_it(self, naflex, tmp_path):
        bad = tmp_path / "bad.jpg"
        bad.write_bytes(b"no picture")
        items = [*self.pictures[:3], str(bad), *self.pictures[3:]]
        with pytest.raises(ValueError, match=r"item 3 \(.*bad.jpg\): "):
            naflex(items, batch_size=2)
        stream = naflex(iter(items), batch_size=100)
        assert len(list(itertools.islice(stream, 3))) == 3
        with pytest.raises(ValueError, match=r"item 3 \(.*bad.jpg\): "):
            next(stream)
        with pytest.raises(TypeError, match="item 1: "):
            naflex([self.pictures[0], None])

    def test_a_data_set_that_fails_names_the_item(self, naflex):
        class Broken(Rows):
            def __getitem__(self, index):
                if index == 2:
                    raise OSError("cannot decode")
                return super().__getitem__(index)

        with pytest.raises(OSError, match="item 2: cannot decode"):
            list(naflex(Broken(self.pictures)))


def written(tmp_path, name, image, **options):
    path = tmp_path / name
    image.save(path, **options)
    return path


class TestBadInput:
    def test_odd_pictures_are_read(self, pipe, tmp_path):
        image = crop(5)
        odd = {
            "grey": written(tmp_path, "grey.png", image.convert("L")),
            "bilevel": written(tmp_path, "bilevel.png", image.convert("1")),
            "rgba": written(tmp_path, "rgba.png", image.convert("RGBA")),
            "cmyk": written(tmp_path, "cmyk.jpg", image.convert("CMYK")),
            "palette": written(tmp_path, "palette.gif", image.convert("P")),
            "16-bit": written(tmp_path, "deep.png", Image.fromarray(np.full((48, 24), 40000, dtype=np.uint16))),
            "animated": written(tmp_path, "film.gif", image, save_all=True, append_images=[crop(6)]),
            "pixel": written(tmp_path, "pixel.png", image.crop((0, 0, 1, 1))),
            "line": written(tmp_path, "line.png", crop(1, size=(1, 400))),
            "webp": written(tmp_path, "picture.webp", image),
        }
        alone = {name: pipe(str(path)) for name, path in odd.items()}
        for name, result in alone.items():
            scores = [answer["score"] for answer in result["attributes"].values()]
            assert np.isfinite(scores).all(), name
        together = pipe([str(path) for path in odd.values()], batch_size=4)
        assert close(together, list(alone.values()))
        assert close(alone["rgba"], pipe(image))

    def test_orientation_tag(self, pipe, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 3
        turned = written(tmp_path, "turned.png", crop().transpose(Image.Transpose.ROTATE_180), exif=exif)
        assert close(pipe(turned), pipe(crop()))

    @pytest.mark.parametrize(
        "make, message",
        [
            (lambda p: written(p, "x.jpg", crop(size=(200, 200))).read_bytes()[:400], "truncated|cannot be read"),
            (lambda p: b"", "cannot be read"),
            (lambda p: np.full((8, 8, 3), np.nan), "NaN"),
            (lambda p: np.zeros((3, 64, 32), dtype=np.uint8), "channels"),
            (lambda p: np.zeros((2, 8, 8, 3), dtype=np.uint8), "expected one image"),
            (lambda p: np.zeros((0, 8, 3), dtype=np.uint8), "shape"),
            (lambda p: Image.new("L", (100_000, 1_000)), "expected at most"),
        ],
    )
    def test_unreadable_pictures_are_refused(self, naflex, tmp_path, make, message):
        source = make(tmp_path)
        with pytest.raises(ValueError, match=message):
            naflex(source)
        with pytest.raises(ValueError, match=f"item 1.*({message})"):
            naflex([crop(), source])

    def test_other_things(self, naflex, tmp_path):
        with pytest.raises(FileNotFoundError, match="nowhere.jpg"):
            naflex(str(tmp_path / "nowhere.jpg"))
        with pytest.raises(TypeError, match="inputs is 3, expected a picture"):
            naflex(3)
        with pytest.raises(TypeError, match="inputs and images are two names of the pictures, and neither was given"):
            naflex(None)
        with pytest.raises(ValueError, match="dict with the keys picture was given, expected the key 'image'"):
            naflex({"picture": crop()})
        with pytest.raises(ValueError, match="as an argument and in the dict"):
            naflex({"image": crop(), "boxes": []}, boxes=[])


@pytest.mark.skipif("PAR_DATA" not in os.environ, reason="PAR_DATA names no folder with real images")
def test_real_photographs(naflex):
    paths = sorted(Path(os.environ["PAR_DATA"]).rglob("*.jpg"))[:40]
    assert len(paths) == 40
    results = naflex([str(path) for path in paths], batch_size=16)
    alone = [naflex(path) for path in paths[:5]]
    assert close(results[:5], alone) and len(results) == 40
