"""Everything except the actors: backgrounds in four layouts, changing light, haze and sensor noise."""

from __future__ import annotations

from dataclasses import dataclass, field

import cv2
import numpy as np

WIDTH, HEIGHT = 192, 144
LAYOUTS = ("plaza", "street", "corridor", "yard")

Colour = tuple[int, int, int]
Image = np.ndarray  # uint8 (HEIGHT, WIDTH, 3) RGB


@dataclass
class Scene:
    """The view of a fixed camera. All positions are in pixels.

    Attributes:
        layout: One of `LAYOUTS`.
        background: uint8 (HEIGHT, WIDTH, 3) RGB, without actors.
        walkways: Bands of rows (top, bottom) where feet may stand.
        lanes: Rows of the wheels for each lane of the road, empty if there is no road.
        foliage: Boxes (x, y, radius) that move in the wind.
        horizon: Row of the horizon.
        near: Height of a person at the lower edge.
        far: Height of a person at the horizon.
    """

    layout: str
    background: Image
    walkways: list[tuple[float, float]]
    lanes: list[float] = field(default_factory=list)
    foliage: list[tuple[int, int, int]] = field(default_factory=list)
    horizon: float = 40.0
    near: float = 40.0
    far: float = 18.0

    def person_height(self, y: float) -> float:
        """Return the height in pixels of a person whose feet are on row y (linear perspective below the horizon)."""
        depth = (y - self.horizon) / (HEIGHT - self.horizon)
        return self.far + (self.near - self.far) * min(max(depth, 0.0), 1.1)

    def walkway_row(self, rng: np.random.Generator, nearness: tuple[float, float] = (0.0, 1.0)) -> float:
        """Return a random row of a random walkway, within the given range of its depth (0 is far, 1 is near)."""
        top, bottom = self.walkways[int(rng.integers(len(self.walkways)))]
        return float(top + (bottom - top) * rng.uniform(*nearness))


