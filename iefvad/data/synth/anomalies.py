"""The eight kinds of anomaly, one small class each.

An anomaly is set up once, before the first frame, with its abnormal intervals (half-open, in frames). It adds people
who behave like everyone else outside the intervals. In each frame it may move (`step`) and draw over the actors
(`over`).

- Visible in motion only: sprint, scuffle, fall, thrown object. Each single picture shows people as in normal videos.
- Visible in appearance only: smoke, abandoned object, vehicle on the walkway. They are slow or at rest, so their
  changes are below the event threshold.
- Visible in both: explosion.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import cos, exp, pi, sin
from typing import Protocol

import cv2
import numpy as np

from iefvad.data.synth.actors import Person, Pose, Vehicle, disc, line, polygon, shadow
from iefvad.data.synth.scene import HEIGHT, LAYOUTS, WIDTH, Colour, Image, Scene, fractal, jitter, shade

Intervals = Sequence[tuple[int, int]]
LEFT, RIGHT = 0.24 * WIDTH, 0.76 * WIDTH  # always inside the centre crop


class Actor(Protocol):
    """Anything that has a depth, moves and draws itself."""

    @property
    def y(self) -> float:
        """The row it stands on, in pixels."""
        ...

    def step(self, t: int) -> None:
        """Move to frame t."""
        ...

    def draw(self, image: Image) -> None:
        """Draw itself."""
        ...


class Anomaly:
    """Base class: knows its place and time.

    Args:
        rng: Source of randomness.
        scene: The scene.
        frames: Number of frames of the video.
        intervals: Abnormal intervals [start, end) in frames.

    Attributes:
        actors: Actors that join those of the scene.
    """

    coverage: tuple[float, float] = (0.16, 0.3)  # minimum and maximum fraction of abnormal frames
    layouts: tuple[str, ...] = LAYOUTS  # layouts where it can happen
    lasting = False  # whether it has one interval that lasts to the end of the video

    def __init__(self, rng: np.random.Generator, scene: Scene, frames: int, intervals: Intervals) -> None:
        self.rng, self.scene, self.frames, self.intervals = rng, scene, frames, list(intervals)
        self.actors: list[Actor] = []
        self.x = float(rng.uniform(LEFT + 10, RIGHT - 10))
        self.y = scene.walkway_row(rng, (0.25, 0.9))
        self.set_up()

    def set_up(self) -> None:
        """Add actors."""

    def active(self, t: int) -> tuple[int, int] | None:
        """Return the interval that contains frame t, or None."""
        return next(((s, e) for s, e in self.intervals if s <= t < e), None)

    def step(self, t: int) -> None:
        """Move everything that is not an actor."""

    def over(self, image: Image, t: int) -> None:
        """Draw in front of the actors."""


class Sprint(Anomaly):
    """People who walk start to run, turn around and run back, until they walk again."""

    def set_up(self) -> None:
        """Add the runners."""
        for _ in range(int(self.rng.integers(3, 5))):
            runner = Person(self.rng, self.scene, x=float(self.rng.uniform(LEFT, RIGHT)))
            runner.script = partial(self._run, pace=float(self.rng.uniform(0.15, 0.2)))
            self.actors.append(runner)

    def _run(self, person: Person, t: int, pace: float) -> bool:
        # They are always in view, so that their presence in a picture does not reveal the anomaly.
        if not LEFT < person.x < RIGHT:
            person.heading = 1.0 if person.x < WIDTH / 2 else -1.0
        if self.active(t) is None:
            return False
        person.walk(person.heading * pace)
        return True


class Scuffle(Anomaly):
    """Two people who stand together start to fight."""

    def set_up(self) -> None:
        """Add both people."""
        self.gap = 0.2 * self.scene.person_height(self.y)
        for side in (-1.0, 1.0):
            fighter = Person(self.rng, self.scene, x=self.x + side * self.gap, y=self.y)
            fighter.script = partial(self._fight, side=side)
            self.actors.append(fighter)

    def _fight(self, person: Person, t: int, side: float) -> bool:
        if self.active(t) is None:
            person.x = self.x + side * self.gap
            person.stand()
            return True
        h, beat = person.height, 0.95 + 0.12 * side
        push = sin(0.55 * t) + 0.6 * sin(0.83 * t + 1.0)
        person.x = self.x + side * self.gap * 0.8 + 0.14 * h * push + self.rng.normal(0, 0.012 * h)
        person.pose = Pose(
            beat * t,
            0.5,
            1.4 + 1.1 * sin(beat * t + side),
            -1.4 + 1.1 * cos(1.1 * beat * t),
            -0.22 * side + 0.24 * sin(0.7 * t + side),
        )
        return True


class Fall(Anomaly):
    """Somebody slips, falls, stands up with difficulty and falls again."""

    period = 34  # frames from one fall to the next

    def set_up(self) -> None:
        """Add the people who fall."""
        for i in range(int(self.rng.integers(1, 3))):
            person = Person(self.rng, self.scene, x=self.x + 26 * i - 13, y=min(self.y + 7 * i, HEIGHT - 8))
            offset = int(self.rng.integers(0, 18)) * i
            person.script = partial(self._fall, offset=offset, side=float(self.rng.choice([-1, 1])))
            self.actors.append(person)

    def _fall(self, person: Person, t: int, offset: int, side: float) -> bool:
        interval = self.active(t)
        if interval is None:
            if not LEFT < person.x < RIGHT:  # stays in view, so that the fall is seen
                person.heading = 1.0 if person.x < WIDTH / 2 else -1.0
            return False
        phase = (t - interval[0] + offset) % self.period
        if phase < 8:
            lying, flail = (phase / 7) ** 2, 1.0
        elif phase < 18:
            lying, flail = 1.0 - 0.25 * abs(sin(0.9 * phase)), 1.0
        else:
            lying, flail = 0.1 + 0.9 * (1 - (phase - 18) / 16) + 0.15 * sin(1.1 * phase), 0.8
        person.pose = Pose(
            0.8 * t,
            0.35 + 0.7 * flail,
            1.5 * flail * sin(0.9 * t),
            1.5 * flail * cos(0.8 * t),
            side * 1.45 * lying,
        )
        person.x += 0.02 * person.height * flail * side * (phase < 8)
        return True


class ThrownObject(Anomaly):
    """Somebody throws bottles and stones across the picture, one after another."""

    def set_up(self) -> None:
        """Add the thrower."""
        self.thrower = Person(self.rng, self.scene, x=float(self.rng.choice([LEFT + 6, RIGHT - 6])), y=self.y)
        self.side = 1.0 if self.thrower.x < WIDTH / 2 else -1.0
        self.thrower.script = self._throw
        self.colour = jitter(self.rng, ((36, 40, 44), (224, 220, 210), (60, 110, 70))[int(self.rng.integers(3))], 12)
        self.flying: list[list[float]] = []  # x, height of flight, vx, vy, row of the ground
        self.next = 0
        self.actors.append(self.thrower)

    def _throw(self, person: Person, t: int) -> bool:
        wind_up = self.next - t
        if self.active(t) is None or wind_up > 7:
            person.stand()
        else:
            swing = -2.6 + 3.0 * (1 - wind_up / 7)
            person.pose = Pose(0.0, 0.4, 0.4, self.side * -swing, 0.25 * self.side * (1 - wind_up / 7))
        return True

    def step(self, t: int) -> None:
        """Throw, and move what flies."""
        if self.active(t) is not None and t >= self.next:
            h = self.thrower.height
            for _ in range(int(self.rng.integers(3, 6))):
                speed = float(self.rng.uniform(3.2, 4.8))
                rise = float(self.rng.uniform(1.6, 3.0))
                row = min(self.y + float(self.rng.uniform(-6, 6)), HEIGHT - 4)
                self.flying.append([self.thrower.x + self.side * 0.2 * h, self.y - 0.9 * h, speed, -rise, row])
            self.next = t + int(self.rng.integers(8, 13))
        for stone in self.flying:
            stone[0] += self.side * stone[2]
            stone[1] += stone[3]
            stone[3] += 0.17
        self.flying = [s for s in self.flying if s[1] < s[4] and -5 < s[0] < WIDTH + 5]

    def over(self, image: Image, t: int) -> None:
        """Draw what flies."""
        for x, y, *_ in self.flying:
            disc(image, x, y, 2.8, self.colour)
            line(image, x, y, x + 3.2 * cos(0.9 * t), y + 3.2 * sin(0.9 * t), self.colour, 2)


class Smoke(Anomaly):
    """Smoke that appears and disappears over seconds. It is well visible, but no pixel changes fast."""

    coverage = (0.2, 0.34)

    def set_up(self) -> None:
        """Choose texture, brightness and wind."""
        self.texture = 0.72 + 0.16 * fractal(self.rng, HEIGHT + 80, WIDTH + 80, (14, 28))
        self.peak = float(self.rng.uniform(0.95, 1.05))
        self.grey = np.float32(self.rng.uniform(205, 232)) if self.rng.random() < 0.6 else np.float32(44)
        self.rise, self.wind = float(self.rng.uniform(0.03, 0.08)), float(self.rng.uniform(-0.06, 0.06))
        self.rows, self.columns = (np.ogrid[0:HEIGHT, 0:WIDTH][i].astype(np.float32) for i in (0, 1))
        self.spread = float(self.rng.uniform(56, 76))

    def density(self, t: int) -> float:
        """Return the density of the smoke in frame t, 0 to 1."""
        interval = self.active(t)
        if interval is None:
            return 0.0
        start, end = interval
        build = min(0.45 * (end - start), 32.0)
        fade = 1.0 if end >= self.frames else min(1.0, (end - t) / 24)
        return min(1.0, (t - start + 1) / build) * fade

    def over(self, image: Image, t: int) -> None:
        """Draw the smoke of frame t."""
        density = self.density(t)
        if density > 0:
            interval = self.active(t)
            self.paint(image, density, 0 if interval is None else t - interval[0])

    def paint(self, image: Image, density: float, age: float) -> None:
        """Draw the cloud with a density of 0 to 1. `age` in frames moves its texture."""
        size = self.spread * (0.55 + 0.45 * density)
        cx, cy = self.x + self.wind * age, self.y - 0.45 * size - self.rise * age
        field = np.exp(-0.5 * (((self.columns - cx) / size) ** 2 + ((self.rows - cy) / (0.8 * size)) ** 2))
        move = np.array([[1, 0, -40 + self.wind * age], [0, 1, -40 - self.rise * age]], np.float32)
        texture = cv2.warpAffine(self.texture, move, (WIDTH, HEIGHT), borderMode=cv2.BORDER_REFLECT)
        alpha = np.clip(self.peak * density * field * texture, 0, 0.95).astype(np.float32)[:, :, None]
        image[:] = (image + alpha * (self.grey - image)).astype(np.uint8)


class Luggage:
    """A suitcase, bag or box, carried by its owner or left on the ground."""

    def __init__(self, rng: np.random.Generator, x: float, y: float, height: float):
        self.x, self.y = x, y
        self.h, self.w = height, height * float(rng.uniform(0.75, 1.1))
        palette: tuple[Colour, ...] = ((224, 40, 36), (244, 170, 20), (20, 100, 226), (60, 190, 70), (226, 50, 160))
        self.colour = jitter(rng, palette[int(rng.integers(len(palette)))], 14)
        self.kind = int(rng.integers(3))
        self.broadside = 1.0  # visible fraction of its width; when it is carried, its narrow side is visible

    def step(self, t: int) -> None:
        """Do not move."""

    def draw(self, image: Image) -> None:
        """Draw a box with a darker edge, a strap and a handle."""
        width = self.w * self.broadside
        x0, x1, y0 = self.x - width / 2, self.x + width / 2, self.y - self.h
        shadow(image, self.x, self.y, 0.65 * width, 2.2)
        polygon(image, [(x0, self.y), (x0, y0), (x1, y0), (x1, self.y)], self.colour)
        polygon(image, [(x1 - 0.2 * width, self.y), (x1 - 0.2 * width, y0), (x1, y0), (x1, self.y)],
                shade(self.colour, 0.7))  # fmt: skip
        if self.kind == 0:
            line(image, x0, y0 + 0.35 * self.h, x1, y0 + 0.35 * self.h, shade(self.colour, 1.5), 1)
        elif self.kind == 1:
            line(image, self.x, y0, self.x, self.y, shade(self.colour, 0.55), 1)
        line(image, self.x - 2, y0 - 2, self.x + 2, y0 - 2, (40, 40, 42), 1)


class AbandonedObject(Anomaly):
    """Somebody puts luggage down and walks on. It stays until its owner comes back or the video ends."""

    coverage = (0.2, 0.34)

    def set_up(self) -> None:
        """Add the owner and the luggage."""
        self.y = self.scene.walkway_row(self.rng, (0.45, 0.95))
        owner = Person(self.rng, self.scene, x=self.x, y=self.y)
        owner.drift, owner.pace = 0.0, 0.04
        owner.script = self._carry
        height = float(self.rng.uniform(0.62, 0.78)) * self.scene.person_height(self.y)
        self.bag = Luggage(self.rng, self.x, self.y + 1, height)
        self.side = float(self.rng.choice([-1, 1]))
        self.actors += [owner, self.bag]

    def _carry(self, person: Person, t: int) -> bool:
        """The owner brings the bag before each interval, leaves without it, and fetches it at the end."""
        speed = person.pace * person.height
        start, end = min(self.intervals, key=lambda i: min(abs(t - i[0]), abs(t - i[1])))
        if end >= self.frames:
            moment, towards = start, True
        else:
            moment, towards = (start, True) if abs(t - start) < abs(t - end) else (end, False)
        heading = self.side if towards else -self.side
        person.walk(heading * person.pace)
        person.x, person.y = self.x + heading * speed * (t - moment), self.y
        with_bag = t < moment if towards else t >= moment
        self.bag.x = person.x + 0.1 * person.height * heading if with_bag else self.x + 0.25 * person.height * self.side
        self.bag.y = self.y - 0.06 * person.height if with_bag else self.y + 1.0
        self.bag.broadside = 0.25 if with_bag else 1.0
        return True


class VehicleOnWalkway(Anomaly):
    """A car or van stops among the pedestrians and stays there, moving very slowly."""

    coverage = (0.2, 0.34)
    layouts = ("plaza", "street", "yard")
    lasting = True
    arrival = 28  # frames of its arrival; for the rest of the interval it stays

    def set_up(self) -> None:
        """Add the vehicle."""
        self.y = self.scene.walkway_row(self.rng, (0.3, 0.95))
        heading = float(self.rng.choice([-1, 1]))
        self.vehicle = _Intruder(self.rng, self.scene, x=-200.0, y=self.y, heading=heading)
        self.vehicle.unit *= float(self.rng.uniform(1.45, 1.75))
        self.vehicle.anomaly = self
        self.actors.append(self.vehicle)


class _Intruder(Vehicle):
    anomaly: VehicleOnWalkway

    def step(self, t: int) -> None:
        event, outside = self.anomaly, -self.heading * 1000.0
        interval = event.active(t)
        if interval is None:
            self.x = outside
            return
        start = interval[0]
        edge = WIDTH / 2 - self.heading * (WIDTH / 2 + 0.4 * self.length)
        way = min((t - start) / event.arrival, 1.0)
        self.x = edge + (event.x - edge) * (1 - (1 - way) ** 2) + 0.02 * self.heading * (t - start)


class Explosion(Anomaly):
    """A flash, a fireball with flying debris, then fire and dark smoke."""

    coverage = (0.14, 0.26)

    def set_up(self) -> None:
        """Prepare the smoke and the glow."""
        self.smoke = Smoke(self.rng, self.scene, self.frames, self.intervals)
        self.smoke.x, self.smoke.y, self.smoke.grey = self.x, self.y - 8, np.float32(48)
        self.smoke.peak = 0.7
        self.debris: list[list[float]] = []
        self.radius = float(self.rng.uniform(14, 22))
        self.rows, self.columns = self.smoke.rows, self.smoke.columns
        self.glow = np.exp(-(((self.columns - self.x) / 60) ** 2) - ((self.rows - self.y + 10) / 45) ** 2)[:, :, None]

    def step(self, t: int) -> None:
        """Move the debris."""
        interval = self.active(t)
        if interval is not None and t == interval[0]:
            angles, speeds = self.rng.uniform(-pi, 0, 16), self.rng.uniform(1.5, 5.5, 16)
            self.debris = [
                [self.x, self.y - 8, v * cos(a), v * sin(a) - 1] for a, v in zip(angles, speeds, strict=True)
            ]
        for piece in self.debris:
            piece[0] += piece[2]
            piece[1] += piece[3]
            piece[3] += 0.22
        self.debris = [p for p in self.debris if p[1] < self.y + 6]

    def over(self, image: Image, t: int) -> None:
        """Draw smoke, fire, debris and flash."""
        interval = self.active(t)
        if interval is None:
            return
        age, life = t - interval[0], interval[1] - interval[0]
        strength = max(0.0, 1 - age / life)
        self.smoke.paint(image, min(1.0, age / 25) * min(1.0, 3 * strength), age)
        ball = self.radius * (min(1.0, (age + 1) / 4) if age < 12 else 0.45 + 0.4 * strength)
        for colour, part, lift in (((214, 84, 20), 1.0, 0.0), ((250, 170, 40), 0.7, 2.0), ((255, 240, 170), 0.4, 3.0)):
            for k in range(6):
                wobble = ball * part * 0.45
                dx, dy = self.rng.normal(0, wobble, 2)
                flame = max(1.0, ball * part * 0.55 * float(self.rng.uniform(0.6, 1.1)))
                disc(image, self.x + dx, self.y - 0.5 * ball - lift - abs(dy) + 0.1 * k, flame, colour)
        for x, y, *_ in self.debris:
            disc(image, x, y, 1.4, (40, 32, 28))
        flash = 1.3 * exp(-age / 2.2) + 0.14 * strength * (0.7 + 0.3 * sin(1.7 * t))
        if flash > 0.02:
            warm = np.array([255, 226, 170], np.float32)
            image[:] = np.clip(image + np.clip(flash * self.glow, 0, 1) * (warm - image), 0, 255).astype(np.uint8)


CLASSES: dict[str, type[Anomaly]] = {
    "Sprint": Sprint,
    "Scuffle": Scuffle,
    "Fall": Fall,
    "ThrownObject": ThrownObject,
    "Smoke": Smoke,
    "AbandonedObject": AbandonedObject,
    "VehicleOnWalkway": VehicleOnWalkway,
    "Explosion": Explosion,
}
MOTION = ("Sprint", "Scuffle", "Fall", "ThrownObject")
APPEARANCE = ("Smoke", "AbandonedObject", "VehicleOnWalkway")
