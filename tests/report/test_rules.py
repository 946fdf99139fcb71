"""Recommendation: every rule at its boundary, and what it names."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from vitrail.report.indicators import Indicators
from vitrail.report.rules import RULES, SUBJECTS, Rule, advise, apply_rule

CASES: dict[str, Callable[[float], Indicators]] = {
    "unreadable files": lambda value: Indicators(skipped=int(value)),
    "small class": lambda value: Indicators(train_counts={"cat": int(value), "dog": 1000}),
    "unequal classes": lambda value: Indicators(train_counts={"cat": 100, "dog": round(100 * value)}),
    "confused pair": lambda value: Indicators(pairs={"cat as dog": value}),
    "class behind": lambda value: Indicators(accuracy=1.0, recall={"cat": (0.0, 1.0 - value)}),
    "training ahead": lambda value: Indicators(gap=value),
    "still rising": lambda value: Indicators(rise=value),
    "no better than the probe": lambda value: Indicators(over_probe=value),
    "over-confident": lambda value: Indicators(over_confidence=value, confidence_noise=0.001),
    "under-confident": lambda value: Indicators(over_confidence=-value, confidence_noise=0.001),
    "coverage missed": lambda value: Indicators(coverage={"90 %": value}),
    "unlike training": lambda value: Indicators(outliers=(value, 1.0)),
    "fragile": lambda value: Indicators(corruptions={"fog": value}),
    "few test images": lambda value: Indicators(score_interval=(0.0, value)),
    "few test images of a class": lambda value: Indicators(test_counts={"cat": int(value)}),
}
"""Indicators in which the number that a rule looks at has a value."""
STEPS = {"unreadable files": 1, "small class": 1, "few test images of a class": 1, "unequal classes": 0.01}
"""The smallest step of numbers that are counted."""


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_a_rule_applies_from_its_limit_on(rule: Rule) -> None:
    at = CASES[rule.name](rule.limit)
    (measured, *_) = sorted(rule.measure(at), key=lambda one: abs(one.value - rule.limit))
    assert measured.value == pytest.approx(rule.limit, abs=1e-12), "the case has the rule's number"
    step = STEPS.get(rule.name, 1e-9)
    inside, outside = (step, -step) if rule.when == "at least" else (-step, step)
    assert apply_rule(rule, CASES[rule.name](rule.limit + inside)) is not None
    assert apply_rule(rule, CASES[rule.name](rule.limit + outside)) is None
    assert rule.applies(rule.limit), "the limit itself does"


def test_every_rule_has_a_case_and_a_name_of_its_own() -> None:
    assert [rule.name for rule in RULES] == list(CASES)
    assert len({rule.finding for rule in RULES}) == len(RULES)


def test_the_guide_lists_every_rule_in_its_order() -> None:
    guide = (Path(__file__).parents[2] / "docs" / "report.md").read_text()
    table = guide.partition("| rule | applies where |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| ([a-z][\w -]+) \|", table, re.MULTILINE) == [rule.name for rule in RULES]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.name)
def test_what_is_not_known_calls_for_nothing(rule: Rule) -> None:
    assert apply_rule(rule, Indicators()) is None
    assert advise(Indicators()) == []


def test_a_difference_within_chance_is_no_over_confidence() -> None:
    assert advise(Indicators(over_confidence=0.2, confidence_noise=0.25)) == []
    assert [found.rule for found in advise(Indicators(over_confidence=0.3, confidence_noise=0.25))] == ["over-confident"]
    assert [found.rule for found in advise(Indicators(over_confidence=-0.3, confidence_noise=0.25))] == ["under-confident"]


def test_the_worst_come_first_and_the_others_are_counted() -> None:
    counts = {f"class {number}": number for number in (40, 3, 17, 9, 25)}
    (found,) = [each for each in advise(Indicators(train_counts=counts)) if each.rule == "small class"]
    assert found.finding == "Few training images: class 3, class 9, class 17 and 2 more (the fewest: 3)."
    assert SUBJECTS == 3
    (found,) = advise(Indicators(pairs={"a as b": 0.2, "c as d": 0.5}))
    assert found.finding == "Taken for each other: c as d, a as b (up to 50.0 % of the class)."


def test_names_are_no_templates() -> None:
    (found,) = advise(Indicators(pairs={"{value} {0.__class__}": 0.2}))
    assert "{value} {0.__class__}" in found.finding


def test_classes_without_training_images_do_not_count_as_the_smallest() -> None:
    assert [found.rule for found in advise(Indicators(train_counts={"a": 100, "b": 90, "c": 0}))] == ["small class"]
    assert not math.isinf(RULES[2].measure(Indicators(train_counts={"a": 100, "b": 0, "c": 50}))[0].value)
