"""Execute shape comments: trace real calls and compare every `# [B, C, H/8, W/8]` with the tensors that the line made.

Grammar
    comment     the last thing on a code line, beginning with a bracket: # [B, C, h, w]; words may follow: # [B, N] in 0..1
                A comment that begins with a word is prose and is not checked.
    group       [dim, dim, ...]; [] is a scalar. Several groups, for several tensors, are separated by commas: # [B, N], [B, D]
    dim         whole numbers, names, + - * / // ** and parentheses: H/8, 2*D, h*w, K-1, 1+N, self.heads. Divisions must come out whole.
                `...` stands for any number of dimensions, once per group: [..., D]
    place       a line of an assignment (also += and annotated), of a return or of a for header; of a statement over several lines the first or
                the last; in a function, or a plain assignment at module level. On a line of a signature it describes the arguments of that line,
                on a field of a NamedTuple or dataclass every instance that is made. Anywhere else it is an error.
                Functions decorated with something called jit are kernels and are left out.

What is compared
    a = ...  # [B, C]                one tensor or numpy array (anything with .shape); a number is []; a torch.Size or tuple of integers is a shape
    a, b = ...  # [B, C], [B, D]     one group per name; a single group describes every tensor among them
    maps = ...  # [B, C]             a list, tuple or dict: every element; or as many groups as elements
    return ...  # [B, C]             the returned value, by the same rules
    x = f(x)  # [B, C, h, w] each    `each` after the last group: new names hold for one tensor and one pass only (loops over stages)
    None is passed over and does not count as tested.

Where a name gets its value, in this order
    1. an integer local variable or argument of that name (dotted names are looked up the same way), as it is at that moment;
    2. the value it was bound to earlier in the same call: first by the function's docstring, which may give shapes of arguments
       (`image: [B, 3, H, W]`, `image float [B, 3, H, W]`; where it says "or", a shape that fits the first of them), then by the signature,
       then line by line;
    3. otherwise this dimension binds it: H/8 of size 4 makes H = 32. A dimension with several unknown names (h*w) waits until later lines bind them,
       and fails if the call ends before.
Nothing carries over from call to call. A comment that contradicts itself or an earlier binding binds nothing, so it spoils no later line;
binding from the docstring first is what puts the blame on the right line.
"""
import ast
import io
import os
import re
import sys
import threading
import tokenize
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from numbers import Integral, Number
from pathlib import Path
from types import FrameType, ModuleType

