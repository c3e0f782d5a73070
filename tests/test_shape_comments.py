"""The machinery that executes shape comments: what it must accept, what it must catch, and which line it must blame."""
import importlib.util
import itertools
import sys
import textwrap

import pytest
import torch

from tests.shape_comments import check_shapes

HEAD = "import numpy as np\nimport torch\nfrom torch import nn\nzeros = torch.zeros\n"
numbers = itertools.count()


def zeros(*shape):
    return torch.zeros(shape)


@pytest.fixture
def run(tmp_path):
    """run(code, call) -> report of a module with that code after `call(module)`; line 1 of the code is line 5 of the file."""

    def write_and_check(code, call=lambda m: None):
        path = tmp_path / f"commented{next(numbers)}.py"
        path.write_text(HEAD + textwrap.dedent(code).lstrip("\n"))
        spec = importlib.util.spec_from_file_location(path.stem, path)
        module = importlib.util.module_from_spec(spec)
        sys.modules[module.__name__] = module
        try:
            spec.loader.exec_module(module)
            return check_shapes([module], lambda: call(module))[0]
        finally:
            del sys.modules[module.__name__]

    return write_and_check


def clean(report):
    assert report.failures == [] and report.untested == []
    assert report.comments or report.documented
    return True


def blamed(report):
    """Line numbers (within the code given to run) and texts of the failures."""
    return [(int(f.split(".py:")[1].split(":")[0]) - 4, f) for f in report.failures]


def test_true_comments_pass(run):
    report = run(
        """
        def f(x):
            y = x[:, :, ::2, ::2]  # [B, C, H/2, W/2]
            z = y.flatten(2)  # [B, C, H/2*W/2]
            q, k = z[..., :3], z.mean((1, 2))  # [B, C, 3], [B]
            q += 1  # [..., 3]
            n: int = len(k)  # []
            return torch.cat([x, x], 1)  # [B, 2*C, H, W]
        """,
        lambda m: m.f(zeros(2, 3, 8, 4)),
    )
    assert clean(report) and len(report.comments) == 6


def test_a_wrong_comment_is_caught_on_its_line(run):
    report = run(
        """
        def f(x):
            a = x + 1  # [B, C]
            b = a.T  # [B, C]
            return a  # [B, C]
        """,
        lambda m: m.f(zeros(2, 3)),
    )
    [(line, text)] = blamed(report)
    assert line == 3 and "# [B, C]: b is [3, 2]: B = 2, found 3 (B = 2, bound by line 6)" in text


def test_the_docstring_binds_first_so_that_the_wrong_early_line_is_blamed(run):
    code = '''
        def f(x):
            """{}."""
            y = x.transpose(1, 2)  # [B, N, D]
            return x * 1  # [B, N, D]
        '''
    [(line, text)] = blamed(run(code.format("x: [B, N, D]"), lambda m: m.f(zeros(2, 3, 4))))
    assert line == 3 and "N = 3, found 4 (N = 3, bound by line 6)" in text
    [(line, _)] = blamed(run(code.format("no shapes"), lambda m: m.f(zeros(2, 3, 4))))
    assert line == 4  # without the docstring the first line is believed


def test_a_contradictory_comment_binds_nothing(run):
    report = run(
        """
        def f(x, y):
            a, b = x, y  # [P, Q], [P, Q]
            c = x  # [P, 3]
            d = y  # [Q, 5]
        """,
        lambda m: m.f(zeros(2, 3), zeros(4, 5)),
    )
    assert [line for line, _ in blamed(report)] == [2]


def test_a_wrong_docstring_is_caught(run):
    report = run(
        '''
        def f(image, tags):
            """Score.

            image float [B, 3, H, W] normalised, tags: [B, K-1] in {0, 1} -> [B]
            """
            return image.sum((1, 2, 3))  # [B]
        ''',
        lambda m: m.f(zeros(2, 3, 4, 5), zeros(7, 6)),
    )
    [(line, text)] = blamed(report)
    assert line == 4 and "docstring, tags: [B, K-1]: tags is [7, 6]: B = 2, found 7" in text


def test_docstrings_with_alternatives(run):
    code = """
        def f(x):
            '''x: [B, C, H, W] with patches, or tokens [B, N, D]. Here [B, N] is prose.'''
            return x.sum()  # []
        """
    assert clean(run(code, lambda m: [m.f(zeros(2, 3, 4, 5)), m.f(zeros(2, 3, 4))]))
    assert [line for line, _ in blamed(run(code.replace("or tokens", "not"), lambda m: m.f(zeros(2, 3, 4))))] == [2]


