"""The recipe `malt`: values, labels and pairs of thousands of random trees, against an enumeration of all trajectories
that knows nothing of the code; and of GSM8K with recorded replies, against the published verdicts."""

import gc
import gzip
import json
import math
import resource
from collections import Counter
from fractions import Fraction
from itertools import combinations, product
from pathlib import Path
from random import Random

import pytest

import weaverant
from weaverant import Reply, UserError
from weaverant.cli.show import storyteller
from weaverant.engines.scripted import Scripted
from weaverant.journal import JournalReader
from weaverant.message import assistant
from weaverant.recipes.malt import tree as trees
from weaverant.recipes.malt.exports import dropped_counts, grown_of, preference_samples, sft_samples, value_samples
from weaverant.recipes.malt.recipe import malt
from weaverant.recipes.malt.values import Rule, confidence, families, half_width, pairs, positives, rule_of, unread

SOLUTIONS = Path(__file__).parents[2] / "shared/data/recipes/gsm8k/example_model_solutions.jsonl.gz"
TREES = 4_000
ROLES = ("generator", "verifier", "refiner")


# Random trees, as plain data


def grown(dice: Random) -> trees.Tree:
    """A tree of random branching whose texts often come twice. A refinement is right by its text: a checker is fixed."""
    n = [dice.randint(1, 4) for _ in range(3)]
    words = dice.randint(1, 6)
    right = {f"r{word}": dice.random() < 0.5 for word in range(words)}

    def leaf():
        text = f"r{dice.randrange(words)}"
        return trees.refinement(text, text, right[text])

    def critique():
        return trees.critique(f"v{dice.randrange(words)}", [leaf() for _ in range(n[2])])

    def attempt():
        return trees.attempt(f"g{dice.randrange(words)}", None, [critique() for _ in range(n[1])])

    return {
        "question": "q", "gold": "1", "checker": "exact", "theta": 0.5, "attempts": [attempt() for _ in range(n[0])],
    }  # fmt: skip


def exactly(theta):
    """A third is meant where a third was written."""
    return Fraction(theta).limit_denominator(1_000)


# The enumeration: every trajectory is three texts and a reward. It has one definition each of value, label and pair.


def trajectories(tree):
    return [
        ((a["text"], v["text"], r["text"]), r["value"] == 1)
        for a in tree["attempts"]
        for v in a["critiques"]
        for r in v["refinements"]
    ]


def expected_values(tree, rule):
    """By the texts on the way to a reply: its exact value. Of `local` the attempt's is a share of its critiques."""
    rewards = {}
    for texts, right in trajectories(tree):
        for depth in (1, 2, 3):
            rewards.setdefault(texts[:depth], []).append(Fraction(right))
    found = {key: sum(list_, Fraction()) / len(list_) for key, list_ in rewards.items()}
    if rule.values == "local":
        votes = {}
        for a in tree["attempts"]:
            for v in a["critiques"]:
                votes.setdefault((a["text"],), []).append(Fraction(found[a["text"], v["text"]] > exactly(rule.theta)))
        found |= {key: sum(list_, Fraction()) / len(list_) for key, list_ in votes.items()}
    return found


def expected_leaves(tree, rule, key):
    if rule.values == "local" and len(key) == 1:
        return sum(len(a["critiques"]) for a in tree["attempts"] if a["text"] == key[0])
    return sum(texts[: len(key)] == key for texts, _ in trajectories(tree))


def is_sure(tree, rule, key, value):
    if not rule.min_confidence or len(key) == 3:
        return True
    # P(error >= distance) <= 2 exp(-2 m distance^2) must be below what may be
    distance = abs(float(value) - rule.theta)
    m = expected_leaves(tree, rule, key)
    return 2 * math.exp(-2 * m * distance**2) < 1 - rule.min_confidence


def expected_positives(tree, rule):
    found = expected_values(tree, rule)
    return {key for key, value in found.items() if value > exactly(rule.theta) and is_sure(tree, rule, key, value)}