OPERATORS = {
    ast.Add: lambda a, b: a + b, ast.Sub: lambda a, b: a - b, ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b, ast.FloorDiv: lambda a, b: Fraction(a // b), ast.Pow: lambda a, b: a**b,
}
KINDS = "(?:(?:float|float16|float32|float64|bfloat16|int|int32|int64|uint8|long|bool|tensor|array|logits|probabilities|labels),? )*"


class Malformed(ValueError):
    """A comment that begins like a shape but is none."""


def parse_group(text: str) -> list[ast.expr]:
    """The dimensions between two brackets as expressions, checked against the grammar."""
    try:
        dims = ast.parse(f"[{text}]", mode="eval").body.elts
    except SyntaxError as error:
        raise Malformed(f"[{text}] is not a list of dimensions") from error
    for dim in dims:
        for node in ast.walk(dim):
            whole = isinstance(node, ast.Constant) and (type(node.value) is int or node.value is Ellipsis and node is dim)
            named = isinstance(node, (ast.Name, ast.Attribute, ast.BinOp, ast.UnaryOp, ast.USub, ast.Load)) or type(node) in OPERATORS
            if not (whole or named):
                raise Malformed(f"[{text}]: {ast.unparse(dim)!r} is not arithmetic of whole numbers and names")
    if sum(is_ellipsis(dim) for dim in dims) > 1:
        raise Malformed(f"[{text}]: `...` may stand once")
    return dims


def is_ellipsis(dim: ast.expr) -> bool:
    return isinstance(dim, ast.Constant) and dim.value is Ellipsis


def parse_comment(comment: str) -> tuple[list[list[ast.expr]], bool] | None:
    """Groups and whether `each` follows; None for a comment that does not begin with a bracket."""
    text = comment.lstrip("#").strip()
    if not text.startswith("["):
        return None
    groups = []
    while match := re.match(r"\[([^\[\]]*)\]", text):
        groups.append(parse_group(match[1]))
        text = text[match.end():].lstrip()
        if not re.match(r",\s*\[", text):
            break
        text = text[1:].lstrip()
    if not groups:
        raise Malformed(f"{text!r}: the bracket is not closed")
    return groups, bool(re.match(r"each\b", text))


@dataclass
class Comment:
    """One shape comment and what became of it."""

    file: str
    line: int
    text: str
    groups: list
    each: bool = False
    one_of_several: bool = False  # a docstring that says "or": an argument that does not fit the first is left alone
    statement: ast.AST | None = None  # None: describes arguments
    tested: bool = False
    failure: str | None = None

    def fail(self, reason: str) -> None:
        self.failure = self.failure or f"{self.file}:{self.line}: {self.text}: {reason}"


@dataclass
class Function:
    """What is known about one function before it runs."""

    arguments: list[tuple[str, Comment, list]] = field(default_factory=list)  # name, comment, group; docstring first, then signature
    statements: dict[int, Comment] = field(default_factory=dict)  # every line of a commented statement
    returns: set[int] = field(default_factory=set)  # every line of a return statement


class Source:
    """The shape comments of one file, attached to its functions."""

    def __init__(self, path: str | Path):
        self.path = os.path.relpath(path)
        text = Path(path).read_text(encoding="utf-8")
        self.tree = ast.parse(text)
        self.comments: list[Comment] = []  # from lines; they must be tested
        self.documented: list[Comment] = []  # from docstrings; they must be true
        self.module: list[Comment] = []
        self.functions: dict[tuple[int, str], Function] = {}  # by first line (decorators included) and name
        self.fields: dict[str, list[tuple[str, Comment]]] = {}  # by class: name and comment of each commented field
        self.by_line: dict[int, Comment] = {}
        self.jitted: list[range] = []
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT and token.line[: token.start[1]].strip():
                comment = Comment(self.path, token.start[0], token.string, [])
                try:
                    if (parsed := parse_comment(token.string)) is None:
                        continue
                    comment.groups, comment.each = parsed
                except Malformed as error:
                    comment.fail(str(error))
                self.by_line[token.start[0]] = comment
        self.visit(self.tree, None)
        self.by_line = {line: c for line, c in self.by_line.items() if not any(line in lines for lines in self.jitted)}
        self.comments = list(self.by_line.values())
        placed = {id(c) for f in self.functions.values() for c in [*f.statements.values(), *(c for _, c, _ in f.arguments)]}
        placed |= {id(c) for c in self.module} | {id(c) for fields in self.fields.values() for _, c in fields}
        for comment in self.comments:
            if id(comment) not in placed:
                comment.fail("not on the first or last line of an assignment, return or for header, nor on an argument; begin prose with a word")

    def visit(self, node: ast.AST, owner: Function | None) -> None:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                first = min([child.lineno] + [d.lineno for d in child.decorator_list])
                if any("jit" in ast.unparse(d) for d in child.decorator_list):
                    self.jitted.append(range(first, child.end_lineno + 1))
                    continue
                function = self.functions[first, child.name] = Function()
                self.read_signature(child, function)
                self.visit(child, function)
            elif isinstance(child, (ast.ClassDef, ast.Lambda)):
                if node is self.tree and isinstance(child, ast.ClassDef):
                    fields = [(f.target.id, f.end_lineno) for f in child.body if isinstance(f, ast.AnnAssign) and isinstance(f.target, ast.Name)]
                    self.fields[child.name] = [(name, self.by_line[line]) for name, line in fields if line in self.by_line]
                self.visit(child, None)
            else:
                self.attach(child, owner, at_module_level=node is self.tree)
                self.visit(child, owner)

    def attach(self, node: ast.AST, owner: Function | None, at_module_level: bool) -> None:
        """Give a statement the comment on its first or last line."""
        if isinstance(node, ast.Return) and owner is not None:
            owner.returns.update(range(node.lineno, node.end_lineno + 1))
        if not isinstance(node, (ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Return, ast.For)):
            return
        last = max(node.lineno, node.body[0].lineno - 1) if isinstance(node, ast.For) else node.end_lineno
        found = [self.by_line[line] for line in {node.lineno, last} if line in self.by_line]
        if len(found) != 1 or not (owner or at_module_level):
            return
        found[0].statement = node
        if owner:
            owner.statements |= dict.fromkeys(range(node.lineno, last + 1), found[0])
        else:
            self.module.append(found[0])

    def read_signature(self, node: ast.FunctionDef, function: Function) -> None:
        """Shapes of arguments: from the docstring, then from comments in the signature."""
        arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        docstring = ast.get_docstring(node, clean=False) or ""
        for argument in arguments:
            match = re.search(rf"(?<![\w.]){argument.arg}`?:? {KINDS}(\[[^\[\]]*\])", docstring)
            try:
                group = parse_group(match[1][1:-1]) if match else []
            except Malformed:
                continue  # prose in brackets
            if any(isinstance(n, ast.Name) for dim in group for n in ast.walk(dim)):  # [0, 1] is a range
                line = node.body[0].lineno + docstring[: match.start()].count("\n")
                sentence = re.split(r"[.;](?=\s)", docstring[match.end():], maxsplit=1)[0]
                several = re.search(r"\bor\b[^\[]*\[", sentence) is not None
                comment = Comment(self.path, line, f"docstring, {argument.arg}: {match[1]}", [group], one_of_several=several)
                self.documented.append(comment)
                function.arguments.append((argument.arg, comment, group))
        for line in range(node.lineno, node.body[0].lineno):
            names = [a.arg for a in arguments if a.lineno == line and a.arg not in ("self", "cls")]
            comment = self.by_line.get(line)
            if comment and names and comment.groups:
                groups = comment.groups * (len(names) if len(comment.groups) == 1 else 1)
                if len(groups) != len(names):
                    comment.fail(f"{len(groups)} shapes for the {len(names)} arguments {', '.join(names)}")
                function.arguments += [(name, comment, group) for name, group in zip(names, groups)]


class Call:
    """One running call of one function: its names, and the statement whose end is awaited."""

    def __init__(self, function: Function):
        self.function = function
        self.names: dict[str, tuple[int, str]] = {}  # value and the place that bound it
        self.waiting: list[tuple[ast.expr, int, Comment]] = []
        self.pending: Comment | None = None
        self.returning: Comment | None = None

    def begin(self, frame: FrameType) -> None:
        for name, comment, group in self.function.arguments:
            value = frame.f_locals.get(name)
            if comment.one_of_several and hasattr(value, "shape") and match_shape(shape_of(value), group, self.names, frame)[2]:
                continue
            if hasattr(value, "shape") or comment.text.startswith("#"):  # a docstring may describe what is sometimes a number or absent
                values, _ = as_tensors(value)
                self.compare(comment, values, [group] * len(values), frame, name)

    def trace(self, frame: FrameType, event: str, argument: object) -> Callable:
        if event == "line":
            line = frame.f_lineno
            current = self.function.statements.get(line)
            if current is not self.pending or current is None:
                self.finish(frame, line)
                self.pending = current if current and not isinstance(current.statement, ast.Return) else None
            if line in self.function.returns:
                self.returning = current
        elif event == "exception" and not issubclass(argument[0], StopIteration):
            self.pending = self.returning = None
        elif event == "return":
            self.finish(frame, None)
            if self.returning is not None:
                self.compare_value(self.returning, argument, frame, "the returned value")
            for dim, actual, comment in self.waiting:
                if comment.text.startswith("#"):
                    comment.fail(f"{ast.unparse(dim)} = {actual} could not be checked: nothing in this call binds its names")
        return self.trace

    def finish(self, frame: FrameType, line: int | None) -> None:
        """The pending assignment is done, and `line` comes next: look at what it assigned."""
        comment, self.pending = self.pending, None
        if comment is None:
            return
        statement = comment.statement
        if isinstance(statement, ast.For) and not (line and statement.body[0].lineno <= line <= statement.body[-1].end_lineno):
            return  # the loop is over; the last target may have been changed since
        target = statement.targets[0] if isinstance(statement, ast.Assign) else statement.target
        try:
            value = evaluate_target(target, frame.f_globals, frame.f_locals)
        except (NameError, AttributeError, IndexError, KeyError):
            return  # the name is gone again: not tested
        self.compare_value(comment, value, frame, ast.unparse(target), several=isinstance(target, (ast.Tuple, ast.List)))

    def compare_value(self, comment: Comment, value: object, frame: FrameType | None, what: str, several: bool = False) -> None:
        values, shape_like = as_tensors(value)
        group = comment.groups[0] if len(comment.groups) == 1 else []
        if shape_like and several and len(group) not in (0, len(value)) and not any(map(is_ellipsis, group)):
            comment.fail(f"{what} are {len(value)} integers, the comment has {len(comment.groups[0])} dimensions")
            return
        groups = comment.groups
        if len(groups) == 1 and any(hasattr(v, "shape") for v in values):
            values = [v for v in values if v is None or hasattr(v, "shape")]
        if len(groups) == 1:
            groups = groups * len(values)
        if len(groups) != len(values):
            comment.fail(f"{len(groups)} shapes for {len(values)} values of {what}")
            return
        self.compare(comment, values, groups, frame, what)

    def compare(self, comment: Comment, values: list, groups: list, frame: FrameType | None, what: str) -> None:
        before, waiting_before = dict(self.names), list(self.waiting)
        for i, (value, group) in enumerate(zip(values, groups)):
            if value is None:
                continue
            comment.tested = True
            shape = shape_of(value)
            label = what if len(values) == 1 else f"{what}, number {i + 1}"
            if shape is None:
                comment.fail(f"{label} is a {type(value).__name__}, which has no shape")
                continue
            bound, waiting, reason = match_shape(shape, group, self.names, frame)
            if reason:
                comment.fail(f"{label} is {list(shape)}: {reason}")
                self.names, self.waiting = before, waiting_before
                return
            if comment.each:
                if waiting:
                    comment.fail(f"{ast.unparse(waiting[0][0])} = {waiting[0][1]} cannot be checked in an `each` comment")
                continue
            self.names |= {name: (size, f"line {comment.line}") for name, size in bound.items()}
            self.waiting += [(dim, actual, comment) for dim, actual in waiting]
            self.settle(frame)

    def settle(self, frame: FrameType | None) -> None:
        """Check the dimensions that waited for names which are known by now."""
        still = []
        for dim, actual, comment in self.waiting:
            bound, waiting, reason = match_shape((actual,), [dim], self.names, frame)
            if reason:
                comment.fail(reason)
            elif waiting:
                still.append((dim, actual, comment))
            else:
                self.names |= {name: (size, f"line {comment.line}") for name, size in bound.items()}
        self.waiting = still


def evaluate_target(target: ast.expr, variables: dict, local: dict) -> object:
    """The value that now stands in an assignment's target; a tuple for several."""
    if isinstance(target, (ast.Tuple, ast.List)):
        return tuple(evaluate_target(t.value if isinstance(t, ast.Starred) else t, variables, local) for t in target.elts)
    return eval(ast.unparse(target), variables, local)  # noqa: S307  (our own source, as it stands in the file)


def as_tensors(value: object) -> tuple[list, bool]:
    """The values that a comment describes, and whether the value is itself a shape (a torch.Size or a tuple of integers)."""
    if isinstance(value, tuple) and value and all(isinstance(v, Integral) and not isinstance(v, bool) for v in value):
        return [value], True
    if isinstance(value, dict):
        return list(value.values()), False
    if isinstance(value, (list, tuple)):
        return list(value), False
    return [value], False


def shape_of(value: object) -> tuple[int, ...] | None:
    if hasattr(value, "shape"):
        return tuple(int(s) for s in value.shape)
    if isinstance(value, Number):
        return ()
    if isinstance(value, tuple) and all(isinstance(v, Integral) for v in value):
        return tuple(value)
    return None


def match_shape(shape: tuple[int, ...], group: list[ast.expr], names: dict, frame: FrameType | None) -> tuple[dict, list, str]:
    """Compare one shape with one group: the names it binds, (dimension, size) pairs that must wait, the reason of a mismatch ("" if none)."""
    dims = list(group)
    if any(map(is_ellipsis, dims)):
        at = [is_ellipsis(d) for d in dims].index(True)
        extra = len(shape) - len(dims) + 1
        if extra < 0:
            return {}, [], f"{len(shape)} dimensions, the comment names at least {len(dims) - 1}"
        shape = shape[:at] + shape[at + extra:]
        dims = dims[:at] + dims[at + 1:]
    if len(shape) != len(dims):
        return {}, [], f"{len(shape)} dimensions, the comment names {len(dims)}"
    bound, todo = {}, list(zip(dims, shape))
    while True:
        waiting = []
        for dim, actual in todo:
            known = {name: size for name, (size, _) in names.items()} | bound | local_integers(dim, frame)
            unknown = sorted(set(free_names(dim)) - known.keys())
            text = ast.unparse(dim)
            if not unknown:
                expected = arithmetic(dim, known)
                if expected != actual:
                    return {}, [], f"{text} = {show(expected)}, found {actual}{origins(dim, names, bound, frame)}"
            elif len(unknown) == 1 and (solution := solve(dim, unknown[0], known, actual)) is not None:
                if solution.denominator != 1 or solution < 0:
                    return {}, [], f"{text} = {actual} would make {unknown[0]} = {show(solution)}"
                bound[unknown[0]] = int(solution)
            else:
                waiting.append((dim, actual))
        if len(waiting) in (0, len(todo)):
            return bound, waiting, ""
        todo = waiting


def free_names(dim: ast.expr) -> list[str]:
    """The plain names of a dimension; `self` in self.heads is none."""
    owners = {id(n.value) for n in ast.walk(dim) if isinstance(n, ast.Attribute)}
    return [n.id for n in ast.walk(dim) if isinstance(n, ast.Name) and id(n) not in owners]


def local_integers(dim: ast.expr, frame: FrameType | None) -> dict[str, int]:
    """Names and dotted names of the dimension that are integers in the running function."""
    found = {}
    for node in ast.walk(dim):
        if frame is not None and isinstance(node, (ast.Name, ast.Attribute)):
            try:
                value = eval(ast.unparse(node), {"__builtins__": {}}, frame.f_locals)  # noqa: S307  (names of our own source)
            except (NameError, AttributeError):
                continue
            if isinstance(value, Integral) and not isinstance(value, bool):
                found[ast.unparse(node)] = int(value)
    return found


def arithmetic(dim: ast.expr, known: dict[str, int]) -> Fraction | None:
    if isinstance(dim, ast.Constant):
        return Fraction(dim.value)
    if isinstance(dim, (ast.Name, ast.Attribute)):
        value = known.get(ast.unparse(dim))
        return None if value is None else Fraction(value)
    if isinstance(dim, ast.UnaryOp):
        inner = arithmetic(dim.operand, known)
        return None if inner is None else -inner
    left, right = arithmetic(dim.left, known), arithmetic(dim.right, known)
    if left is None or right is None:
        return None
    try:
        return OPERATORS[type(dim.op)](left, right)
    except ZeroDivisionError:
        return None


def solve(dim: ast.expr, name: str, known: dict[str, int], actual: int) -> Fraction | None:
    """The value of `name` that gives `actual`, where the dimension is linear in it; None where it is not."""
    at = [arithmetic(dim, known | {name: i}) for i in (1, 2, 3)]
    if None in at or at[1] - at[0] != at[2] - at[1] or at[1] == at[0]:
        return None
    solution = 1 + (actual - at[0]) / (at[1] - at[0])
    return solution if arithmetic(dim, known | {name: solution}) == actual else None


def show(value: Fraction | None) -> str:
    return "unknown" if value is None else str(value)


def origins(dim: ast.expr, names: dict, bound: dict, frame: FrameType | None) -> str:
    """Where the names of a dimension got their values, for the error message."""
    local, said = local_integers(dim, frame), []
    for node in ast.walk(dim):
        if isinstance(node, (ast.Name, ast.Attribute)):
            name = ast.unparse(node)
            if name in local:
                said.append(f"{name} = {local[name]}, a variable")
            elif name in bound:
                said.append(f"{name} = {bound[name]}, same comment")
            elif name in names:
                said.append(f"{name} = {names[name][0]}, bound by {names[name][1]}")
    return f" ({'; '.join(said)})" if said else ""


@dataclass
class Report:
    """Every shape comment of a module, with its fate."""

    comments: list[Comment]
    documented: list[Comment]

    @property
    def failures(self) -> list[str]:
        return [c.failure for c in self.comments + self.documented if c.failure]

    @property
    def untested(self) -> list[str]:
        return [f"{c.file}:{c.line}: {c.text}: never executed by an example" for c in self.comments if not c.tested and not c.failure]


def check_shapes(modules: Iterable[ModuleType], example: Callable[[], object]) -> list[Report]:
    """Run `example` and compare the shape comments of `modules` with what happens; one report per module."""
    modules = list(modules)
    sources = {module.__file__: Source(module.__file__) for module in modules}
    by_class = {(m.__name__, name): fields for m in modules for name, fields in sources[m.__file__].fields.items() if fields}

    def made(frame: FrameType, event: str, argument: object) -> Callable:
        """At the end of a generated constructor: compare the fields of the new NamedTuple or dataclass."""
        instance = frame.f_locals.get("self", argument)
        if event == "return":
            call = Call(Function())
            for cls in reversed(type(instance).__mro__):
                for name, comment in by_class.get((cls.__module__, cls.__qualname__), ()):
                    call.compare_value(comment, getattr(instance, name), None, name)
        return made

    def enter(frame: FrameType, event: str, argument: object) -> Callable | None:
        if frame.f_code.co_filename == "<string>" and frame.f_code.co_name in ("__init__", "__new__", "<lambda>"):
            return made
        source = sources.get(frame.f_code.co_filename)
        function = source and source.functions.get((frame.f_code.co_firstlineno, frame.f_code.co_name))
        if not function or not (function.statements or function.arguments):
            return None
        call = Call(function)
        call.begin(frame)
        return call.trace

    before = sys.gettrace()
    sys.settrace(enter)
    threading.settrace(enter)
    try:
        example()
    finally:
        sys.settrace(before)
        threading.settrace(before)
    for module in modules:
        for comment in sources[module.__file__].module:
            target = comment.statement.targets[0] if isinstance(comment.statement, ast.Assign) else comment.statement.target
            Call(Function()).compare_value(comment, evaluate_target(target, vars(module), vars(module)), None, ast.unparse(target))
    return [Report(source.comments, source.documented) for source in sources.values()]