@pytest.mark.parametrize(
    "comment, shape, good",
    [
        ("[B, C]", (2, 3), True), ("[B, C, H]", (2, 3), False), ("[B]", (2, 3), False), ("[2, 3]", (2, 3), True), ("[2, 4]", (2, 3), False),
        ("[n, n]", (3, 3), True), ("[n, n]", (3, 4), False), ("[n, 2*n]", (3, 6), True), ("[2*n, n]", (6, 3), True), ("[2*n, n]", (7, 3), False),
        ("[2*n]", (7,), False), ("[H/8, H]", (2, 16), True), ("[H/8, H]", (2, 17), False), ("[H, H/8]", (17, 2), False), ("[K-1, K]", (4, 5), True),
        ("[h*w, h, w]", (12, 3, 4), True), ("[h*w, h, w]", (12, 3, 5), False), ("[1+h*w, h, w]", (13, 3, 4), True), ("[h*w]", (12,), False),
        ("[..., D]", (2, 3, 4), True), ("[..., 4]", (4,), True), ("[B, ..., B]", (2, 5, 3), False), ("[B, ..., B]", (2, 5, 5, 2), True), ("[a, ..., b]", (2,), False),
        ("[n, n//2]", (5, 2), True), ("[n//2, n]", (2, 5), True), ("[n//2, n]", (3, 5), False), ("[-(-n//2), n]", (3, 5), True), ("[n**2, n]", (9, 3), True),
        ("[]", (), True), ("[]", (1,), False), ("[1]", (), False), ("[n/2]", (0,), True), ("[0, n]", (0, 3), True), ("[(n+1)/2, n]", (2, 3), True),
    ],
    ids=str,
)
def test_arithmetic(run, comment, shape, good):
    report = run(f"def f(x):\n    y = x  # {comment}\n", lambda m: m.f(zeros(*shape)))
    assert (report.failures == []) is good and report.untested == []


def test_names_of_variables_count_as_they_stand(run):
    code = """
        class Net:
            heads = 3
            def f(self, x, width):
                B, N, D = x.shape  # [B, N, D]
                y = x.view(B, N, self.heads, {})  # [B, N, self.heads, D/self.heads]
                n = 2
                z = x[:n]  # [n, N, width]
        """
    assert clean(run(code.format("-1"), lambda m: m.Net().f(zeros(4, 5, 6), 6)))
    [(line, text)] = blamed(run(code.format("-1"), lambda m: m.Net().f(zeros(4, 5, 6), 7)))
    assert line == 7 and "width = 7, a variable" in text


def test_names_are_free_again_in_the_next_call(run):
    assert clean(run("def f(x):\n    y = x  # [B, C]\n", lambda m: [m.f(zeros(2, 3)), m.f(zeros(4, 5))]))


def test_several_tensors(run):
    code = """
        def f(x):
            a, b, c = x.unbind(1)  # [B, C]
            d = [a, b]  # [B, C]
            e = (a, a.T)  # [B, C], [C, B]
            g = {"one": a, "two": b}  # [B, C]
            h = None  # [B, 99]
            i, j = a, 7  # [B, C]
            return a, c.sum()  # [B, C], []
        """
    report = run(code, lambda m: m.f(zeros(2, 3, 4)))
    assert report.failures == []
    assert len(report.untested) == 1 and "# [B, 99]: never executed" in report.untested[0]
    [(line, text)] = blamed(run("def f(x):\n    a, b = x, x.T  # [B, C]\n", lambda m: m.f(zeros(2, 3))))
    assert line == 2 and "(a, b), number 2 is [3, 2]" in text
    [(_, text)] = blamed(run("def f(x):\n    a = [x, x, x]  # [B, C], [B, C]\n", lambda m: m.f(zeros(2, 3))))
    assert "2 shapes for 3 values of a" in text


def test_each_lets_names_differ_between_passes_only(run):
    code = """
        def f(x):
            B = len(x)
            maps = []
            for i in range(2):
                x = x[:, :, ::2]  # [B, C, h]{}
                maps.append(x)
            return maps  # [B, C, h]{}
        """
    assert clean(run(code.format(" each", " each, from fine to coarse"), lambda m: m.f(zeros(2, 3, 8))))
    assert [line for line, _ in blamed(run(code.format("", " each"), lambda m: m.f(zeros(2, 3, 8))))] == [5, 7]
    assert [line for line, _ in blamed(run(code.format(" each", ""), lambda m: m.f(zeros(2, 3, 8))))] == [7]


def test_loops_branches_and_with_blocks(run):
    code = """
        def f(xs):
            total = 0
            for x in xs:  # [n, 3]
                x = x.T  # [3, n]
                total = total + x.sum()  # []
            if total > 1:
                never = total  # []
            with torch.no_grad():
                return total.expand(4)  # [4]
        """
    report = run(code, lambda m: m.f([zeros(2, 3), zeros(2, 3)]))
    assert report.failures == [] and [u.split(": # ")[1] for u in report.untested] == ["[]: never executed by an example"]
    [(line, _)] = blamed(run(code.replace("[4]", "[5]"), lambda m: m.f([zeros(2, 3)])))
    assert line == 9
    assert [line for line, _ in blamed(run(code, lambda m: m.f([zeros(2, 4)])))] == [3, 4]


