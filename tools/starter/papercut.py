"""Paper-cut scenes: a small compositional set of captions and pictures, drawn on demand.

One to three flat silhouettes in named colours on a plain or two-tone background; the caption says exactly what is there. Low
in detail on purpose, so that a model of it trains on two CPU cores.
"""
import math
import os
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F

SHAPES = [
    "star", "heart", "moon", "cloud", "house", "tree", "fish", "butterfly", "airplane", "car", "rocket", "sailboat", "umbrella", "guitar",
    "key", "mushroom", "whale", "cactus", "crown", "bell", "balloon", "apple", "cat", "rabbit", "ghost", "sun", "anchor", "castle", "duck",
    "turtle", "pear", "leaf",
]
PLURALS = {"fish": "fish", "leaf": "leaves", "cactus": "cacti", "butterfly": "butterflies"}
COLORS = {
    "red": (214, 48, 49), "orange": (238, 133, 34), "yellow": (247, 209, 60), "green": (56, 158, 79), "blue": (52, 101, 217),
    "purple": (131, 66, 184), "pink": (240, 138, 184), "brown": (124, 78, 48), "white": (246, 244, 240), "black": (28, 28, 34),
    "gray": (132, 134, 140),
}
PLACES = {  # caption: upper colour, lower colour, height of the horizon (1 is the bottom; None: a gradient without one)
    "in the sky": ((120, 184, 240), (206, 230, 250), None),
    "at night": ((18, 22, 60), (44, 46, 98), None),
    "under water": ((40, 140, 190), (12, 56, 116), None),
    "on the grass": ((158, 208, 245), (86, 172, 84), 0.30),
    "at the beach": ((92, 178, 226), (236, 212, 156), 0.30),
    "in the snow": ((176, 198, 222), (247, 249, 253), 0.30),
    "in the desert": ((250, 204, 130), (214, 158, 88), 0.30),
}
SIZES = {"small": 0.32, "": 0.48, "big": 0.68}
SIZE_BY_COUNT = {1: 1.0, 2: 0.85, 3: 0.62}
POSITIONS = {"": (0, 0), " on the left": (-0.45, 0), " on the right": (0.45, 0), " at the top": (0, -0.45), " at the bottom": (0, 0.45)}


@dataclass
class Cutout:
    shape: int  # index into SHAPES
    color: tuple
    scale: float
    angle: float
    x: float = 0.0  # centre, -1 .. 1 from the left and from the top
    y: float = 0.0


@dataclass
class Scene:
    upper: tuple = ()
    lower: tuple = ()
    horizon: float | None = None
    wave_phase: float = 0.0
    caption: str = ""
    cutouts: list = field(default_factory=list)


def article(words):
    return "an" if words[0] in "aeiou" else "a"


def sample_background(rng, scene):
    """Fills in the background; returns its words and its colour's name, if it has one."""
    if rng.random() < 0.6:
        color = rng.choice(list(COLORS))
        scene.upper = scene.lower = COLORS[color]
        return rng.choice([f"on {article(color)} {color} background"] * 3 + [f"on {color}"]), color
    where = rng.choice(list(PLACES))
    scene.upper, scene.lower, scene.horizon = PLACES[where]
    return where, None


def sample_cutouts(rng, scene, count, same, ground):
    """Adds `count` cutouts; returns the words for each."""
    shapes = [rng.randrange(len(SHAPES)) for _ in range(count)]
    tints = [rng.choice([c for c in COLORS if c != ground]) for _ in range(count)]
    if same:
        shapes, tints = shapes[:1] * count, tints[:1] * count
    words = []
    for shape, tint in zip(shapes, tints):
        size = rng.choices(["small", "", "big"], [0.2, 0.6, 0.2])[0] if count == 1 else ""
        scene.cutouts.append(Cutout(shape, COLORS[tint], SIZES[size] * SIZE_BY_COUNT[count], rng.uniform(-0.12, 0.12)))
        spoken_tint = tint if rng.random() < 0.8 else ""
        words.append(" ".join(word for word in (size, spoken_tint, SHAPES[shape]) if word))
    return words