def expected_pairs(tree, rule):
    found = {key: value for key, value in expected_values(tree, rule).items() if is_sure(tree, rule, key, value)}
    theta = exactly(rule.theta)
    return {
        (one, two) if found[one] > theta else (two, one)
        for one, two in combinations(found, 2)
        if one[:-1] == two[:-1] and (found[one] > theta) != (found[two] > theta)
    }


def random_rule(dice):
    return Rule(
        dice.choice([0.5, 0.5, 0.0, 0.34, 0.67, 1 / 3, 2 / 3]),
        dice.choice(["global", "local"]),
        dice.choice([0.0, 0.0, 0.3, 0.5, 0.8]),
    )


@pytest.mark.parametrize("part", range(4))
def test_values_labels_and_pairs_are_those_of_all_trajectories(part):
    seen = Counter()
    for seed in range(part, TREES, 4):
        dice = Random(seed)
        tree, rule = grown(dice), random_rule(dice)
        found = list(families(tree, rule))
        expected = expected_values(tree, rule)

        nodes = {(*family.above, node.text): node for family in found for node in family.nodes}
        assert len(nodes) == sum(len(family.nodes) for family in found)
        assert {key: node.value for key, node in nodes.items()} == {key: float(v) for key, v in expected.items()}, seed
        assert {key: node.leaves for key, node in nodes.items()} == {
            key: expected_leaves(tree, rule, key) for key in expected
        }
        assert all(node.role == ROLES[len(key) - 1] for key, node in nodes.items())

        made = [(*family.above, node.text) for family, node in positives(found, rule, Counter())]
        assert len(made) == len(set(made))
        assert set(made) == expected_positives(tree, rule), seed

        paired = [
            ((*family.above, chosen.text), (*family.above, rejected.text))
            for family, chosen, rejected in pairs(found, rule, Counter())
        ]
        assert len(paired) == len(set(paired))
        assert set(paired) == expected_pairs(tree, rule), seed
        seen["positives"] += len(made)
        seen["pairs"] += len(paired)
        seen["unsure"] += len(nodes) - sum(rule.sure(node) for node in nodes.values())
        seen["twice"] += sum(len(node.paths) > 1 for node in nodes.values())
    assert min(seen.values()) > 500, seen


@pytest.mark.parametrize("seed", range(300))
def test_every_draw_is_counted(seed):
    """Each of the calls is a sample, or left out for one reason; each pair of labels is a pair, or left out."""
    dice = Random(seed)
    tree, rule = grown(dice), random_rule(dice)._replace(max_pairs=dice.choice([0, 0, 1, 2]))
    found = list(families(tree, rule))
    without = Counter()
    made = list(positives(found, rule, without))
    n = [len(tree["attempts"]), len(tree["attempts"][0]["critiques"]), 0]
    n[2] = len(tree["attempts"][0]["critiques"][0]["refinements"])
    assert len(made) + without.total() == trees.branching_of(n).calls
    without = Counter()
    made = list(pairs(found, rule, without))
    goods = [sum(rule.good(node) for node in family.nodes) for family in found]
    all_pairs = sum(good * (len(family.nodes) - good) for good, family in zip(goods, found, strict=True))
    alike = sum(good in (0, len(family.nodes)) for good, family in zip(goods, found, strict=True))
    assert len(made) + without.total() == all_pairs + alike
    assert sum(count for reason, count in without.items() if "all siblings" in reason) == alike


@pytest.mark.parametrize("seed", range(300))
def test_the_pairs_that_may_stay_are_the_widest_and_use_each_reply_in_turn(seed):
    dice = Random(seed)
    tree = grown(dice)
    rule = Rule(theta=dice.choice([0.3, 0.5]))
    found = list(families(tree, rule))
    everything = list(pairs(found, rule, Counter()))
    most = dice.randint(1, 3)
    some = list(pairs(found, rule._replace(max_pairs=most), Counter()))
    again = list(pairs(list(families(tree, rule)), rule._replace(max_pairs=most), Counter()))
    assert some == again

    def gaps(made, family):
        return [pair.chosen.value - pair.rejected.value for pair in made if pair.family is family]

    for family in found:
        assert gaps(some, family) == sorted(gaps(everything, family), reverse=True)[:most]
        taken = [pair for pair in some if pair.family is family]
        if len(set(gaps(everything, family))) == 1:
            good = sum(rule.good(node) for node in family.nodes)
            bad = len(family.nodes) - good
            rounds = min(len(taken), max(good, bad))
            assert len({pair.chosen.text for pair in taken[:rounds]}) == min(rounds, good)
            assert len({pair.rejected.text for pair in taken[:rounds]}) == min(rounds, bad)


