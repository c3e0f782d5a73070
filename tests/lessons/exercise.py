"""The three tests that every lesson's exercises get: the solution passes, the stubs are all named, each known mistake is told by its name."""
import types

import pytest

from lessons.check import find, load, main


def proofs(number: str, wrong: list[tuple], count: int):
    """Three test functions for the exercises of lesson `number`.

    wrong: (part, answer, words): `check_<part>` of the lesson's checks must find exactly one thing in this answer, in a sentence with these words.
    count: how many exercises there are.
    """
    checks, solution = load(find("checks", number)), load(find("solutions", number))

    def solution_passes(capsys):
        assert checks.check(solution) == []
        assert main([number, "solutions"]) == 0 and "all right" in capsys.readouterr().out

    def stubs_are_named(capsys):
        problems = checks.check(load(find(".", number)))
        assert len(problems) == count and all("nothing written yet" in p for p in problems), problems
        assert main([number]) == 1 and f"{count} still to do" in capsys.readouterr().out

    @pytest.mark.parametrize("part, answer, words", wrong, ids=[f"{part}-{words.replace(' ', '_')}" for part, _, words in wrong])
    def mistakes_are_named(part, answer, words):
        if isinstance(answer, types.FunctionType):  # a kernel keeps its name
            answer.__name__ = part
        problems = getattr(checks, f"check_{part}")(answer)
        assert len(problems) == 1 and words in problems[0], problems

    return solution_passes, stubs_are_named, mistakes_are_named
