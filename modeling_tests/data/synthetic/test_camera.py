import numpy as np
import pytest

from vlm_par_hf.data.synthetic import Frame, SyntheticPerson, render_person, render_tracklet


def test_same_arguments_draw_the_same_picture():
    person = SyntheticPerson.sample(3, 14)
    frame = Frame.sample(person, 1)
    first, second = render_person(person, frame), render_person(SyntheticPerson.sample(3, 14), Frame.sample(person, 1))
    assert first.tobytes() == second.tobytes()
    assert first.size == (96, 192) and first.mode == "RGB"
    other = render_person(person, Frame.sample(person, 2))
    assert other.tobytes() != first.tobytes()


def test_the_second_camera_is_another_domain():
    people = [SyntheticPerson.sample(0, number) for number in range(60)]

    def mean_color(camera):
        return np.mean([np.asarray(render_person(p, Frame.sample(p, 0, camera))).mean((0, 1)) for p in people], 0)

    first, second = mean_color(0), mean_color(1)
    assert first[0] - second[0] > 15  # less red


def test_tracklets_keep_the_view_and_go_on_walking():
    person = SyntheticPerson.sample(0, 5)
    frames = [frame for _, frame in render_tracklet(person, 5)]
    assert len({f.view for f in frames}) == 1 and len({f.phase for f in frames}) == 5
    pictures = {picture.tobytes() for picture, _ in render_tracklet(person, 3)}
    assert len(pictures) == 3
    with pytest.raises(ValueError, match="num_frames is 0"):
        render_tracklet(person, 0)