def test_majority_level_by_level_is_another_thing_than_the_share_of_leaves():
    """Five of nine leaves are right, but only one critique of three has a majority; and the other way round."""

    def tree(*rights):
        critiques = [
            trees.critique(f"v{j}", [trees.refinement(f"{k} {bool(k < right)}", None, k < right) for k in range(3)])
            for j, right in enumerate(rights)
        ]
        return {
            "question": "",
            "gold": "",
            "checker": "",
            "theta": 0.5,
            "attempts": [trees.attempt("g", None, critiques)],
        }

    for rights, of_all, by_level in (((3, 1, 1), 5 / 9, 1 / 3), ((2, 2, 0), 4 / 9, 2 / 3)):
        for values, value, leaves in (("global", of_all, 9), ("local", by_level, 3)):
            family = next(families(tree(*rights), Rule(values=values)))
            assert (family.nodes[0].value, family.nodes[0].leaves) == (value, leaves)


# Confidence


def test_hoeffding_half_widths():
    assert half_width(9) == pytest.approx(0.4527, abs=1e-4)  # sqrt(ln 40 / 18)
    assert half_width(3) == pytest.approx(0.7841, abs=1e-4)
    assert half_width(27, 0.9) == pytest.approx(math.sqrt(math.log(20) / 54))
    assert half_width(0) == math.inf
    for m, c in product((1, 3, 9, 100), (0.1, 0.5, 0.95, 0.99)):
        assert confidence(m, half_width(m, c)) == pytest.approx(c)
    assert confidence(3, 0.1) == 0.0


def test_the_interval_holds_what_is_estimated():
    """Of 2,000 nodes with 16 leaves each, far fewer than 5 % lie further off than the half-width: it is a bound."""
    dice = Random(7)
    outside = 0
    for _ in range(2_000):
        true = dice.random()
        mean = sum(dice.random() < true for _ in range(16)) / 16
        outside += abs(mean - true) >= half_width(16)
    assert outside / 2_000 < 0.05


def test_a_leaf_is_sure():
    tree = grown(Random(0))
    rule = Rule(min_confidence=0.99)
    leaves = [node for family in families(tree, rule) if family.role == "refiner" for node in family.nodes]
    assert leaves and all(rule.sure(node) and node.half_width() == 0 for node in leaves)


@pytest.mark.parametrize("rule", [Rule(min_confidence=1.0), Rule(min_confidence=-0.1), Rule(max_pairs=-1)])
def test_a_rule_that_is_none_says_so(rule):
    with pytest.raises(UserError, match="found"):
        rule.checked()


# Branching


@pytest.mark.parametrize(
    ("given", "calls", "leaves"), [(3, 39, 27), ("3", 39, 27), ("3,2,3", 27, 18), ([1, 1, 4], 6, 4), ("4, 1, 1", 12, 4)]
)
def test_branching_by_level(given, calls, leaves):
    size = trees.branching_of(given)
    assert (size.calls, size.leaves) == (calls, leaves)
    rows = [{"question": "?", "answer": "1"}]
    run = weaverant.run(malt, rows, models=Scripted("1"), journal=False, parameters={"branching": given})
    (task,) = run
    assert run.ledger.calls == calls
    assert len(trajectories(task.result)) == leaves


@pytest.mark.parametrize("given", [0, "0", "3,2", "3,0,3", "a", "", [1, 2, 3, 4], [], -1])
def test_a_branching_that_is_none_says_so(given):
    with pytest.raises(UserError, match="expected a number from 1 on, or three"):
        trees.branching_of(given)