def fractal(rng: np.random.Generator, height: int, width: int, octaves: tuple[int, ...]) -> np.ndarray:
    """Return smooth noise, float32 (height, width), with mean 0 and standard deviation 1.

    Args:
        rng: Source of randomness.
        height: Height in pixels.
        width: Width in pixels.
        octaves: Cell size of each octave in pixels.
    """
    total = np.zeros((height, width), np.float32)
    for cell in octaves:
        grid = rng.standard_normal((height // cell + 3, width // cell + 3)).astype(np.float32)
        total += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC) * np.float32(cell**0.5)
    total -= total.mean()
    return total / max(float(total.std()), 1e-6)


def shade(colour: Colour, factor: float) -> Colour:
    """Return the colour multiplied by a factor, clipped to 0..255."""
    r, g, b = (int(min(max(c * factor, 0), 255)) for c in colour)
    return r, g, b


def jitter(rng: np.random.Generator, colour: Colour, amount: float) -> Colour:
    """Return the colour, randomly brighter or darker by at most `amount` and with about a third of it in hue."""
    moves = rng.uniform(-amount, amount) + rng.uniform(-0.35 * amount, 0.35 * amount, 3)
    r, g, b = (int(min(max(c + d, 0), 255)) for c, d in zip(colour, moves, strict=True))
    return r, g, b


def build_scene(rng: np.random.Generator, layout: str) -> Scene:
    """Return a random scene of one of `LAYOUTS`."""
    scene = {"plaza": _plaza, "street": _street, "corridor": _corridor, "yard": _yard}[layout](rng)
    grain = fractal(rng, HEIGHT, WIDTH, (1, 3, 9, 40))[:, :, None] * rng.uniform(3.0, 6.0)
    tint = rng.uniform(0.95, 1.05, 3) * rng.uniform(0.72, 1.08)
    scene.background = np.clip((scene.background + grain) * tint, 0, 255).astype(np.uint8)
    return scene


def _plaza(rng: np.random.Generator) -> Scene:
    horizon = int(rng.integers(42, 52))
    image = _canvas(jitter(rng, (168, 160, 146), 22))
    _tiles(image, rng, horizon)
    _facade(image, rng, horizon)
    scene = Scene("plaza", image, [(horizon + 14, 134)], horizon=horizon, near=40, far=17)
    for _ in range(int(rng.integers(1, 4))):
        _tree(scene, rng, int(rng.integers(8, WIDTH - 8)), horizon + int(rng.integers(2, 12)))
    for _ in range(int(rng.integers(0, 3))):
        _bench(image, rng, int(rng.integers(20, WIDTH - 30)), int(rng.integers(horizon + 12, horizon + 40)))
    return scene


def _street(rng: np.random.Generator) -> Scene:
    horizon = int(rng.integers(36, 44))
    top, bottom = horizon + int(rng.integers(16, 20)), horizon + int(rng.integers(50, 56))
    image = _canvas(jitter(rng, (150, 146, 140), 18))
    _tiles(image, rng, horizon)
    _facade(image, rng, horizon)
    cv2.rectangle(image, (0, top), (WIDTH, bottom), jitter(rng, (84, 86, 90), 14), -1)
    kerb = jitter(rng, (190, 188, 180), 12)
    cv2.line(image, (0, top), (WIDTH, top), kerb, 1)
    cv2.line(image, (0, bottom), (WIDTH, bottom), kerb, 2)
    middle = (top + bottom) // 2
    for x in range(int(rng.integers(0, 18)), WIDTH, 26):
        cv2.line(image, (x, middle), (x + 12, middle), (215, 212, 200), 1)
    lanes = [top + 0.38 * (bottom - top), top + 0.9 * (bottom - top)]
    scene = Scene("street", image, [(bottom + 6, 138)], lanes, horizon=horizon, near=36, far=15)
    for x in range(int(rng.integers(5, 40)), WIDTH, int(rng.integers(55, 90))):
        _tree(scene, rng, x, top - 2)
    return scene


def _corridor(rng: np.random.Generator) -> Scene:
    horizon = int(rng.integers(38, 48))
    left, right = int(rng.integers(36, 56)), int(rng.integers(136, 156))
    wall, floor = jitter(rng, (176, 172, 160), 24), jitter(rng, (128, 120, 112), 22)
    image = _canvas(floor)
    _tiles(image, rng, horizon + 8)
    ceiling = horizon - int(rng.integers(22, 28))
    back = horizon + 12
    cv2.rectangle(image, (0, 0), (WIDTH, ceiling), shade(wall, 1.15), -1)
    cv2.fillPoly(image, [np.array([(0, 0), (left, ceiling), (left, back), (0, 112)])], shade(wall, 0.84))
    cv2.fillPoly(image, [np.array([(WIDTH, 0), (right, ceiling), (right, back), (WIDTH, 112)])], shade(wall, 0.9))
    cv2.rectangle(image, (left, ceiling), (right, back), wall, -1)
    door = jitter(rng, (110, 86, 66), 24)
    for x in range(left + 10, right - 16, 30):
        cv2.rectangle(image, (x, back - 26), (x + 13, back), door, -1)
        cv2.rectangle(image, (x, back - 26), (x + 13, back), shade(door, 0.7), 1)
    for x in range(40, WIDTH, 56):
        cv2.rectangle(image, (x, 6), (x + 20, 10), (250, 250, 240), -1)
    cv2.line(image, (left, back), (right, back), shade(wall, 0.6), 1)
    return Scene("corridor", image, [(back + 14, 136)], horizon=horizon, near=42, far=21)


def _yard(rng: np.random.Generator) -> Scene:
    horizon = int(rng.integers(38, 48))
    image = _canvas(jitter(rng, (112, 126, 84), 18))
    leaves = fractal(rng, HEIGHT, WIDTH, (2, 5))[:, :, None] * 7
    image[:] = np.clip(image + leaves, 0, 255).astype(np.uint8)
    _facade(image, rng, horizon, brick=True)
    top, bottom = horizon + int(rng.integers(24, 32)), int(rng.integers(128, 140))
    path = jitter(rng, (164, 152, 130), 20)
    cv2.fillPoly(image, [np.array([(20, top), (WIDTH - 20, top), (WIDTH + 30, bottom), (-30, bottom)])], path)
    fence = jitter(rng, (98, 90, 82), 16)
    for x in range(0, WIDTH, 7):
        cv2.line(image, (x, horizon - 7), (x, horizon + 3), fence, 1)
    cv2.line(image, (0, horizon - 4), (WIDTH, horizon - 4), fence, 1)
    scene = Scene("yard", image, [(top + 6, bottom - 3)], horizon=horizon, near=40, far=18)
    for _ in range(int(rng.integers(2, 5))):
        _tree(scene, rng, int(rng.integers(5, WIDTH - 5)), int(rng.integers(horizon, top - 4)))
    return scene


def _canvas(colour: Colour) -> Image:
    return np.full((HEIGHT, WIDTH, 3), colour, np.uint8)


def _tiles(image: Image, rng: np.random.Generator, horizon: int) -> None:
    """Paving in perspective: rows get closer towards the horizon, and joints meet above it."""
    r, g, b = (int(c) for c in image[-1, 0])
    joint = shade((r, g, b), rng.uniform(0.8, 0.9))
    rows = horizon + (HEIGHT - horizon) * np.linspace(0, 1, int(rng.integers(7, 12))) ** 1.7
    for y in rows.astype(int):
        cv2.line(image, (0, int(y)), (WIDTH, int(y)), joint, 1, cv2.LINE_AA)
    vanish = int(rng.integers(WIDTH // 3, 2 * WIDTH // 3))
    for x in range(-WIDTH, 2 * WIDTH, int(rng.integers(22, 36))):
        cv2.line(image, (vanish + (x - vanish) // 3, horizon), (x, HEIGHT), joint, 1, cv2.LINE_AA)


def _facade(image: Image, rng: np.random.Generator, horizon: int, brick: bool = False) -> None:
    """Buildings with windows above the horizon, and sometimes a strip of sky."""
    sky = int(rng.integers(0, 14))
    cv2.rectangle(image, (0, 0), (WIDTH, sky), jitter(rng, (186, 198, 212), 14), -1)
    x = 0
    while x < WIDTH:
        width = int(rng.integers(40, 90))
        base: Colour = (146, 96, 78) if brick and rng.random() < 0.6 else (170, 158, 140)
        wall = jitter(rng, base, 30)
        cv2.rectangle(image, (x, sky + int(rng.integers(0, 6))), (x + width, horizon), wall, -1)
        pane = jitter(rng, (76, 90, 108), 22)
        for wx in range(x + 5, x + width - 8, 13):
            for wy in range(sky + 6, horizon - 10, 14):
                cv2.rectangle(image, (wx, wy), (wx + 6, wy + 8), pane, -1)
                cv2.line(image, (wx, wy + 9), (wx + 6, wy + 9), shade(wall, 1.15), 1)
        x += width
    cv2.line(image, (0, horizon), (WIDTH, horizon), (90, 86, 80), 1)


def _tree(scene: Scene, rng: np.random.Generator, x: int, y: int) -> None:
    image, radius = scene.background, int(rng.integers(8, 14))
    cv2.line(image, (x, y), (x, y - radius), jitter(rng, (84, 66, 50), 10), 2)
    green = jitter(rng, (72, 104, 58), 16)
    for _ in range(26):
        dx, dy = rng.normal(0, radius * 0.45, 2)
        blob = shade(green, float(rng.uniform(0.75, 1.3)))
        cv2.circle(image, (int(x + dx), int(y - 1.6 * radius + dy)), int(rng.integers(2, 5)), blob, -1, cv2.LINE_AA)
    scene.foliage.append((x, int(y - 1.6 * radius), radius))


def _bench(image: Image, rng: np.random.Generator, x: int, y: int) -> None:
    wood = jitter(rng, (122, 92, 62), 18)
    cv2.rectangle(image, (x, y - 6), (x + 20, y - 4), wood, -1)
    cv2.rectangle(image, (x, y - 3), (x + 20, y - 2), shade(wood, 0.8), -1)
    for leg in (x + 2, x + 18):
        cv2.line(image, (leg, y - 2), (leg, y + 1), (60, 56, 52), 1)


class Light:
    """Brightness over time: slow changes, and in some videos a cloud or a jump of the camera's exposure."""

    def __init__(self, rng: np.random.Generator, frames: int) -> None:
        time = np.arange(frames)
        gain = 1 + rng.uniform(0.01, 0.05) * np.sin(2 * np.pi * time / rng.uniform(200, 900) + rng.uniform(0, 6.28))
        if rng.random() < 0.35:
            centre, width = rng.uniform(0, frames), rng.uniform(40, 110)
            gain -= rng.uniform(0.06, 0.2) * np.exp(-0.5 * ((time - centre) / width) ** 2)
        if rng.random() < 0.2:
            gain[int(rng.uniform(0.1, 0.9) * frames) :] *= rng.choice([0.92, 1.08])
        self.gain = gain.astype(np.float64)


class Camera:
    """Turns the drawn canvas into the picture of the sensor: wind in the foliage, constant haze, light, noise."""

    def __init__(self, scene: Scene, rng: np.random.Generator, frames: int) -> None:
        self.scene, self.rng = scene, rng
        self.light = Light(rng, frames)
        sigma = rng.uniform(0.8, 2.2)
        # Noise is taken from a bank at random offsets, because new Gaussian noise would cost more than the drawing.
        luma = rng.normal(0, sigma, (6, HEIGHT + 24, WIDTH + 24, 1))
        chroma = rng.normal(0, 0.5 * sigma, (6, HEIGHT + 24, WIDTH + 24, 3))
        self.bank = np.rint(luma + chroma).astype(np.int16)
        self.sway = rng.uniform(0.4, 1.1)
        if rng.random() < 0.06:  # a misty day, because haze alone is not an anomaly
            fog = rng.uniform(0.12, 0.35) * np.linspace(1.1, 0.5, HEIGHT)[:, None, None]
            scene.background = (scene.background * (1 - fog) + 196 * fog).astype(np.uint8)

    def canvas(self, t: int) -> Image:
        """Return a new array with the background of frame t to draw on. The wind moves its foliage."""
        image: Image = self.scene.background.copy()
        for i, (x, y, radius) in enumerate(self.scene.foliage):
            dx = self.sway * np.sin(0.09 * t + 2.1 * i) + 0.4 * self.sway * np.sin(0.31 * t + i)
            x0, x1 = max(x - radius, 0), min(x + radius, WIDTH)
            y0, y1 = max(y - radius, 0), min(y + radius, HEIGHT)
            patch = self.scene.background[y0:y1, x0:x1]
            move = np.array([[1, 0, dx], [0, 1, 0]], np.float32)
            image[y0:y1, x0:x1] = cv2.warpAffine(patch, move, (x1 - x0, y1 - y0), borderMode=cv2.BORDER_REPLICATE)
        return image

    def expose(self, canvas: Image, t: int) -> Image:
        """Return the canvas with the light of frame t and with sensor noise, uint8 RGB."""
        lit = cv2.convertScaleAbs(canvas, alpha=float(self.light.gain[t]))
        k, y, x = (int(v) for v in self.rng.integers(0, (len(self.bank), 24, 24)))
        return cv2.add(lit, self.bank[k, y : y + HEIGHT, x : x + WIDTH], dtype=cv2.CV_8U)
