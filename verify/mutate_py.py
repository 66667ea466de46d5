"""Mutants of the optimizer in Python, each judged by the tests that reach its line, quickest first.

A first run of the suite notes which test runs which line; what runs at import is judged by all.
Texts of messages and docstrings are left alone.

    python verify/mutate_py.py [--sample N] [files]
"""

import argparse
import ast
import contextlib
import functools
import json
import multiprocessing
import os
import random
import sys
import tempfile
import threading
import time
from collections import defaultdict
from pathlib import Path

import hypothesis  # noqa: F401, so that no judge has to import what all need
import numpy  # noqa: F401
import pytest
from mutation import KILLED, STILLBORN, SURVIVED, Mutant, judge_all, survives, verdict
from shared import copy_tree

FILES = ("optimizer.py", "hyperparameters.py", "gradients.py", "model.py")
LEAST = 90.0
SECONDS = 120
TESTS = ["tests/arrays", "tests/checkpoint", "tests/optimizer", "tests/options"]
TESTS += ["tests/integrations/test_interchange.py"]
SWAPPED = {
    ast.Lt: (ast.LtE, ast.GtE),
    ast.LtE: (ast.Lt, ast.Gt),
    ast.Gt: (ast.GtE, ast.LtE),
    ast.GtE: (ast.Gt, ast.Lt),
    ast.Eq: (ast.NotEq,),
    ast.NotEq: (ast.Eq,),
    ast.Is: (ast.IsNot,),
    ast.IsNot: (ast.Is,),
    ast.In: (ast.NotIn,),
    ast.NotIn: (ast.In,),
    ast.Add: (ast.Sub,),
    ast.Sub: (ast.Add,),
    ast.Mult: (ast.Div,),
    ast.Div: (ast.Mult,),
    ast.Pow: (ast.Mult,),
    ast.And: (ast.Or,),
    ast.Or: (ast.And,),
}


def changes(node):
    """What a node may become: sources in its place."""
    if isinstance(node, ast.Compare):
        for i, operator in enumerate(node.ops):
            for new in SWAPPED[type(operator)]:
                ops = [*node.ops[:i], new(), *node.ops[i + 1 :]]
                yield ast.unparse(ast.Compare(node.left, ops, node.comparators))
    elif isinstance(node, ast.BinOp):
        for new in SWAPPED.get(type(node.op), ()):
            yield f"({ast.unparse(ast.BinOp(node.left, new(), node.right))})"
    elif isinstance(node, ast.BoolOp):
        for new in SWAPPED[type(node.op)]:
            yield f"({ast.unparse(ast.BoolOp(new(), node.values))})"
        for value in node.values:
            yield f"({ast.unparse(value)})"
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield f"({ast.unparse(node.operand)})"
    elif isinstance(node, (ast.If, ast.IfExp)):
        yield None  # its test, negated
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield repr(not node.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        yield repr(node.value + 1)
    elif isinstance(node, ast.Constant) and node.value is None:
        yield "0"
    elif isinstance(node, ast.Return) and ast.unparse(node) not in ("return", "return None"):
        yield "return None"
    elif isinstance(node, (ast.Raise, ast.AugAssign)) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Call)
    ):
        yield "pass"
    elif isinstance(node, ast.Assign) and not isinstance(node.value, ast.Constant):
        yield f"{ast.unparse(node.targets[0])} = None"
    elif isinstance(node, ast.Continue):
        yield "break"


def without_text(node):
    """The nodes below, apart from annotations, decorators and what builds a message."""
    for field, value in ast.iter_fields(node):
        if field in ("annotation", "returns", "decorator_list", "bases"):
            continue
        for child in value if isinstance(value, list) else [value]:
            if not isinstance(child, ast.AST) or isinstance(child, ast.JoinedStr):
                continue
            if isinstance(child, ast.keyword) and child.arg == "strict":
                continue  # of zip: lengths that are the same by construction
            if isinstance(child, ast.Raise):  # whether it raises, not how it says it
                yield child
                continue
            yield child
            yield from without_text(child)


def mutants(source):
    """All changes, in the order of the source."""
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    assert source.isascii()  # columns count bytes
    found = set()
    for node in without_text(ast.parse(source)):
        for new in changes(node):
            place = node
            if new is None:
                place, new = node.test, f"(not ({ast.unparse(node.test)}))"
            start = starts[place.lineno - 1] + place.col_offset
            end = starts[place.end_lineno - 1] + place.end_col_offset
            found.add(Mutant(start, end, new))
    return sorted(found)


