"""The synthetic scenes: the same to the byte at every call, truthful in what is said of them, free of held-out pairs."""

import numpy as np
import pytest
from scope.activations.scenes.draw import draw
from scope.activations.scenes.pages import PAGE, page, pages, with_colours_exchanged
from scope.activations.scenes.scene import CROP, crop, scene, scenes
from scope.activations.scenes.words import Caption, random_caption, spoiled, truth
from scope.activations.scenes.world import COLOURS, GRID, HELD_OUT, PATCH, PLACES, SHAPES, SIDE, Thing


@pytest.fixture(scope="module")
def some():
    return list(scenes(3, 60))


def thing(colour="red", shape="circle", place="top left", x=12.0, y=12.0, size="large"):
    return Thing(colour, shape, size, place, x, y, 7.0)


def test_a_scene_is_a_function_of_seed_and_index(some):
    again = scene(3, 17)
    assert again.things == some[17].things
    assert again.questions() == some[17].questions()
    assert np.array_equal(again.picture, some[17].picture)
    assert np.array_equal(again.covered, some[17].covered)
    assert not np.array_equal(scene(4, 17).picture, again.picture)
    assert again.picture.dtype == np.uint8
    assert again.picture.shape == (SIDE, SIDE, 3)


def test_held_out_pairs_occur_only_where_they_are_asked_for(some):
    assert not any(s.held_out for s in some)
    for s in scenes(5, 20, held_out=True):
        assert sum(t.pair in HELD_OUT for t in s.things) == 1


