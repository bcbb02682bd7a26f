"""The examples in the docstrings of segkern.ops, as written."""

from __future__ import annotations

import doctest
import inspect
import sys

import pytest

from segkern import ops

FUNCTIONS = [name for name in ops.__all__ if inspect.isfunction(getattr(ops, name))]
EXAMPLES = {
    name: doctest.DocTestFinder().find(getattr(ops, name), name, globs={})[0] for name in FUNCTIONS
}


@pytest.mark.parametrize("name", EXAMPLES)
def test_example(name):
    example = EXAMPLES[name]
    assert example.examples, f"{name} has no example"
    report: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
    result = runner.run(example, out=report.append)
    assert result.attempted > 0
    assert result.failed == 0, "".join(report)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_docstring_says_what_is_needed(name):
    """Arguments by name, results, errors, determinism."""
    function = getattr(ops, name)
    text = inspect.getdoc(function)
    for section in ("Args:", "Returns:", "Raises:", "Deterministic", "Example:"):
        assert section in text, section
    described = text[text.index("Args:") : text.index("Returns:")]
    for parameter in inspect.signature(function).parameters:
        assert parameter in described, parameter


def test_every_public_name_is_listed():
    """What `segkern.ops` defines and what it says it defines."""
    module = sys.modules["segkern.ops"]
    functions = {name for name, value in vars(module).items() if inspect.isfunction(value)}
    assert functions == set(FUNCTIONS)
