"""Actors: walking people, cyclists, birds and vehicles, drawn with sub-pixel positions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import cos, pi, sin

import cv2
import numpy as np

from iefvad.data.synth.scene import HEIGHT, WIDTH, Colour, Image, Scene, jitter, shade

SHIFT = 4  # fractional bits of cv2's drawing coordinates
CLOTHES: tuple[Colour, ...] = (
    (52, 56, 70), (96, 60, 56), (62, 84, 118), (206, 202, 194), (120, 116, 108), (70, 92, 72),
    (170, 150, 110), (40, 40, 44), (150, 74, 66), (92, 110, 138),
)  # fmt: skip
PAINTS: tuple[Colour, ...] = (
    (190, 190, 192),
    (44, 46, 52),
    (150, 40, 40),
    (52, 78, 128),
    (224, 222, 214),
    (90, 96, 90),
)


def _fixed(x: float, y: float) -> tuple[int, int]:
    return round(x * (1 << SHIFT)), round(y * (1 << SHIFT))


def line(image: Image, x0: float, y0: float, x1: float, y1: float, colour: Colour, width: float) -> None:
    """Draw an anti-aliased line between two points given in pixels."""
    cv2.line(image, _fixed(x0, y0), _fixed(x1, y1), colour, max(1, round(width)), cv2.LINE_AA, SHIFT)


def disc(image: Image, x: float, y: float, radius: float, colour: Colour) -> None:
    """Draw an anti-aliased filled circle."""
    cv2.circle(image, _fixed(x, y), round(radius * (1 << SHIFT)), colour, -1, cv2.LINE_AA, SHIFT)


def polygon(image: Image, points: list[tuple[float, float]], colour: Colour) -> None:
    """Draw an anti-aliased filled convex polygon."""
    cv2.fillConvexPoly(image, np.array([_fixed(x, y) for x, y in points], np.int32), colour, cv2.LINE_AA, SHIFT)


def shadow(image: Image, x: float, y: float, half_width: float, half_height: float) -> None:
    """Darken the ground under an actor."""
    x0, x1 = max(int(x - half_width), 0), min(int(x + half_width) + 1, WIDTH)
    y0, y1 = max(int(y - half_height), 0), min(int(y + half_height) + 1, HEIGHT)
    if x0 < x1 and y0 < y1:
        rows, columns = np.ogrid[y0:y1, x0:x1]
        inside = ((columns - x) / half_width) ** 2 + ((rows - y) / half_height) ** 2
        box = image[y0:y1, x0:x1]
        box[:] = (box * (1 - 0.3 * np.clip(1.6 * (1 - inside), 0, 1))[:, :, None]).astype(np.uint8)


@dataclass
class Pose:
    """Pose of a body.

    Attributes:
        gait: Phase of the steps in radians.
        stride: Length of a step as a fraction of a leg.
        arm_left: Angle of the left arm in radians.
        arm_right: Angle of the right arm in radians.
        tilt: Tilt of the body in radians.
    """

    gait: float = 0.0
    stride: float = 0.35
    arm_left: float = 0.0
    arm_right: float = 0.0
    tilt: float = 0.0


class Person:
    """A walker: walks along its walkway, sometimes stops, and comes back after it has left the picture."""

    def __init__(self, rng: np.random.Generator, scene: Scene, *, y: float | None = None, x: float | None = None):
        self.rng, self.scene = rng, scene
        self.y = scene.walkway_row(rng) if y is None else y
        self.x = float(rng.uniform(0, WIDTH)) if x is None else x
        self.size = float(rng.uniform(0.9, 1.08))
        self.pace = float(rng.uniform(0.026, 0.042))  # body heights per frame
        self.heading = float(rng.choice([-1.0, 1.0]))
        self.drift = float(rng.uniform(-0.12, 0.12))
        self.phase = float(rng.uniform(0, 2 * pi))
        self.shirt = jitter(rng, CLOTHES[int(rng.integers(len(CLOTHES)))], 22)
        self.trousers = jitter(rng, CLOTHES[int(rng.integers(len(CLOTHES)))], 18)
        self.skin = jitter(rng, ((222, 180, 150), (150, 108, 82), (96, 66, 50))[int(rng.integers(3))], 10)
        self.pause = 0
        self.pose = Pose()
        # Replaces ordinary behaviour; returns True if it has moved the person in this frame.
        self.script: Callable[[Person, int], bool] | None = None

    @property
    def height(self) -> float:
        """Height in pixels at the present place."""
        return self.size * self.scene.person_height(self.y)

    def step(self, t: int) -> None:
        """Move by one frame."""
        if self.script is not None and self.script(self, t):
            return
        self.stroll()

    def stroll(self) -> None:
        """Do one frame of ordinary behaviour."""
        if self.pause > 0:
            self.pause -= 1
            self.stand()
        else:
            self.walk(self.heading * self.pace)
            if self.rng.random() < 0.003:
                self.pause = int(self.rng.integers(15, 70))

    def stand(self) -> None:
        """Stand for one frame, with small movements."""
        self.phase += 0.05
        self.pose = Pose(0.0, 0.12, 0.1 * sin(self.phase), -0.1 * sin(self.phase))

    def walk(self, speed: float) -> None:
        """Walk for one frame at `speed` body heights per frame (negative: to the left)."""
        height = self.height
        self.heading = 1.0 if speed > 0 else -1.0
        self.x += speed * height
        self.y += self.drift * abs(speed) * height
        top, bottom = self._band()
        if not top <= self.y <= bottom:
            self.y = min(max(self.y, top), bottom)
            self.drift = -self.drift
        margin = 0.4 * height
        if self.x < -margin or self.x > WIDTH + margin:
            self.x = min(max(self.x, -margin), WIDTH + margin)
            self.heading = -self.heading
            self.y = self.scene.walkway_row(self.rng)
            self.pause = int(self.rng.integers(0, 40))
        self.phase += 5.5 * abs(speed)
        swing = min(0.35 + 4.0 * abs(speed), 0.65)
        self.pose = Pose(self.phase, swing, swing * sin(self.phase), -swing * sin(self.phase), 1.1 * speed)

    def _band(self) -> tuple[float, float]:
        return min(b[0] for b in self.scene.walkways), max(b[1] for b in self.scene.walkways)

    def draw(self, image: Image) -> None:
        """Draw shadow, legs, trunk, arms and head."""
        h, pose = self.height, self.pose
        ax, ay = sin(pose.tilt), -cos(pose.tilt)  # body axis, from feet to head
        width = max(1.0, 0.085 * h)
        shadow(image, self.x + 0.25 * h * ax, self.y, 0.22 * h + 0.3 * h * abs(ax), 0.055 * h + 1)

        def at(along: float, across: float = 0.0) -> tuple[float, float]:
            return self.x + h * (along * ax - across * ay), self.y - 0.02 * h + h * (along * ay + across * ax)

        hip, neck = at(0.47), at(0.8)
        for side in (-1, 1):
            reach = 0.42 * pose.stride * sin(pose.gait + (pi if side < 0 else 0.0)) + 0.035 * side
            lift = 0.06 * pose.stride * max(0.0, cos(pose.gait + (pi if side < 0 else 0.0)))
            foot = at(0.02 + lift, reach * 0.55)
            line(image, *hip, *foot, shade(self.trousers, 0.9 if side < 0 else 1.0), width)
        polygon(image, [at(0.45, -0.085), at(0.45, 0.085), at(0.8, 0.115), at(0.8, -0.115)], self.shirt)
        for side, angle in ((-1, pose.arm_left), (1, pose.arm_right)):
            shoulder = at(0.78, 0.1 * side)
            hand = at(0.78 - 0.34 * cos(angle), 0.1 * side + 0.34 * sin(angle))
            line(image, *shoulder, *hand, shade(self.shirt, 0.82), 0.8 * width)
            disc(image, *hand, 0.03 * h, self.skin)
        line(image, *neck, *at(0.86), self.skin, width)
        disc(image, *at(0.91), 0.075 * h, self.skin)
        disc(image, *at(0.945), 0.06 * h, (48, 38, 32))


class Chatters:
    """Two people who stand together and gesture. In a single picture this looks like a scuffle."""

    def __init__(self, rng: np.random.Generator, scene: Scene):
        x, self.y = float(rng.uniform(0.25, 0.75)) * WIDTH, scene.walkway_row(rng)
        gap = 0.2 * scene.person_height(self.y)
        self.pair = [Person(rng, scene, x=x + s * gap, y=self.y) for s in (-1, 1)]

    def step(self, t: int) -> None:
        """Make calm gestures."""
        for i, person in enumerate(self.pair):
            person.phase += 0.09
            person.pose = Pose(0.0, 0.15, 0.5 * sin(person.phase), 0.4 * cos(1.3 * person.phase + i))

    def draw(self, image: Image) -> None:
        """Draw both people."""
        for person in self.pair:
            person.draw(image)


class Cyclist(Person):
    """A fast but ordinary cyclist, at about half the speed of a sprint."""

    def __init__(self, rng: np.random.Generator, scene: Scene):
        super().__init__(rng, scene)
        self.pace = float(rng.uniform(0.05, 0.068))
        self.drift = 0.0
        self.wait = int(rng.integers(0, 120))
        self.x = -20.0 if self.heading > 0 else WIDTH + 20.0

    def step(self, t: int) -> None:
        """Ride across the picture, wait outside, and come back."""
        if self.wait > 0:
            self.wait -= 1
            return
        self.x += self.heading * self.pace * self.height
        self.phase += 0.25
        self.pose = Pose(self.phase, 0.3, 0.9 * self.heading, 0.9 * self.heading, 0.3 * self.heading)
        if not -21 < self.x < WIDTH + 21:
            self.heading, self.wait = -self.heading, int(self.rng.integers(80, 260))
            self.y = self.scene.walkway_row(self.rng)

    def draw(self, image: Image) -> None:
        """Draw the rider over the bicycle."""
        h = self.height
        wheel = 0.17 * h
        for side in (-1, 1):
            centre = _fixed(self.x + side * 0.27 * h, self.y - wheel)
            cv2.circle(image, centre, round(wheel * (1 << SHIFT)), (34, 34, 36), 1, cv2.LINE_AA, SHIFT)
        line(image, self.x - 0.27 * h, self.y - wheel, self.x + 0.27 * h, self.y - 1.6 * wheel, self.trousers, 1)
        foot, self.y = self.y, self.y - 0.18 * h
        super().draw(image)
        self.y = foot


class Bird:
    """A small fast thing in the air that nobody threw."""

    def __init__(self, rng: np.random.Generator):
        self.rng = rng
        self._launch(int(rng.integers(0, 200)))

    def _launch(self, wait: int) -> None:
        self.wait, self.heading = wait, float(self.rng.choice([-1.0, 1.0]))
        self.x = -6.0 if self.heading > 0 else WIDTH + 6.0
        self.height, self.speed = float(self.rng.uniform(8, 60)), float(self.rng.uniform(2.0, 3.2))
        self.y = 0.0  # drawn first, behind everyone

    def step(self, t: int) -> None:
        """Fly across the picture from time to time."""
        self.wait -= 1
        if self.wait <= 0:
            self.x += self.heading * self.speed
            self.height += 0.5 * sin(0.2 * self.x)
            if not -7 < self.x < WIDTH + 7:
                self._launch(int(self.rng.integers(120, 320)))

    def draw(self, image: Image) -> None:
        """Draw two moving wings."""
        beat = 1.5 * sin(0.9 * self.x)
        for side in (-1, 1):
            line(image, self.x, self.height, self.x + 2.6 * side, self.height - beat, (40, 40, 44), 1)


class Vehicle:
    """A car or van, seen from the side. `x` is its middle and `y` the row of its wheels, in pixels."""

    def __init__(self, rng: np.random.Generator, scene: Scene, *, x: float, y: float, heading: float = 1.0):
        self.rng, self.x, self.y, self.heading = rng, x, y, heading
        self.van = bool(rng.random() < 0.4)
        self.unit = scene.person_height(y) * 1.12  # the height of a car
        self.paint = jitter(rng, PAINTS[int(rng.integers(len(PAINTS)))], 12)
        self.speed = 0.0

    @property
    def length(self) -> float:
        """Length in pixels."""
        return self.unit * (1.75 if self.van else 1.85)

    def step(self, t: int) -> None:
        """Drive at its speed, in pixels per frame."""
        self.x += self.heading * self.speed

    def draw(self, image: Image) -> None:
        """Draw shadow, body, cabin, windows, wheels and lamps."""
        half, u, f = self.length / 2, self.unit, self.heading
        if self.x + half < -2 or self.x - half > WIDTH + 2:
            return
        shadow(image, self.x, self.y, 1.05 * half, 0.1 * u + 1)

        def at(along: float, up: float) -> tuple[float, float]:
            return self.x + f * along * half, self.y - up * u

        glass: Colour = (58, 68, 82)
        if self.van:
            body = [at(-1, 0.14), at(-1, 0.95), at(0.55, 0.95), at(0.8, 0.6), at(1, 0.5), at(1, 0.14)]
            polygon(image, body, self.paint)
            polygon(image, [at(0.38, 0.86), at(0.53, 0.86), at(0.74, 0.58), at(0.38, 0.58)], glass)
            line(image, *at(-0.98, 0.52), *at(0.3, 0.52), shade(self.paint, 0.8), 1)
        else:
            polygon(image, [at(-1, 0.14), at(-0.97, 0.47), at(0.95, 0.44), at(1, 0.14)], self.paint)
            polygon(image, [at(-0.72, 0.45), at(-0.5, 0.76), at(0.18, 0.76), at(0.5, 0.44)], shade(self.paint, 0.92))
            polygon(image, [at(-0.6, 0.48), at(-0.44, 0.71), at(-0.14, 0.71), at(-0.14, 0.48)], glass)
            polygon(image, [at(-0.07, 0.48), at(-0.07, 0.71), at(0.14, 0.71), at(0.38, 0.48)], glass)
        line(image, *at(-0.98, 0.2), *at(0.98, 0.2), shade(self.paint, 0.65), 1)
        for wheel in (-0.62, 0.6):
            disc(image, *at(wheel, 0.15), 0.16 * u, (26, 26, 28))
            disc(image, *at(wheel, 0.15), 0.07 * u, (136, 136, 138))
        disc(image, *at(0.95, 0.34), 0.05 * u, (250, 240, 200))
        disc(image, *at(-0.95, 0.34), 0.05 * u, (180, 40, 36))


class Traffic(Vehicle):
    """A vehicle that stays in its lane of the road and returns after some time."""

    def __init__(self, rng: np.random.Generator, scene: Scene, lane: int):
        heading = 1.0 if lane % 2 else -1.0
        super().__init__(rng, scene, x=float(rng.uniform(-40, WIDTH + 40)), y=scene.lanes[lane], heading=heading)
        self.speed = float(rng.uniform(1.4, 3.0))

    def step(self, t: int) -> None:
        """Drive. Outside the picture it becomes another car after a gap."""
        super().step(t)
        if self.heading * (self.x - WIDTH / 2) > WIDTH / 2 + self.length:
            self.x = WIDTH / 2 - self.heading * (WIDTH / 2 + self.length + float(self.rng.uniform(0, 260)))
            self.paint = jitter(self.rng, PAINTS[int(self.rng.integers(len(PAINTS)))], 12)
            self.speed = float(self.rng.uniform(1.4, 3.0))