# GSM8K, with replies that real models gave


def recorded():
    if not SOLUTIONS.exists():
        pytest.skip(f"GSM8K's example solutions are not at {SOLUTIONS}")
    rows = [json.loads(line) for line in gzip.decompress(SOLUTIONS.read_bytes()).splitlines()]
    return [(row, [told for told in row.values() if isinstance(told, dict)]) for row in rows]


class Recorded:
    """Answers each branch with a recorded solution of the question: generator `i` with the i-th, refiner `i.j.k` with
    the one that (i + j + k) mod 4 says; the verifier says one of two things."""

    identity = "recorded"

    def __init__(self, known):
        self.known = {row["question"]: [told["solution"] for told in solutions] for row, solutions in known}

    async def generate(self, request, ctx):
        numbers = [int(part) for part in ctx.path.split(".")]
        question = request.messages[0].text.split("Problem:\n")[1].split("\n\nSolution")[0].strip()
        if request.agent == "verifier":
            return Reply(assistant("Right." if numbers[1] % 2 else "Wrong."))
        return Reply(assistant(self.known[question.strip()][sum(numbers) % 4]))

    async def close(self):
        pass


def test_gsm8k_gives_the_sets_that_its_published_verdicts_say(tmp_path):
    """Every second of 1,319 questions, with 4 generations, 2 critiques and 3 refinements each: 23,760 calls. What comes
    out is told from `is_correct` alone."""
    known = recorded()[::2]
    rows = [
        {"question": row["question"].strip(), "answer": row["ground_truth"].rpartition("A: ")[2]} for row, _ in known
    ]
    known = [({**row, "question": row["question"].strip()}, solutions) for row, solutions in known]
    rule = Rule()
    made, expected = Counter(), Counter()
    run = weaverant.run(malt, rows, models=Recorded(known), journal=False, parameters={"branching": "4,2,3"})
    verdicts = {row["question"]: solutions for row, solutions in known}
    for task in run:
        assert task.state == "done"
        found = list(families(task.result, rule))
        made.update(f"sft {family.role}" for family, _ in positives(found, rule, Counter()))
        made.update(f"pair {pair.family.role}" for pair in pairs(found, rule, Counter()))
        said = [(told["solution"], told["is_correct"]) for told in verdicts[task.row["question"]]]
        told = {
            "attempts": [
                trees.attempt(said[i][0], None, [
                    trees.critique(("Wrong.", "Right.")[j], [
                        trees.refinement(said[(i + j + k) % 4][0], None, said[(i + j + k) % 4][1]) for k in range(3)
                    ]) for j in range(2)
                ]) for i in range(4)
            ]
        }  # fmt: skip
        expected.update(f"sft {ROLES[len(key) - 1]}" for key in expected_positives(told, rule))
        expected.update(f"pair {ROLES[len(one) - 1]}" for one, _ in expected_pairs(told, rule))
    assert run.ledger.calls == 660 * (4 + 8 + 24)
    assert made == expected
    assert min(made.values()) > 100 and len(made) == 6, made


def test_gsm8k_pairs_under_one_parent_are_right_times_wrong():
    """One attempt, one critique, four refinements: the pairs are those of distinct right and wrong solutions."""
    known = recorded()
    rows = [
        {"question": row["question"].strip(), "answer": row["ground_truth"].rpartition("A: ")[2]} for row, _ in known
    ]
    known = [({**row, "question": row["question"].strip()}, solutions) for row, solutions in known]
    run = weaverant.run(malt, rows, models=Recorded(known), journal=False, parameters={"branching": "1,1,4"})
    made = 0
    for task in run:
        made += sum(1 for pair in pairs(families(task.result), Rule(), Counter()) if pair.family.role == "refiner")
    expected = 0
    for _, solutions in known:
        right = {told["solution"] for told in solutions if told["is_correct"]}
        wrong = {told["solution"] for told in solutions if not told["is_correct"]}
        expected += len(right) * len(wrong)
    assert made == expected > 2_000


# What is exported, by any rule


