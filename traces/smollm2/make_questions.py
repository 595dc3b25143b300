"""Make the question set of the SmolLM2 pool: two files of questions with gold answers, that share none.

python traces/smollm2/make_questions.py traces/smollm2

Every category is one function below: it draws questions of levels 1 (easy) to 3 (hard) without end, or lists
all there are. Distinct questions are drawn once, dealt to the two files level by level, and shuffled. The
seed is fixed, so the files come out the same, byte for byte; all is our own work (Apache-2.0, as the rest).
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mosaicsim.streams import Streams

SEED = 20260603
SIZES = {"evaluation": 21, "calibration": 15}
"""Questions of each category in each file."""

Random = np.random.Generator


@dataclass(frozen=True)
class Item:
    """A question with its answer; ``wrong`` are the other options, none for an open question."""

    level: int
    text: str
    answer: str
    wrong: tuple[str, ...] = ()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where evaluation.jsonl.gz and calibration.jsonl.gz go")
    arguments = parser.parse_args()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    for name, rows in question_sets().items():
        path = arguments.folder / f"{name}.jsonl.gz"
        write(path, rows)
        print(f"{path}: {len(rows)} questions")


def question_sets() -> dict[str, list[dict[str, object]]]:
    """The rows of each file."""
    streams = Streams(SEED)
    dealt: dict[str, list[dict[str, object]]] = {name: [] for name in SIZES}
    for category, draw in CATEGORIES.items():
        rng = streams(f"smollm2/{category}")
        items = _distinct(draw(rng), sum(SIZES.values()))
        for name, chosen in _deal(items, rng).items():
            dealt[name] += [_row(name, category, n, item, rng) for n, item in enumerate(chosen, start=1)]
    for name, rows in dealt.items():
        streams(f"smollm2/order/{name}").shuffle(rows)
    return dealt


def write(path: Path, rows: Sequence[dict[str, object]]) -> None:
    """Write JSON lines, gzipped without a date, whole or not at all."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    partly = path.with_name(f".{path.name}.partial")
    partly.write_bytes(gzip.compress(text.encode(), mtime=0))
    os.replace(partly, path)


def _distinct(items: Iterator[Item], wanted: int) -> list[Item]:
    """The first distinct questions, as many of each level as there are to be, from a listing or a source."""
    found: dict[str, Item] = {}
    levels = [0, 0, 0]
    for item in items:
        if item.text in found or levels[item.level - 1] * 3 >= wanted:
            continue
        found[item.text] = item
        levels[item.level - 1] += 1
        if all(count * 3 >= wanted for count in levels):
            break
    return list(found.values())


def _deal(items: list[Item], rng: Random) -> dict[str, list[Item]]:
    """Deal every level in turn, so that both files are equally hard."""
    shuffled = [items[i] for i in rng.permutation(len(items))]
    shuffled.sort(key=lambda item: item.level)
    share = SIZES["calibration"] / sum(SIZES.values())
    to_calibration = np.diff(np.floor(np.arange(len(shuffled) + 1) * share + 0.5)) > 0
    files: dict[str, list[Item]] = {name: [] for name in SIZES}
    for item, calibrates in zip(shuffled, to_calibration, strict=True):
        files["calibration" if calibrates else "evaluation"].append(item)
    return files


def _row(name: str, category: str, number: int, item: Item, rng: Random) -> dict[str, object]:
    row: dict[str, object] = {
        "question_id": f"{name[:4]}-{category}-{number:02}",
        "category": category,
        "level": item.level,
        "question": item.text,
    }
    if not item.wrong:
        return row | {"gold": item.answer}
    # every letter is right equally often
    options = [str(wrong) for wrong in rng.permutation(item.wrong)]
    options.insert(number % (1 + len(options)), item.answer)
    return row | {"options": options, "gold": "ABCD"[options.index(item.answer)]}


# numbers


