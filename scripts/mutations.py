"""The places of a module where `scripts/mutants.py` can make a small fault, and what the fault is.

Operators, comparisons, connectives, signs and constants are changed, and calls whose result nobody uses are
removed. Texts, errors that are raised, annotations, decorators, declarations of options, and the check of
lengths by `zip(strict=True)` stay.
"""

from __future__ import annotations

import ast
import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

SWAPS: dict[type[ast.AST], tuple[str, str]] = {
    ast.Add: ("+", "-"),
    ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"),
    ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "/"),
    ast.Mod: ("%", "//"),
    ast.Pow: ("**", "*"),
    ast.MatMult: ("@", "*"),
    ast.LShift: ("<<", ">>"),
    ast.RShift: (">>", "<<"),
    ast.BitXor: ("^", "|"),
    ast.BitAnd: ("&", "|"),
    ast.BitOr: ("|", "&"),
    ast.Lt: ("<", "<="),
    ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="),
    ast.GtE: (">=", ">"),
    ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="),
    ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"),
    ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"),
    ast.And: ("and", "or"),
    ast.Or: ("or", "and"),
}
PREFIXES: dict[type[ast.AST], str] = {ast.Not: "not ", ast.USub: "-", ast.Invert: "~"}


@dataclass(frozen=True)
class Mutant:
    """A module in which the bytes from `start` to `end`, in line `number`, are replaced by `text`."""

    file: str
    function: str
    number: int
    was: str
    becomes: str
    start: int
    end: int
    text: str

    @property
    def key(self) -> str:
        """What the mutant is known by, wherever its line is."""
        return f"{self.file}: {self.function}: {self.was} -> {self.becomes}"

    def of(self, source: bytes) -> bytes:
        """Return the mutated module."""
        return source[: self.start] + self.text.encode() + source[self.end :]


class Module:
    """A module's source with the function or class that each line belongs to."""

    def __init__(self, source: bytes) -> None:
        self._source, self._lines = source, source.splitlines(keepends=True)
        self._starts = [sum(map(len, self._lines[:n])) for n in range(len(self._lines))]
        self._scopes = [""] * len(self._lines)
        self._bodies = [False] * len(self._lines)
        tree = ast.parse(source)
        self._find_scopes(tree, "")
        self._places = list(self._walk(tree))

    def named_line(self, number: int) -> str | None:
        """Return a line with its function, or None if it runs when the module is imported."""
        if not self._bodies[number - 1]:
            return None
        return f"{self._scopes[number - 1]}: {self._lines[number - 1].decode().strip()}"

    def mutants(self, file: str, seed: int) -> Iterator[tuple[str, Mutant]]:
        """Yield a mutant of each place, after a hash of seed and place, which decides what it becomes."""
        seen: Counter[str] = Counter()
        for start, end, texts in self._places:
            number = self._source.count(b"\n", 0, start) + 1
            head = self._starts[number - 1]
            tail = self._source.index(b"\n", end)
            was = self._source[head:tail].decode().strip()
            column = start - head - (len(self._lines[number - 1]) - len(self._lines[number - 1].lstrip()))
            place = f"{seed} {file} {self._scopes[number - 1]} {was} {column}"
            seen[place] += 1
            digest = hashlib.sha256(f"{place} {seen[place]}".encode()).hexdigest()
            text = texts[int(digest[:8], 16) % len(texts)]
            becomes = (self._source[head:start].decode() + text + self._source[end:tail].decode()).strip()
            scope = self._scopes[number - 1]
            yield digest, Mutant(file, scope, number, was, becomes, start, end, text)

    def _find_scopes(self, node: ast.AST, scope: str) -> None:
        for child in ast.iter_child_nodes(node):
            inner = scope
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                inner = f"{scope}.{child.name}".lstrip(".")
                lines = range(child.lineno - 1, child.end_lineno or child.lineno)
                self._scopes[lines.start : lines.stop] = [inner] * len(lines)
                body = range(child.body[0].lineno - 1, lines.stop)
                self._bodies[body.start : body.stop] = [isinstance(child, ast.FunctionDef)] * len(body)
            self._find_scopes(child, inner)

    def _span(self, node: Any) -> tuple[int, int]:
        start = self._starts[node.lineno - 1] + node.col_offset
        return start, self._starts[node.end_lineno - 1] + node.end_col_offset

    def _swap(self, left: ast.AST, operator: ast.AST, right: ast.AST) -> tuple[int, int, list[str]]:
        """Return the place of an operator between its operands, maybe among parentheses."""
        symbol, other = SWAPS[type(operator)]
        start = self._source.index(symbol.encode(), self._span(left)[1], self._span(right)[0])
        return start, start + len(symbol), [other]

    def _walk(self, node: ast.AST) -> Iterator[tuple[int, int, list[str]]]:
        match node:
            case (
                ast.Raise()
                | ast.JoinedStr()
                | ast.Call(func=ast.Name(id="option"))
                | ast.keyword(arg="strict")
            ):
                return
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int() | float() as value)):
                yield *self._span(node), _others(-value)
                return
            case ast.Constant(value=bool() | int() | float() as value):
                yield *self._span(node), _others(value)
            case ast.UnaryOp(op=operator) if type(operator) in PREFIXES:
                start, _ = self._span(node)
                yield start, start + len(PREFIXES[type(operator)]), [""]
            case ast.Expr(value=ast.Call()):
                yield *self._span(node), ["pass"]
            case ast.BinOp(left=left, op=operator, right=right) if not {_kind(left), _kind(right)} & {str}:
                yield self._swap(left, operator, right)
            case ast.AugAssign(target=left, op=operator, value=right):
                yield self._swap(left, operator, right)
            case ast.Compare(left=left, ops=operators, comparators=rights):
                for comparison, right in zip(operators, rights, strict=True):
                    yield self._swap(left, comparison, right)
                    left = right
            case ast.BoolOp(op=operator, values=values):
                for left, right in itertools.pairwise(values):
                    yield self._swap(left, operator, right)
        for name, value in ast.iter_fields(node):
            if name not in ("annotation", "returns", "decorator_list"):
                for child in value if isinstance(value, list) else [value]:
                    if isinstance(child, ast.AST):
                        yield from self._walk(child)


def _kind(node: ast.AST) -> type | None:
    """Return the type of a literal; of texts and paths, any other operator is an error at once."""
    return str if isinstance(node, ast.JoinedStr) else type(getattr(node, "value", None))


def _others(value: float) -> list[str]:
    """Return what a constant may become."""
    if isinstance(value, bool):
        return [str(not value)]
    return list({repr(other): None for other in (value + 1, 0, -value) if other != value})
