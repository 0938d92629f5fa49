"""How much of what decides is tested: one small change at a time, and whether a unit test notices.

    python benchmarks/mutants.py [--count 60] [--seed 0] [--packages scheduling ...] [--out FILE]

Operators, comparisons, conditions, numbers and statements of `scheduling`, `placement`, `orchestration` are
changed in a copy of the repository; the tests that the package has to pass are run until one fails. What
survives is printed as a diff, and explained in benchmarks/results/survivors.md if it cannot matter.
Exit status 1 if fewer than 85 % are killed.
"""

from __future__ import annotations

import argparse
import ast
import copy
import difflib
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from claims import conclude

ROOT = Path(__file__).resolve().parents[1]
TESTS = {
    "scheduling": (
        "tests/unit/scheduling",
        "tests/contract/test_schedulers.py",
        "tests/unit/orchestration",
        "tests/unit/simulation",
    ),
    "placement": (
        "tests/unit/placement",
        "tests/contract/test_growth_policies.py",
        "tests/unit/orchestration",
        "tests/unit/simulation",
    ),
    "orchestration": (
        "tests/unit/orchestration",
        "tests/unit/workflow",
        "tests/unit/reporting/test_graph.py",
        "tests/unit/simulation",
    ),
}
LEAST = 0.85
PATIENCE_S = 400.0  # a mutant that is slower hangs, and counts as killed
COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Add,
    ast.FloorDiv: ast.Mult,
    ast.Div: ast.Mult,
    ast.Mod: ast.Add,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
    ast.Pow: ast.Mult,
}


def mutate(node: ast.AST) -> bool:
    """Change a node in place; return whether there is a change for it."""
    match node:
        case ast.Compare(ops=[operator, *_]):
            node.ops[0] = COMPARISONS[type(operator)]()
        case ast.BoolOp():
            node.op = ast.And() if isinstance(node.op, ast.Or) else ast.Or()
        case ast.BinOp() | ast.AugAssign() if type(node.op) in OPERATORS:
            node.op = OPERATORS[type(node.op)]()
        case ast.UnaryOp(op=ast.Not()):
            node.op = ast.UAdd()
            node.operand = ast.Call(ast.Name("bool"), [node.operand], [])
        case ast.Constant(value=bool(value)):
            node.value = not value
        case ast.Constant(value=int(value)) | ast.Constant(value=float(value)):
            node.value = value + 1
        case ast.If() | ast.IfExp() | ast.While():
            node.test = ast.UnaryOp(ast.Not(), node.test)
        case ast.Expr(value=ast.Call()):
            node.value = ast.Constant(None)
        case ast.Return(value=ast.expr()):
            node.value = ast.Constant(None)
        case _:
            return False
    return True


def places(tree: ast.Module) -> Iterator[int]:
    """Yield the numbers of the nodes, in the order of `ast.walk`, that can be changed and do something."""
    idle = {id(n) for a in ast.walk(tree) for n in _idle(a)}
    for number, node in enumerate(ast.walk(tree)):
        if id(node) not in idle and mutate(copy.deepcopy(node)):
            yield number


def _idle(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what does nothing, or only tells people what has been done: annotations, logs, errors, slots."""
    roots: list[ast.AST | None] = []
    match node:
        case ast.AnnAssign(annotation=ast.Name(id="TypeAlias")):
            roots = [node]
        case ast.AnnAssign():
            roots = [node.annotation]
        case ast.arg():
            roots = [node.annotation]
        case ast.FunctionDef():
            roots = [node.returns, *node.decorator_list]
        case ast.ClassDef():
            roots = [*node.decorator_list, *node.bases, *(k.value for k in node.keywords)]
        case ast.Raise():
            roots = [node.exc]
        case ast.JoinedStr() | ast.Call(func=ast.Attribute(value=ast.Name(id="logger"))):
            roots = [node]
    for root in roots:
        if root is not None:
            yield from ast.walk(root)


def mutant(source: str, number: int) -> tuple[str, str, int]:
    """Return the text of a mutant, its diff to the original, and the line."""
    tree = ast.parse(source)
    before = ast.unparse(tree)
    node = next(n for i, n in enumerate(ast.walk(tree)) if i == number)
    line: int = getattr(node, "lineno", 0)
    mutate(node)
    after = ast.unparse(ast.fix_missing_locations(tree))
    diff = difflib.unified_diff(before.splitlines(), after.splitlines(), lineterm="", n=0)
    return after, "\n".join(d for d in diff if not d.startswith(("---", "+++", "@@"))), line


def sample(packages: list[str], count: int, seed: int) -> list[tuple[str, Path, int]]:
    """Return mutants to try: package, file and number of the node."""
    found = []
    for package in packages:
        for file in sorted((ROOT / "parsl_rasda" / package).glob("*.py")):
            tree = ast.parse(file.read_text(encoding="utf-8"))
            found += [(package, file.relative_to(ROOT), number) for number in places(tree)]
    print(f"{len(found)} mutants, of which {min(count, len(found))} are tried", file=sys.stderr)
    return random.Random(seed).sample(found, min(count, len(found)))


def is_killed(copied: Path, package: str) -> bool:
    """Return whether a test notices."""
    shutil.rmtree(copied / ".hypothesis", ignore_errors=True)
    words = ("-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--hypothesis-seed=0", "--timeout=60")
    environment = {**os.environ, "PYTHONPATH": str(copied), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            (sys.executable, *words, *TESTS[package]),
            cwd=copied,
            env=environment,
            capture_output=True,
            timeout=PATIENCE_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return True
    return done.returncode != 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="Of the sample, the first that is tried.")
    parser.add_argument("--last", type=int, default=10**6)
    parser.add_argument("--packages", nargs="+", choices=TESTS, default=list(TESTS))
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    tried = sample(arguments.packages, arguments.count, arguments.seed)[arguments.first : arguments.last]
    survivors, count = [], 0
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copied = Path(folder) / "repository"
        ignored = shutil.ignore_patterns(".git", ".venv*", "__pycache__", ".hypothesis")
        shutil.copytree(ROOT, copied, symlinks=True, ignore=ignored)
        for index, (package, file, number) in enumerate(tried):
            source = (ROOT / file).read_text(encoding="utf-8")
            text, diff, line = mutant(source, number)
            if not diff:
                continue  # `return` is `return None`
            count += 1
            (copied / file).write_text(text, encoding="utf-8")
            killed = is_killed(copied, package)
            (copied / file).write_text(source, encoding="utf-8")
            where = f"{file}:{line}"
            print(
                f"{arguments.first + index} {'killed' if killed else 'SURVIVES'} {where}\n{diff}",
                file=sys.stderr,
            )
            if not killed:
                survivors.append({"where": where, "diff": diff.splitlines()})
    rate = 1 - len(survivors) / max(1, count)
    result = {
        "what": "mutants of what decides that a unit test notices",
        "seed": arguments.seed,
        "packages": arguments.packages,
        "tried": count,
        "killed": round(rate, 3),
        "survivors": survivors,
    }
    conclude(result, {f"at least {LEAST:.0%} are killed": rate >= LEAST}, arguments.out)


if __name__ == "__main__":
    main()