def sums(rng: Random) -> Iterator[Item]:
    """Addition and subtraction of numbers of one, two and three digits."""
    while True:
        for level, top in ((1, 10), (2, 40), (3, 300)):
            a, b = sorted(map(int, rng.integers(top // 10 + 1, top, 2)), reverse=True)
            if rng.random() < 0.5:
                yield Item(level, f"What is {a} + {b}?", str(a + b))
            else:
                yield Item(level, f"What is {a} - {b}?", str(a - b))


def products(rng: Random) -> Iterator[Item]:
    """The small and the large table of multiplication."""
    while True:
        for level, (low, high) in ((1, (2, 6)), (2, (4, 10)), (3, (7, 16))):
            a, b = map(int, rng.integers(low, high, 2))
            yield Item(level, f"What is {a} x {b}?", str(a * b))


def stories(rng: Random) -> Iterator[Item]:
    """Word problems of one step, and of two at the hardest."""
    names = ("Tom", "Anna", "Ben", "Maria", "Sam", "Lucy", "Max", "Ella")
    things = ("apples", "books", "coins", "marbles", "pens", "cards", "eggs", "stamps")
    while True:
        name, thing = str(rng.choice(names)), str(rng.choice(things))
        a, b = map(int, rng.integers(2, 10, 2))
        yield Item(
            1, f"{name} has {a} {thing} and gets {b} more. How many {thing} does {name} have now?", str(a + b)
        )
        a, b = int(rng.integers(8, 30)), int(rng.integers(2, 8))
        yield Item(
            2,
            f"{name} has {a} {thing} and gives away {b}. How many {thing} does {name} have left?",
            str(a - b),
        )
        a, b, c = int(rng.integers(2, 7)), int(rng.integers(2, 7)), int(rng.integers(1, 4))
        yield Item(
            3,
            f"{name} buys {a} boxes with {b} {thing} each and loses {c} {thing}. How many {thing} are left?",
            str(a * b - c),
        )


# words


def _listed(
    rng: Random, ask: Callable[[str], str], known: Sequence[Sequence[tuple[str, str]]], n_wrong: int = 3
) -> Iterator[Item]:
    """Questions from tables of (subject, answer), one a level; wrong options are its other answers."""
    for level, table in enumerate(known, start=1):
        answers = sorted({answer for _, answer in table})
        for i in rng.permutation(len(table)):
            subject, answer = table[i]
            others = [other for other in answers if other != answer]
            wrong = tuple(str(other) for other in rng.choice(others, n_wrong, replace=False))
            yield Item(level, ask(subject), answer, wrong)


def capitals(rng: Random) -> Iterator[Item]:
    """Capitals of countries, from the well known to the less known."""
    return _listed(rng, "What is the capital of {}?".format, CAPITALS)


def opposites(rng: Random) -> Iterator[Item]:
    """Opposites of words, from the common to the less common."""
    return _listed(rng, "What is the opposite of '{}'?".format, OPPOSITES)


def kinds(rng: Random) -> Iterator[Item]:
    """What kind of thing something is."""
    return _listed(rng, "What kind of thing is a {}?".format, KINDS)


def continents(rng: Random) -> Iterator[Item]:
    """On which continent a country is."""
    return _listed(rng, "On which continent is {}?".format, CONTINENTS)


def verbs(rng: Random) -> Iterator[Item]:
    """The past tense of irregular verbs, from the common to the less common."""
    return _listed(rng, "What is the past tense of '{}'?".format, VERBS)


def _pairs(text: str) -> list[tuple[str, str]]:
    return [(a.strip(), b.strip()) for a, _, b in (pair.partition(":") for pair in text.split(","))]


CAPITALS = (
    _pairs(
        "France: Paris, Germany: Berlin, Italy: Rome, Spain: Madrid, Japan: Tokyo, China: Beijing, "
        "Russia: Moscow, England: London, Egypt: Cairo, Greece: Athens, India: New Delhi, "
        "Ireland: Dublin, Austria: Vienna"
    ),
    _pairs(
        "Canada: Ottawa, Portugal: Lisbon, Poland: Warsaw, Norway: Oslo, Sweden: Stockholm, "
        "Hungary: Budapest, Cuba: Havana, Turkey: Ankara, Iran: Tehran, Thailand: Bangkok, "
        "Kenya: Nairobi, Peru: Lima, Denmark: Copenhagen"
    ),
    _pairs(
        "Finland: Helsinki, Chile: Santiago, Morocco: Rabat, Nepal: Kathmandu, Latvia: Riga, "
        "Ghana: Accra, Ecuador: Quito, Jordan: Amman, Uruguay: Montevideo, Croatia: Zagreb, "
        "Senegal: Dakar, Mongolia: Ulaanbaatar"
    ),
)

OPPOSITES = (
    _pairs(
        "hot: cold, big: small, up: down, good: bad, day: night, black: white, happy: sad, "
        "fast: slow, old: young, open: closed, left: right, wet: dry, rich: poor"
    ),
    _pairs(
        "strong: weak, early: late, full: empty, hard: soft, light: dark, true: false, begin: end, "
        "buy: sell, win: lose, push: pull, love: hate, clean: dirty, high: low"
    ),
    _pairs(
        "ancient: modern, expand: shrink, brave: cowardly, generous: stingy, victory: defeat, "
        "rough: smooth, arrive: depart, increase: decrease, shallow: deep, guilty: innocent, "
        "temporary: permanent, import: export"
    ),
)

KINDS = (
    _pairs(
        "dog: animal, rose: flower, apple: fruit, hammer: tool, piano: instrument, car: vehicle, "
        "horse: animal, banana: fruit, guitar: instrument, truck: vehicle, saw: tool, tulip: flower, "
        "cat: animal"
    ),
    _pairs(
        "carrot: vegetable, eagle: bird, violin: instrument, shirt: garment, salmon: fish, "
        "onion: vegetable, sparrow: bird, trout: fish, jacket: garment, trumpet: instrument, "
        "owl: bird, cabbage: vegetable, sock: garment"
    ),
    _pairs(
        "granite: rock, copper: metal, oxygen: gas, oak: tree, emerald: gemstone, nitrogen: gas, "
        "iron: metal, maple: tree, ruby: gemstone, marble: rock, helium: gas, pine: tree"
    ),
)

CONTINENTS = (
    _pairs(
        "France: Europe, Japan: Asia, Canada: North America, Egypt: Africa, Brazil: South America, "
        "India: Asia, Germany: Europe, Mexico: North America, China: Asia, Kenya: Africa, "
        "Italy: Europe, Argentina: South America"
    ),
    _pairs(
        "Nigeria: Africa, Peru: South America, Spain: Europe, Thailand: Asia, Cuba: North America, "
        "Morocco: Africa, Chile: South America, Poland: Europe, Vietnam: Asia, Ghana: Africa, "
        "Norway: Europe, Colombia: South America"
    ),
    _pairs(
        "Nepal: Asia, Bolivia: South America, Zambia: Africa, Latvia: Europe, Panama: North America, "
        "Laos: Asia, Senegal: Africa, Uruguay: South America, Croatia: Europe, "
        "Honduras: North America, Mali: Africa, Bhutan: Asia"
    ),
)

VERBS = (
    _pairs(
        "go: went, eat: ate, run: ran, see: saw, take: took, give: gave, come: came, make: made, "
        "write: wrote, drink: drank, find: found, have: had"
    ),
    _pairs(
        "buy: bought, think: thought, speak: spoke, fly: flew, drive: drove, teach: taught, "
        "swim: swam, break: broke, choose: chose, know: knew, grow: grew, leave: left"
    ),
    _pairs(
        "seek: sought, bind: bound, weave: wove, tread: trod, cling: clung, freeze: froze, "
        "forbid: forbade, strive: strove, swear: swore, shrink: shrank, tear: tore, forsake: forsook"
    ),
)

CATEGORIES: dict[str, Callable[[Random], Iterator[Item]]] = {
    "sums": sums,
    "products": products,
    "stories": stories,
    "capitals": capitals,
    "opposites": opposites,
    "kinds": kinds,
    "continents": continents,
    "verbs": verbs,
}

if __name__ == "__main__":
    main()