def draw(request):
    dice = Random(f"{request.seed} {request.messages}")
    return f"{request.agent} {dice.randrange(4)}\n#### {dice.randrange(3)}"


def stories(directory):
    reader = JournalReader(directory)
    teller = storyteller(directory, reader)
    for task in reader.tasks():
        yield teller.tell(reader.task_events(task.task))


def test_labels_can_be_made_anew_without_asking_anybody(tmp_path):
    """A run grown with one rule and exported by another is one that was grown with that other."""
    rows = [{"question": f"{n}?", "answer": "1"} for n in range(20)]
    rules = [Rule(), Rule(0.67), Rule(0.34, "local"), Rule(0.5, "global", 0.3, 1)]
    for number, rule in enumerate(rules):
        run = weaverant.run(
            malt, rows, models=Scripted(draw), directory=tmp_path / str(number), parameters=rule._asdict()
        )
        assert run.wait().exit_code == 0
    made = []
    for number, rule in enumerate(rules):
        own, anew = list(stories(tmp_path / str(number))), list(stories(tmp_path / "0"))
        assert all(rule_of(story.result) == rule for story in own)
        for export in (sft_samples, preference_samples, value_samples, dropped_counts):
            lines = [json.dumps(line) for story in sorted(own, key=lambda s: s.key) for line in export(story)]
            again = [json.dumps(line) for story in sorted(anew, key=lambda s: s.key) for line in export(story, rule)]
            assert lines == again
        made.append(tuple(json.dumps(line) for story in own for line in preference_samples(story)))
    assert len(set(made)) == len(made), "the rules should differ in what they give"


def test_soft_values_are_exported_of_every_reply(tmp_path):
    rows = [{"question": f"{n}?", "answer": "1"} for n in range(5)]
    weaverant.run(malt, rows, models=Scripted(draw), directory=tmp_path / "run").wait()
    for story in stories(tmp_path / "run"):
        lines = list(value_samples(story))
        assert sum(line["draws"] for line in lines) == 39
        assert {line["_file"] for line in lines} == {f"values-{role}.jsonl" for role in ROLES}
        by_texts = expected_values(story.result, Rule())
        assert sorted(line["value"] for line in lines) == sorted(float(value) for value in by_texts.values())
        for line in lines:
            leaf = line["role"] == "refiner"
            assert line["half_width"] == (0 if leaf else half_width(line["leaves"]))
            assert line["label"] == (line["value"] > 0.5)


def test_a_leaf_that_could_not_be_read_is_wrong_and_counted(tmp_path):
    rows = [{"question": "?", "answer": "1"}]
    run = weaverant.run(malt, rows, models=Scripted("I do not know."), directory=tmp_path / "run")
    (task,) = run
    assert {leaf["value"] for a in task.result["attempts"] for v in a["critiques"] for leaf in v["refinements"]} == {
        0.0
    }
    assert unread(task.result) == {"unread": 27}
    (story,) = stories(tmp_path / "run")
    (line,) = dropped_counts(story)
    assert line["leaves"] == {"unread": 27}
    assert grown_of(story).families[0].nodes[0].value == 0


# Memory


class Questions:
    """A source of any number of questions that holds none of them."""

    name = "questions"
    rereadable = True

    def __init__(self, size):
        self.size = size

    def rows(self, start):
        return ({"question": f"Question {n} {'x' * 2_000}?", "answer": "1"} for n in range(start, self.size))

    def identity(self):
        return None

    def count(self):
        return self.size


def resident():
    """Bytes in memory now."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def test_a_run_of_many_trees_holds_none_of_them(tmp_path):
    """Each tree's texts have 30 kB: kept, the last 1,000 trees would take 30 MB."""
    run = weaverant.run(
        malt, Questions(1_300), models=Scripted(lambda request: f"{request.seed} {'y' * 6_000}"),
        directory=tmp_path / "run", parameters={"branching": "1,1,3"}, in_flight=16,
    )  # fmt: skip
    held = [resident() for number, _ in enumerate(run) if number in (300, 1_299)]
    assert run.ledger.calls == 1_300 * 5
    assert held[1] - held[0] < 12e6