class Tracer:
    """A plugin of pytest that notes lines of a file by test, and how long each test takes."""

    def __init__(self, file):
        self.file, self.now = str(file), "import"
        self.lines, self.seconds = defaultdict(set), {}

    def call(self, frame, event, argument):
        if frame.f_code.co_filename != self.file:
            return None
        return self.line

    def line(self, frame, event, argument):
        self.lines[self.now].add(frame.f_lineno)
        return self.line

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        self.now = item.nodeid
        start = time.perf_counter()
        try:
            return (yield)
        finally:
            self.seconds[item.nodeid] = time.perf_counter() - start
            self.now = "import"


class Only:
    """A plugin of pytest that runs some tests, in a given order."""

    def __init__(self, order):
        self.place = {name: i for i, name in enumerate(order)}

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items):
        kept = [item for item in items if item.nodeid in self.place]
        items[:] = sorted(kept, key=lambda item: self.place[item.nodeid])


def run_tests(tree, files, plugin):
    """0 if all pass; in this very process, which must be a child that ends afterwards."""
    os.chdir(tree)
    sys.path[:0] = [str(tree)]
    sys.dont_write_bytecode = True
    options = ["-x", "-q", "-p", "no:cacheprovider", "--timeout=60"]
    options += ["-W", "ignore::pytest.PytestAssertRewriteWarning"]  # imported before, see above
    return pytest.main([*options, *files], plugins=[plugin])


def trace(tree, file, files, output):
    """Which tests run which lines: a child's work, left in a file."""
    tracer = Tracer(tree / file)
    threading.settrace(tracer.call)
    sys.settrace(tracer.call)
    code = run_tests(tree, files, tracer)
    sys.settrace(None)
    lines = {name: sorted(found) for name, found in tracer.lines.items()}
    output.write_text(json.dumps([lines, tracer.seconds]))
    return code == 0


def judge(trees, file, source, known, job):
    """A mutant's outcome, in a tree that no other judge uses meanwhile."""
    mutant, order = job
    with contextlib.suppress(SyntaxError):
        compile(mutant.apply(source), str(file), "exec")
        tree = trees[multiprocessing.current_process()._identity[0] - 1]
        (tree / file).write_text(mutant.apply(source))
        files = sorted({name.split("::")[0] for name in order})
        if not order:
            return mutant, SURVIVED
        alive = survives(lambda: run_tests(tree, files, Only(order)) == 0, SECONDS + known)
        return mutant, SURVIVED if alive else KILLED
    return mutant, STILLBORN


def check(name, sample):
    """Judge the mutants of a file; the exit status of the check."""
    file = Path("rmsprop_c", name)
    with tempfile.TemporaryDirectory() as folder:
        trees = []
        for i in range(os.cpu_count()):
            own = Path(folder, str(i))
            own.mkdir()
            trees.append(copy_tree(own))
            from rmsprop_c import _core  # the compiled part stays as it is

            (trees[-1] / "rmsprop_c" / Path(_core.__file__).name).write_bytes(
                Path(_core.__file__).read_bytes()
            )
        for module in [module for module in sys.modules if module.startswith("rmsprop_c")]:
            del sys.modules[module]
        source = (trees[0] / file).read_text()
        files = [*TESTS, "-m", "not slow", str(file)]
        output = Path(folder, "lines.json")
        if not survives(functools.partial(trace, trees[0], file, files, output), 1800):
            raise SystemExit(f"the tests of the unchanged {name} fail")
        lines, seconds = json.loads(output.read_text())
        at_import = set(lines.pop("import", ()))
        order = sorted(lines, key=seconds.get)
        chosen = mutants(source)
        if sample:
            chosen = random.Random(0).sample(chosen, sample)
        reached = {test: set(found) for test, found in lines.items()}
        jobs = []
        for mutant in chosen:
            line = mutant.line(source)
            judges = [test for test in order if line in reached[test]]
            jobs.append((mutant, order if line in at_import else judges))
        work = functools.partial(judge, trees, file, source, sum(seconds.values()) * 3)
        outcomes = judge_all(work, jobs, len(trees))
    return verdict(f"Mutants of {name}", name, source, outcomes, LEAST, sample)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--sample", type=int, help="so many of each, always the same")
    parser.add_argument("files", nargs="*", default=FILES)
    arguments = parser.parse_args()
    return max([check(name, arguments.sample) for name in arguments.files])


if __name__ == "__main__":
    sys.exit(main())