def test_statements_over_several_lines(run):
    code = """
        def f(x):
            y = torch.cat(
                [x,
                 x], 1,
            )  # [B, 2*C]
            z = torch.stack([v  # [C, B]
                             for v in x.T])
            return x.reshape(
                -1)  # [{}]
        """
    assert clean(run(code.format("B*C"), lambda m: m.f(zeros(2, 3))))
    assert [line for line, _ in blamed(run(code.format("B"), lambda m: m.f(zeros(2, 3))))] == [9]


def test_decorated_nested_and_autograd_functions(run):
    code = """
        class Double(torch.autograd.Function):
            @staticmethod
            def forward(ctx, x):
                y = 2 * x  # [B, C]
                return y
            @staticmethod
            def backward(ctx, grad):
                g = 2 * grad  # [B, {}]
                return g
        @torch.no_grad()
        def f(x):
            def inner(v):
                w = v.T  # [C, B]
                return w
            return inner(x)  # [C, B]
        def g(x):
            Double.apply(x.requires_grad_()).sum().backward()
            f(x)
        """
    assert clean(run(code.format("C"), lambda m: m.g(zeros(2, 3))))
    assert [line for line, _ in blamed(run(code.format("4"), lambda m: m.g(zeros(2, 3))))] == [8]


def test_signature_comments(run):
    code = """
        def f(
            image,  # [B, 3, H, W]
            mask=None,  # [B, H, W]
            *,
            scale=1.0,  # a word first: prose [not checked]
        ):
            return image.mean(1)  # [B, H, W]
        """
    assert clean(run(code, lambda m: m.f(zeros(2, 3, 4, 5), mask=zeros(2, 4, 5))))
    assert [line for line, _ in blamed(run(code, lambda m: m.f(zeros(2, 3, 4, 5), zeros(2, 5, 4))))] == [3]
    assert len(run(code, lambda m: m.f(zeros(2, 3, 4, 5))).untested) == 1


def test_fields_of_named_tuples_and_dataclasses(run):
    code = """
        from dataclasses import dataclass
        from typing import NamedTuple
        class Pair(NamedTuple):
            a: torch.Tensor  # [B, C]
            b: torch.Tensor  # [B, {}]
        @dataclass(frozen=True)
        class Map:
            image: torch.Tensor  # [B, 3, H, W]
            mask: torch.Tensor | None = None  # [B, H, W]
        """
    good = lambda m: [m.Pair(zeros(2, 3), zeros(2, 6)), m.Pair(zeros(1, 2), b=zeros(1, 4)), m.Map(zeros(2, 3, 4, 5), zeros(2, 4, 5))]  # noqa: E731
    assert clean(run(code.format("2*C"), good)) and len(run(code.format("2*C"), good).comments) == 4
    assert [line for line, _ in blamed(run(code.format("C"), good))] == [5]
    assert [line for line, _ in blamed(run(code.format("2*C"), lambda m: m.Map(zeros(2, 3, 4, 5), zeros(2, 5, 4))))] == [9]


def test_an_exception_on_a_commented_line_is_not_a_test_of_it(run):
    code = """
        def f(x):
            y = x
            try:
                y = x.view(99)  # [99]
            except RuntimeError:
                y = x.flatten()  # [6]
            return y
        """
    report = run(code, lambda m: m.f(zeros(2, 3)))
    assert report.failures == [] and len(report.untested) == 1 and "[99]" in report.untested[0]


def test_unexecuted_comments_are_reported(run):
    report = run("def f(x):\n    y = x  # [B]\n", lambda m: None)
    assert report.failures == [] and len(report.untested) == 1 and ":6: # [B]: never executed by an example" in report.untested[0]


@pytest.mark.parametrize(
    "line, reason",
    [
        ("y = x  # [B, C x 2]", "not a list of dimensions"), ("y = x  # [B, *size]", "not arithmetic"), ("y = x  # [B, C", "not closed"),
        ("y = x  # [B, f(C)]", "not arithmetic"), ("y = x  # [B, 1.5]", "not arithmetic"), ("y = x  # [..., B, ...]", "may stand once"),
        ("print(x.shape)  # [B, C]", "not on the first or last line of an assignment"), ("y = str(x)  # [B]", "is a str, which has no shape"),
    ],
)
def test_comments_that_cannot_be_checked_are_failures(run, line, reason):
    [(at, text)] = blamed(run(f"def f(x):\n    {line}\n", lambda m: m.f(zeros(2, 3))))
    assert at == 2 and reason in text


def test_prose_and_kernels_are_left_alone(run):
    report = run(
        """
        def jit(f):
            return f
        class triton:
            jit = jit
        @triton.jit
        def kernel(x):
            y = x  # [BLOCK]
        # [B, C]
        text = "# [B, C]"
        half = 1  # float32 [B, C]
        ones = np.ones((2, 3))  # [2, 3]
        """
    )
    assert clean(report) and len(report.comments) == 1
    [(line, _)] = blamed(run("ones = np.ones((2, 3))  # [2, 4]"))
    assert line == 1


def test_tracing_leaves_no_trace(run):
    before = sys.gettrace()
    with pytest.raises(ZeroDivisionError):
        run("def f(x):\n    y = x  # [B]\n", lambda m: 1 / 0)
    assert sys.gettrace() is before