def test_objects_lie_in_their_place_apart_and_whole(some):
    for s in some:
        for t in s.things:
            assert PLACES[3 * int(t.y // 16) + int(t.x // 16)] == t.place
            assert min(t.box) >= 0
            assert max(t.box) <= SIDE
            assert t.x % 4 == 0
            assert t.y % 4 == 0
        for a, b in zip(s.things, s.things[1:], strict=False):
            assert np.hypot(a.x - b.x, a.y - b.y) > a.radius + b.radius


def test_covered_says_which_patches_an_object_lies_on():
    _, covered = draw([thing(shape="square", x=20, y=20)], np.random.default_rng(0))
    table = covered.reshape(GRID, GRID)
    assert table[2, 2] == 1
    assert table[0].max() == 0
    assert table[4:].max() == 0
    assert table.sum() * PATCH**2 == pytest.approx((2 * 0.8 * 7.0) ** 2, rel=0.02)


def test_the_middle_of_every_object_has_its_colour_and_that_of_a_ring_has_not():
    rng = np.random.default_rng(1)
    for shape in SHAPES:
        picture, _ = draw([thing("green", shape, "middle", 24.0, 24.0)], rng)
        red, green, blue = picture[23:25, 23:25].reshape(-1, 3).astype(float).mean(0)
        assert (green > max(red, blue) + 30) == (shape != "ring")


def test_a_caption_of_a_scene_is_true_of_it_and_truth_agrees_with_the_definition(some):
    rng = np.random.default_rng(0)
    captions = [random_caption(s.things, rng) for s in some]
    captions += [spoiled(c, s.things, rng) for c, s in zip(captions, some, strict=True)]
    worlds = [s.things for s in some]
    table = truth(captions, worlds)
    assert np.array_equal(table, [[c.is_true_of(things) for things in worlds] for c in captions])
    n = len(some)
    assert table[np.arange(n), np.arange(n)].all()
    assert table[n + np.arange(n), np.arange(n)].mean() < 0.4


def test_a_caption_needs_an_object_for_each_of_its_descriptions():
    two = [thing(), thing("blue", "square", "right", 36.0, 24.0)]
    red, blue_square = (0, -1, -1, -1), (2, 1, -1, -1)
    assert Caption((red, blue_square)).is_true_of(two)
    assert Caption((red, blue_square)).text == "a red shape and a blue square"
    assert not Caption((red, red)).is_true_of(two)
    assert not Caption(((0, 1, -1, -1),)).is_true_of(two)


def test_every_question_has_one_answer_and_yes_and_no_are_balanced_in_held_out_scenes_too(some):
    for s in [*some, *scenes(9, 30, held_out=True)]:
        pairs = {f"{t.colour} {t.shape}": t for t in s.things}
        asked = s.questions()
        for q in (q for q in asked if q.kind == "exists"):
            name = q.prompt.removeprefix("answer en is there a ").removesuffix("?")
            assert (name in pairs) == (q.answer == "yes")
            assert (tuple(name.split()) in HELD_OUT) == q.held_out
        for held in (False, True):
            answers = [q.answer for q in asked if q.kind == "exists" and q.held_out is held]
            assert answers.count("yes") == answers.count("no") == sum(t.held_out is held for t in s.things)
        for q in (q for q in asked if q.kind == "colour"):
            assert [t.colour for t in s.things if f"the {t.shape}?" in q.prompt] == [q.answer]
        for q in (q for q in asked if q.kind == "where"):
            assert any(name in q.prompt and t.place == q.answer for name, t in pairs.items())


def test_a_box_holds_its_object(some):
    for s in some[:20]:
        for q in (q for q in s.questions() if q.kind == "detect"):
            corners = [int(piece[:4]) * SIDE / 1024 for piece in q.answer.split("<loc")[1:]]
            box = next(t.box for t in s.things if q.prompt == f"detect {t.colour} {t.shape}")
            assert np.abs(np.array(corners)[[1, 0, 3, 2]] - box).max() <= 1.1


def test_a_crop_holds_its_object_and_is_placed_where_it_lies():
    for i in range(30):
        square, (row, column) = crop(1, i, aligned=i % 2 == 0)
        t = square.things[0]
        assert square.picture.shape == (CROP, CROP, 3)
        assert 0 <= row <= 3
        assert 0 <= column <= 3
        off = t.x - column * PATCH - CROP / 2, t.y - row * PATCH - CROP / 2
        assert off == (0, 0) if i % 2 == 0 else max(map(abs, off)) <= 4
        whole, covered = draw([t], np.random.default_rng(0))
        table = covered.reshape(GRID, GRID)[row : row + 3, column : column + 3]
        assert table.sum() > 0.95 * covered.sum()
        assert whole.shape == (SIDE, SIDE, 3)
        assert np.allclose(square.covered.reshape(3, 3), table)


def test_a_page_answers_what_its_cells_hold():
    p = page(2, 5)
    assert p.picture.shape == (PAGE, PAGE, 3)
    assert np.array_equal(p.picture, page(2, 5).picture)
    items = [item for item in p.items if item is not None]
    assert p.answers(items[:2])
    assert not p.answers([items[0], ("green", "triangle")])
    assert [p.items[2 * (top // 16) + left // 32] for left, top, _, _ in p.cells(items[0])] == [items[0]] * len(
        p.cells(items[0])
    )
    for q in pages(2, 20):
        assert not any(item in HELD_OUT for item in q.items)
        words = sum(isinstance(item, str) for item in q.items)
        dark = (q.picture.astype(int).max(-1) == 20).sum()
        assert (dark > 10 * words) == (words > 0)
    assert all(any(item in HELD_OUT for item in q.items) for q in pages(2, 10, held_out=True))
    picture, covered = draw([], np.random.default_rng(0))
    assert picture.shape == (SIDE, SIDE, 3)
    assert covered.shape == (0, GRID**2)
    assert {item[0] for q in pages(0, 30, words=False) for item in q.items if item} == set(COLOURS)


def test_a_page_with_colours_exchanged_has_the_same_words_colours_and_shapes_bound_otherwise():
    exchanged = [(p, other) for p in pages(3, 40) if (other := with_colours_exchanged(p)) is not None]
    assert len(exchanged) > 30
    for p, other in exchanged:
        assert [item for item in other.items if isinstance(item, str)] == [item for item in p.items if isinstance(item, str)]
        before, after = ([item for item in each.items if isinstance(item, tuple)] for each in (p, other))
        assert before != after
        assert sorted(c for c, _ in before) == sorted(c for c, _ in after)
        assert [shape for _, shape in before] == [shape for _, shape in after]
        assert not HELD_OUT & set(after)
        assert not np.array_equal(p.picture, other.picture)
