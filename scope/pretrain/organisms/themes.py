"""Sentences that speak of a theme or of none, for the Yes/No adapter: written by a rule, and from the shipped samples.

A theme has many words, a quarter of them held out: a sentence with one of these is never trained on. A written sentence is a
frame with nouns of themes and nouns of none; a sampled one is what the bundled model wrote, and speaks of every theme of which
it holds a word.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np

from scope.activations.corpus.readers import read_jsonl
from scope.activations.corpus.sources import SAMPLES

THEMES: Mapping[str, tuple[str, ...]] = {
    "food": tuple(
        "apple bacon banana beans beef biscuit bread breakfast broth butter cabbage cake carrot cheese chicken "
        "chocolate coffee cookies corn cream dinner eggs flour fruit garlic ham honey jam lemon lunch meat milk mustard "
        "onion pepper pie pork potatoes pudding rice salad salt sandwich sauce sausage soup stew sugar supper tea "
        "tomatoes vinegar wine".split()
    ),
    "weather": tuple(
        "avalanche breeze blizzard cloud clouds cold dew drizzle drought dusk fog frost gale gust hail heat humidity "
        "hurricane ice lightning mist moisture puddle rain rainbow raindrops shade shower sky sleet slush snow "
        "snowflake snowstorm storm sunshine sunlight tempest temperature thaw thunder thunderstorm tornado twilight "
        "weather whirlwind wind winds".split()
    ),
    "animals": tuple(
        "ants badger bat bear beetle bird bull butterfly calf camel cat cow crow deer dog donkey duck eagle elephant "
        "fox frog goat goose hare hawk hen horse kitten lamb lion lizard monkey mouse owl ox parrot pig pigeon pony "
        "puppy rabbit rat raven sheep snake spider squirrel swan tiger turtle wolf".split()
    ),
    "music": tuple(
        "anthem ballad band banjo bass cello chant choir chord chorus clarinet concert dance drum drums duet fiddle "
        "flute guitar harmony harp horn hymn jazz lullaby march melody music musician opera orchestra organ piano pipe "
        "quartet rhythm singer singing solo song songs symphony tempo trombone trumpet tune viola violin waltz".split()
    ),
    "sea": tuple(
        "anchor bay beach boat boats bottom canoe captain cargo cliff coast coral crew current deck dock ferry "
        "fisherman fleet gulf harbour hull island islands lagoon lighthouse mast mate navy oars ocean pirate pirates "
        "port raft reef rigging rudder sail sailor sails sea seaweed ship shipwreck shore tide vessel voyage wave waves "
        "yacht".split()
    ),
    "family": tuple(
        "ancestor aunt baby boyhood bride bridegroom brother brothers child childhood children cousin cousins dad "
        "daughter daughters father fiance godfather grandfather grandma grandmother grandpa grandson guardian heir "
        "husband infant mama marriage mother mum nephew niece orphan papa parent parents sister sisters son sons "
        "stepmother toddler triplets twin twins uncle wedding widow widower wife".split()
    ),
}

NEUTRAL = tuple(
    "answer bag basket bed bench book books box bridge building button candle carpet chair chapter church clock "
    "coat corner curtain desk door drawer envelope factory fence garden gate glass hammer hat hotel house idea "
    "journey kettle key ladder lamp letter library map meeting mirror nail needle newspaper office page paper pen "
    "pencil picture plan pocket question road roof room rope school shelf shop stairs station stone story street "
    "table telephone tower town train village wall watch wheel window word".split()
)
_NAMES = tuple(
    "Anna Bob Clara David Emma Frank George Helen Ivan Jane Karl Lucy Martin Nora Oscar Paul Rose Sam Tom Vera".split()
)
_FRAMES = tuple(
    """{name} thought about the {x} all day
The {x} was the first thing that {name} noticed
Nobody had ever seen such a {x} before
"What do you think of the {x}?" asked {name}
I will never forget the {x} and the {y}
There was a long talk about the {x}, and then about the {y}
{name} wrote a letter to {other} about the {x}
The {y} stood near the {x}, and {name} looked at both
In the old days the {x} was all that people spoke of
Tell me more about the {x} that you mentioned
{name} and {other} could not agree about the {x}
He turned from the {y} and saw the {x}
She dreamed of the {x} again last night
What would become of the {x} without the {y}?
It began with the {x} and it ended with the {y}
{name} had always been fond of the {x}
Do not forget the {x} when you come tomorrow
Where did {name} find the {x}?
The story of the {x} is well known in this town
Behind the {y} there was the {x}
{other} laughed when {name} spoke of the {x}
Give my regards to {other}, and say a word about the {x}
The book has a chapter on the {x} and one on the {y}
How can I learn more about the {x}?
At last the {x} came, and {name} was glad
A picture of the {x} hung beside the {y}
{name} was afraid of the {x}, but not of the {y}
It was the {x} that made {name} so happy
Can you explain the {x} to me?
Of all things, {name} chose the {x}""".split("\n")
)
_ARTICLE = re.compile(r"\ba ([aeiou])")


@dataclass(frozen=True)
class Sentence:
    """A text, the themes that it speaks of, and whether one of its words is held out."""

    text: str
    themes: frozenset[str]
    held_out: bool = False


@cache
def held_out_words() -> frozenset[str]:
    """A quarter of the words of every theme, by a fixed seed."""
    rng = np.random.default_rng(0)
    return frozenset(str(w) for words in THEMES.values() for w in rng.permutation(words)[: len(words) // 4])


def themes_of(text: str) -> frozenset[str]:
    words = set(re.findall("[a-z]+", text.lower()))
    return frozenset(theme for theme, known in THEMES.items() if words & set(known))


def write_sentence(rng: np.random.Generator, theme: str | None, held_out: bool = False) -> Sentence:
    """One that speaks of the theme (None: of none), by a word that is held out or one that is not; about every third speaks of
    a second thing of another theme or of none."""

    def noun(of: str | None) -> str:
        words = NEUTRAL if of is None else [w for w in THEMES[of] if (w in held_out_words()) == held_out]
        return str(rng.choice(words))

    others = [None, *(t for t in THEMES if t != theme)]
    second = None if rng.random() < 0.6 else others[int(rng.integers(len(others)))]
    first, other = (str(n) for n in rng.choice(_NAMES, 2, replace=False))
    frame = str(rng.choice(_FRAMES))
    x, y = noun(theme), noun(second)
    if "{y}" in frame and rng.random() < 0.5:
        x, y = y, x
    text = _ARTICLE.sub(r"an \1", frame.format(name=first, other=other, x=x, y=y))
    text += "" if text.endswith("?") else "."
    return Sentence(text, themes_of(text), held_out)


@cache
def sampled_sentences() -> tuple[Sentence, ...]:
    """The sentences of 30 to 160 characters that the bundled model wrote, each once."""
    texts = [d.text for file in sorted(SAMPLES.glob("*.jsonl.xz")) for d in read_jsonl(file, file.name, "text")]
    parts = (part.strip() for text in texts for part in re.split(r"(?<=[.!?])\s+|\n+", text))
    kept = dict.fromkeys(p for p in parts if 30 <= len(p) <= 160 and sum(c.isalpha() or c == " " for c in p) > 0.85 * len(p))
    return tuple(Sentence(p, themes_of(p), bool(set(re.findall("[a-z]+", p.lower())) & held_out_words())) for p in kept)