def place_cutouts(rng, scene, words, same):
    """Puts the cutouts where the caption will say they are; returns the caption without its background."""
    def near(spread):
        return rng.uniform(-spread, spread)

    cutouts = scene.cutouts
    if len(cutouts) == 1:
        where = rng.choices(list(POSITIONS), [0.6, 0.1, 0.1, 0.1, 0.1])[0]
        x, y = POSITIONS[where]
        cutouts[0].x, cutouts[0].y = x + near(0.08), y + near(0.08)
        return f"{article(words[0])} {words[0]}{where}"
    if len(cutouts) == 2:
        relation = "and" if same else rng.choice(["and", "left of", "above"])
        for cutout, side in zip(cutouts, (-0.45, 0.45)):
            across, along = near(0.15), side + near(0.05)
            cutout.x, cutout.y = (across, along) if relation == "above" else (along, across)
        if not same:
            return f"{article(words[0])} {words[0]} {relation} {article(words[1])} {words[1]}"
    else:
        for cutout, x in zip(cutouts, (-0.6, 0.0, 0.6)):
            cutout.x, cutout.y = x + near(0.04), near(0.1)
    *adjectives, noun = words[0].split()
    return " ".join([("two", "three")[len(cutouts) - 2], *adjectives, PLURALS.get(noun, noun + "s")])


def sample(rng):
    scene = Scene(wave_phase=rng.uniform(0, 2 * math.pi))
    count = rng.choices([1, 2, 3], [0.6, 0.32, 0.08])[0]
    where, ground = sample_background(rng, scene)
    same = count == 3 or (count == 2 and rng.random() < 0.2)
    words = sample_cutouts(rng, scene, count, same, ground)
    scene.caption = f"{place_cutouts(rng, scene, words, same)} {where}"
    return scene


def load_masks():
    """[shapes, 1, side, side] alpha in 0 .. 1."""
    atlas = np.load(os.path.join(os.path.dirname(os.path.abspath(__file__)), "atlas.npz"))
    assert list(atlas["names"]) == SHAPES
    return torch.tensor(atlas["alpha"]).unsqueeze(1).float() / 255


def backgrounds(scenes, x, y):
    def rgb(colors):
        return torch.tensor(colors).float().view(-1, 3, 1, 1) / 255

    def column(values):
        return torch.tensor(values).view(-1, 1, 1, 1)

    upper, lower = rgb([s.upper for s in scenes]), rgb([s.lower for s in scenes])
    has_horizon = column([s.horizon is not None for s in scenes])
    horizon, phase = column([s.horizon or 0.0 for s in scenes]), column([s.wave_phase for s in scenes])
    below = torch.sigmoid((y - horizon - 0.06 * torch.sin(2.5 * x + phase)) * len(x) / 2)
    return upper + (lower - upper) * torch.where(has_horizon, below, (y + 1) / 2)


def to_mask_coordinates(cutout):
    """The affine map from the picture's coordinates to those of the cutout's mask."""
    c, s = math.cos(cutout.angle) / cutout.scale, math.sin(cutout.angle) / cutout.scale
    return [[c, s, -(c * cutout.x + s * cutout.y)], [-s, c, s * cutout.x - c * cutout.y]]


def render(scenes, masks, side):
    """[scenes, 3, side, side] in 0 .. 1."""
    axis = torch.linspace(-1, 1, side)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    pictures = backgrounds(scenes, x, y)
    for layer in range(3):
        rows = [i for i, scene in enumerate(scenes) if len(scene.cutouts) > layer]
        if not rows:
            continue
        cutouts = [scenes[i].cutouts[layer] for i in rows]
        grid = F.affine_grid(torch.tensor([to_mask_coordinates(c) for c in cutouts]), (len(rows), 1, side, side), align_corners=False)
        alpha = F.grid_sample(masks[[c.shape for c in cutouts]], grid, align_corners=False)
        color = torch.tensor([c.color for c in cutouts]).float().view(-1, 3, 1, 1) / 255
        pictures[rows] = pictures[rows] * (1 - alpha) + color * alpha
    return pictures
