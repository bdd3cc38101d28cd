"""Captions of scenes as lists of facts, whose truth of any scene follows from the world, and questions with one answer each in
the words of a PaliGemma."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool
from scope.activations.scenes.world import COLOURS, FACTORS, HELD_OUT, MOST, PLACES, SEEN, SHAPES, SIDE, SIZES, Codes, Thing

NUMBERS = ("no", "one", "two", "three")
KINDS = ("colour", "shape", "size", "where", "count", "exists", "detect", "caption")
_BIN = 2  # pixels; a corner of a box is rounded to so many


def phrase(codes: Codes) -> str:
    """An object in words, such as "a small red circle at the top left"; what is -1 is left out."""
    colour, shape, size, place = codes
    words = ["a", *([SIZES[size]] if size >= 0 else []), *([COLOURS[colour]] if colour >= 0 else [])]
    words.append(SHAPES[shape] if shape >= 0 else "shape")
    if place >= 0:
        words.append("in the middle" if PLACES[place] == "middle" else f"at the {PLACES[place]}")
    return " ".join(words)


@dataclass(frozen=True)
class Caption:
    """Descriptions of different objects of one scene."""

    objects: tuple[Codes, ...]

    text = property(lambda self: " and ".join(map(phrase, self.objects)))

    def is_true_of(self, things: Sequence[Thing]) -> bool:
        """Whether each description fits an object of its own."""
        codes = [thing.codes for thing in things]
        return any(
            all(_fits(description, codes[i]) for description, i in zip(self.objects, order, strict=True))
            for order in itertools.permutations(range(len(codes)), len(self.objects))
        )


def _fits(description: Codes, codes: Codes) -> bool:
    return all(a in (-1, b) for a, b in zip(description, codes, strict=True))


def truth(captions: Sequence[Caption], scenes: Sequence[Sequence[Thing]]) -> Bool[np.ndarray, "caption scene"]:
    """`is_true_of` of every caption and every scene at once."""
    world = np.full((len(scenes), MOST, 4), -2)
    facts = np.full((len(captions), MOST, 4), -1)
    named = np.zeros((len(captions), MOST, 1, 1), bool)
    for i, things in enumerate(scenes):
        world[i, : len(things)] = [thing.codes for thing in things]
    for i, caption in enumerate(captions):
        facts[i, : len(caption.objects)] = caption.objects
        named[i, : len(caption.objects)] = True
    fits = ((facts[:, :, None, None] == world) | (facts[:, :, None, None] < 0)).all(-1)  # [caption description scene object]
    fits = (fits & (world[..., 0] >= 0)) | ~named
    orders = [fits[:, range(MOST), :, order] for order in itertools.permutations(range(MOST))]
    return np.any([np.all(order, axis=0) for order in orders], axis=0)


def random_caption(
    things: Sequence[Thing],
    rng: np.random.Generator,
    stated: Sequence[float] = (0.8, 0.8, 0.3, 0.6),
    one_fact: float = 0.25,
    most: int = MOST,
) -> Caption:
    """A true caption of some of the objects. `stated` is the chance of each factor to be named, `one_fact` the share of
    captions that name a single factor of a single object."""
    if rng.random() < one_fact:
        codes, factor = things[rng.integers(len(things))].codes, int(rng.integers(4))
        return Caption((tuple(code if i == factor else -1 for i, code in enumerate(codes)),))
    chosen = [thing for thing in things if rng.random() < 0.8][:most] or [things[rng.integers(len(things))]]
    objects = []
    for i in rng.permutation(len(chosen)):
        codes, names = chosen[i].codes, rng.random(4) < stated
        names[0] |= not names.any()
        objects.append(tuple(code if name else -1 for code, name in zip(codes, names, strict=True)))
    return Caption(tuple(objects))


def spoiled(caption: Caption, things: Sequence[Thing], rng: np.random.Generator) -> Caption:
    """The caption with one fact changed, as a rule to that of another object of the scene, which only a reader that binds facts
    to objects can tell. It may still be true."""
    i = int(rng.integers(len(caption.objects)))
    codes = list(caption.objects[i])
    factor = int(rng.choice([k for k, code in enumerate(codes) if code >= 0]))
    others = [c for c in (thing.codes[factor] for thing in things) if c != codes[factor]]
    n = len(list(FACTORS.values())[factor])
    codes[factor] = others[rng.integers(len(others))] if others and rng.random() < 0.7 else int(rng.integers(n))
    return Caption(tuple(tuple(codes) if k == i else o for k, o in enumerate(caption.objects)))


@dataclass(frozen=True)
class Question:
    """A prompt with its only right answer. `held_out` says whether it is about a held-out pair of colour and shape."""

    prompt: str
    answer: str
    kind: str
    held_out: bool = False


def questions(things: Sequence[Thing], rng: np.random.Generator) -> list[Question]:
    """Every question that has one answer in the scene. There are as many "is there a" with yes as with no, about held-out pairs
    too; a no asks for the colour of one object with the shape of another wherever that is no object."""
    queries = []
    for thing in things:
        held, name = thing.held_out, f"{thing.colour} {thing.shape}"
        if sum(t.shape == thing.shape for t in things) == 1:
            queries.append(Question(f"answer en what colour is the {thing.shape}?", thing.colour, "colour", held))
            queries.append(Question(f"answer en how large is the {thing.shape}?", thing.size, "size", held))
        if sum(t.colour == thing.colour for t in things) == 1:
            queries.append(Question(f"answer en what shape is {thing.colour}?", thing.shape, "shape", held))
        queries.append(Question(f"answer en where is the {name}?", thing.place, "where", held))
        queries.append(Question(f"answer en is there a {name}?", "yes", "exists", held))
        absent = " ".join(_absent_pair(things, held, rng))
        queries.append(Question(f"answer en is there a {absent}?", "no", "exists", held))
        queries.append(Question(f"detect {name}", location(thing) + f" {name}", "detect", held))
    queries.append(Question("answer en how many shapes are there?", NUMBERS[len(things)], "count"))
    whole = Caption(tuple(thing.codes for thing in things)).text
    queries.append(Question("caption en", whole, "caption", any(thing.held_out for thing in things)))
    return queries


def _absent_pair(things: Sequence[Thing], held_out: bool, rng: np.random.Generator) -> tuple[str, str]:
    there = {thing.pair for thing in things}
    mixed = sorted({(a.colour, b.shape) for a in things for b in things} - there)
    allowed = [pair for pair in (sorted(HELD_OUT) if held_out else SEEN) if pair not in there]
    hard = [pair for pair in mixed if pair in allowed]
    among = hard if hard and rng.random() < 0.7 else allowed
    return among[rng.integers(len(among))]


def location(thing: Thing) -> str:
    """The box of an object as four tokens: top, left, bottom, right in 1024ths of the picture, rounded to 2 pixels."""
    left, top, right, bottom = thing.box
    corners = (min(SIDE, max(0, round(v / _BIN) * _BIN)) for v in (top, left, bottom, right))
    return "".join(f"<loc{min(1023, round(v * 1024 / SIDE)):04d}>" for v in corners)
