"""Where the parts of a drawn body are: what all drawing functions share."""

import math

from .pen import Point
from .people import Frame, SyntheticPerson


__all__ = ["SOLE_Y", "Body"]

SOLE_Y = 0.985  # where standing feet end: shoes are thick


class Body:
    """The measures of a person in one frame, and what they wear.

    Lengths are body heights: y runs from 0 (crown) to 1 (soles), x from the body's axis to where the person looks (in
    profile) or to the right of the picture. The near arm is the right one of the picture where it is no profile.

    Attributes:
        has: attribute name -> the person's answer is "yes".
        pattern, lower_type: labels of `UpperPattern` and `LowerType`.
        shades: thing -> color.
        back, profile, walking: the frame; neither back nor profile is the front.
        stride: how far the legs are apart, -1 to 1 by which leg is in front; 0 standing.
        lean: how far a stooping head is in front of the hips.
        head: x and y of its middle, half its width, about half its height.
        neck_x, chest_x: between head and hips the body leans less.
        shoulder_y, half_shoulder, hip_y, half_hip: height and half width.
        hem_y: lower edge of top or coat.
        torso: the outline of top or coat, six corners clockwise from the outer end of the left shoulder.
        leg_width: of trousers.
        near_hand, far_hand: where they are; what a hand holds moves it.
    """

    def __init__(self, person: SyntheticPerson, frame: Frame):
        traits = person.traits
        self.has = {name: answer == "yes" for name, answer in traits.items()}
        self.pattern, self.lower_type = traits["UpperPattern"], traits["LowerType"]
        self.shades = person.shades
        self.back, self.profile, self.walking = frame.view == "back", frame.view in ("left", "right"), frame.walking
        self.stride = _stride(frame)
        child, elderly = traits["Age"] == "child", traits["Age"] == "elderly"

        self.lean = 0.055 if elderly else 0.0  # elderly people are drawn with a stoop
        radius = 0.088 if child else 0.064
        head_x, head_y = self.lean + (0.012 if self.profile else 0.0), radius * 1.15
        self.head = (head_x, head_y, radius * (0.92 if self.profile else 0.84), radius)
        self.neck_x, self.chest_x = head_x * 0.8, self.lean * 0.7
        self.shoulder_y = head_y + radius * (1.5 if elderly else 1.75)
        self.half_shoulder = (
            (0.066 if self.profile else 0.105 if child else 0.122) * person.girth * (0.9 if elderly else 1.0)
        )
        self.hip_y = self.shoulder_y + (0.31 if child else 0.345)
        self.half_hip = (0.058 if self.profile else 0.088) * person.girth
        self.hem_y = self.hip_y + (0.22 if self.has["LongCoat"] else 0.03)
        self.torso = self._torso()
        self.leg_width = 0.072 if child else 0.078
        self.near_hand, self.far_hand = self._hands()

    def _torso(self) -> list[Point]:
        x, y, half = self.chest_x, self.shoulder_y, self.half_shoulder
        half_hem = self.half_hip + (0.035 if self.has["LongCoat"] else 0.0)
        return [
            (x - half, y + 0.02), (x - half * 0.5, y - 0.015), (x + half * 0.5, y - 0.015), (x + half, y + 0.02),
            (half_hem, self.hem_y), (-half_hem, self.hem_y),
        ]  # fmt: skip

    def _hands(self) -> tuple[Point, Point]:
        """The near and the far hand."""
        has, profile, stride, hip_y, beside = self.has, self.profile, self.stride, self.hip_y, self.half_shoulder
        head_x, head_y, _, radius = self.head
        if profile:
            near, far = (0.06 + 0.13 * stride, hip_y + 0.03), (-0.13 * stride, hip_y + 0.03)
        else:
            near = (beside + 0.055, hip_y + 0.03 - 0.02 * stride)
            far = (-beside - 0.055, hip_y + 0.03 + 0.02 * stride)
        if has["CarryingInFront"]:
            near = (0.17, hip_y - 0.10) if profile else (0.10, hip_y - 0.10)
            far = (0.15, hip_y - 0.08) if profile else (-0.10, hip_y - 0.10)
        if has["Phone"]:
            near = (head_x + 0.055, head_y + 0.03) if profile else (radius + 0.03, head_y + 0.03)
        if has["Umbrella"]:
            far = (0.10 if profile else -beside - 0.03, self.shoulder_y + 0.10)
        if has["Cane"] and has["Umbrella"]:
            near = (0.14 if profile else beside + 0.08, hip_y + 0.01)
        elif has["Cane"]:
            far = (0.14 if profile else -beside - 0.08, hip_y + 0.01)
        return near, far


def _stride(frame: Frame) -> float:
    if not frame.walking:
        return 0.0
    stride = math.sin(2 * math.pi * frame.phase)
    # The legs of who walks are never quite together: a still picture could not tell that from standing.
    return math.copysign(0.45, stride or 1.0) if abs(stride) < 0.45 else stride
