"""What a compiled program costs: products, bytes of memory, and what devices send each other.

XLA's own analysis (`compiled.cost_analysis()`) counts the body of a loop once, however often it turns, and
inference is a loop. Here the text of the optimized program is read and each loop counted as often as it
turns; what XLA has lifted out of a loop counts once, and what it has removed counts nothing. Of branches the
dearest counts: in a pipeline, a device that idles waits for one that does not. The program of several
devices is that of each. Next file to read: `summary.py`.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Callable

_BITS = re.compile(r"\d+")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
_INSTRUCTION = re.compile(r"^\s*(ROOT )?%?([\w.\-]+) = (.+?) ([\w\-]+)\((.*)$")
# what names or groups values, and computes none
_FREE = re.compile(
    "parameter|constant|tuple|get-tuple-element|bitcast|while|call|conditional|iota|after-all"
)
_CALLED = re.compile(r"(?:calls|to_apply|body)=%?([\w.\-]+)")
_BRANCHES = re.compile(
    r"(?:branch_computations=\{([^}]*)\}|true_computation=(%?[\w.\-]+), false_computation=(%?[\w.\-]+))"
)
_TURNS = re.compile(r'known_trip_count":\{"n":"(\d+)"')
_SLICES = ("dynamic-slice", "slice", "gather")
# What a device sends, as a multiple of what it puts in, among n devices in a ring.
_SENDS: dict[str, Callable[[int], float]] = {
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-gather": lambda n: n - 1,
    "reduce-scatter": lambda n: (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1,
    "collective-broadcast": lambda n: 1,
}


@dataclasses.dataclass
class ProgramCost:
    """What a program costs.

    Attributes:
        products: {("dot", batch, m, k, n) or ("convolution", operations): how often}.
        bytes: read and written by its instructions, a fusion's inner values not among them.
        collectives: {(kind, bytes that a device puts in, how many devices): how often}.
        bounded: whether it is known how often every loop turns; one that ends where it has converged is
            counted once.
    """

    products: Counter = dataclasses.field(default_factory=Counter)
    bytes: float = 0.0
    collectives: Counter = dataclasses.field(default_factory=Counter)
    bounded: bool = True

    @property
    def flops(self) -> int:
        """Floating-point operations of the products, a multiplication and its addition being two."""
        return sum(
            times * (2 * math.prod(sizes) if kind == "dot" else sizes[0])
            for (kind, *sizes), times in self.products.items()
        )

    @property
    def sent(self) -> float:
        """Bytes that a device sends in all collectives, each as a ring does it.

        An all-reduce of b bytes among n devices sends 2 b (n - 1)/n, an all-gather of b/n from each, a
        reduce-scatter and an all-to-all of b send b (n - 1)/n, a permute b.
        """
        return sum(
            times * size * _SENDS[kind](devices)
            for (kind, size, devices), times in self.collectives.items()
        )

    def add(self, other: ProgramCost, times: int = 1, with_bytes: bool = True) -> None:
        """Count another program, run so many times."""
        for own, others in (
            (self.products, other.products),
            (self.collectives, other.collectives),
        ):
            for key, count in others.items():
                own[key] += times * count
        self.bytes += times * other.bytes * with_bytes
        self.bounded &= other.bounded


@dataclasses.dataclass
class _Instruction:
    name: str
    result: str
    opcode: str
    operands: list[str]
    line: str
    is_root: bool


def count(text: str) -> ProgramCost:
    """Return the cost of a compiled program, from the text of its optimized HLO.

    >>> import jax, jax.numpy as jnp
    >>> def chain(a, b):
    ...     return jax.lax.scan(lambda c, _: (jnp.tanh(c @ b), None), a, length=5)[0]
    >>> compiled = jax.jit(chain).lower(jnp.ones((2, 3)), jnp.ones((3, 3))).compile()
    >>> count(compiled.as_text()).flops  # 5 products of (2, 3) and (3, 3)
    180
    """
    entry, computations = _read(text)
    partitions = re.search(r"num_partitions=(\d+)", text)
    devices = int(partitions[1]) if partitions else 1

    def cost_of(name: str) -> ProgramCost:
        total = ProgramCost()
        instructions = computations[name]
        results = {one.name: one.result for one in instructions}
        for one in instructions:
            operands = [results.get(operand, "") for operand in one.operands]
            product = _product(one, operands)
            if product:
                total.products[product] += 1
            collective = _collective(one, operands, devices)
            if collective:
                total.collectives[collective] += 1
            branches = _BRANCHES.search(one.line) if one.opcode == "conditional" else None
            if branches:
                names = re.findall(r"[\w.\-]+", ",".join(filter(None, branches.groups())))
                total.add(max(map(cost_of, names), key=lambda cost: (cost.flops, cost.bytes)))
            called = _CALLED.search(one.line)
            if called and one.opcode in ("fusion", "call", "while", "async-start"):
                turns = _TURNS.search(one.line) if one.opcode == "while" else None
                total.add(cost_of(called[1]), int(turns[1]) if turns else 1, one.opcode != "fusion")
                total.bounded &= one.opcode != "while" or turns is not None
            if one.opcode == "fusion" and called:
                total.bytes += _fusion_bytes(one, operands, computations[called[1]])
            elif not _FREE.fullmatch(one.opcode):
                total.bytes += _bytes(one, operands)
        return total

    return cost_of(entry)


def _read(text: str) -> tuple[str, dict[str, list[_Instruction]]]:
    """Return the name of the entry, and the instructions of every computation by name."""
    computations: dict[str, list[_Instruction]] = {}
    entry, current = "", ""
    for line in text.splitlines():
        header = re.match(r"^(ENTRY )?%?([\w.\-]+) .*\{$", line)
        if header and "->" in line:
            current = header[2]
            computations[current] = []
            entry = current if header[1] else entry
            continue
        found = _INSTRUCTION.match(re.sub(r"/\*.*?\*/", "", line)) if current else None
        if found:
            root, name, result, opcode, rest = found.groups()
            operands = re.findall(r"%([\w.\-]+)", rest.split(")")[0])
            one = _Instruction(name, result, opcode, operands, line, root is not None)
            computations[current].append(one)
    return entry, computations


def _elements(shape: str) -> list[int]:
    """Return sizes of an array such as "64,300"."""
    return [int(size) for size in shape.split(",") if size]


def _size(text: str) -> int:
    """Return bytes of a result such as "f32[64,300]{1,0}" or of a tuple of them."""
    total = 0
    for kind, shape in _SHAPE.findall(text):
        bits = _BITS.search(kind)  # a pred is a byte, a token nothing
        width = max(1, int(bits[0]) // 8) if bits else int(kind == "pred")
        total += width * math.prod(_elements(shape))
    return total


def _bytes(one: _Instruction, operands: list[str]) -> int:
    """Return bytes of one instruction: a slice reads what it takes, and an update writes what it changes."""
    if one.opcode in _SLICES:
        return 2 * _size(one.result)
    if one.opcode == "dynamic-update-slice":
        return 2 * _size(operands[1])
    return _size(one.result) + sum(map(_size, operands))


def _fusion_bytes(one: _Instruction, operands: list[str], body: list[_Instruction]) -> int:
    """Return a fusion's bytes: of an operand that it only slices, or an array updated in place, the part."""
    results = {inner.name: inner.result for inner in body}
    total, in_place = 0, set()
    root = next(inner for inner in body if inner.is_root)
    if root.opcode == "dynamic-update-slice":
        total += _size(results[root.operands[1]])
        in_place.add(root.operands[0])
    else:
        total += _size(one.result)
    for inner in body:
        if inner.opcode != "parameter" or inner.name in in_place:
            continue
        users = [user for user in body if inner.name in user.operands]
        whole = _size(operands[int(re.search(r"parameter\((\d+)\)", inner.line)[1])])  # type: ignore
        parts = [_size(user.result) for user in users if user.opcode in _SLICES]
        total += min(whole, sum(parts)) if len(parts) == len(users) else whole
    return total


def _product(one: _Instruction, operands: list[str]) -> tuple | None:
    """Return what is multiplied: ("dot", batch, m, k, n) or ("convolution", operations), else None."""
    line, shapes = one.line, [_SHAPE.search(operand) for operand in operands[:2]]
    sizes = [_elements(shape[2]) for shape in shapes if shape]
    if one.opcode == "dot":
        lhs, rhs = sizes
        contracted = re.search(r"lhs_contracting_dims=\{([\d,]*)", line)
        batched = re.search(r"lhs_batch_dims=\{([\d,]+)\}", line)
        batch = math.prod(lhs[axis] for axis in _elements(batched[1])) if batched else 1
        inner = math.prod(lhs[axis] for axis in _elements(contracted[1] if contracted else ""))
        return (
            "dot",
            batch,
            math.prod(lhs) // inner // batch,
            inner,
            math.prod(rhs) // inner // batch,
        )
    result = _SHAPE.search(one.result)
    outputs = math.prod(_elements(result[2])) if result else 0
    if one.opcode == "custom-call" and "gemm" in line:  # of a GPU's library
        lhs, rhs = map(math.prod, sizes)
        inner = round(math.sqrt(lhs * rhs / outputs))
        return "dot", 1, lhs // inner, inner, rhs // inner
    if one.opcode == "convolution" or (one.opcode == "custom-call" and "conv" in line):
        labels, kernel = re.search(r"dim_labels=\w+_(\w+)->", line), sizes[1]
        # the kernel's features below are those of one group, where there are several
        channels = kernel[labels[1].index("o")] if labels else kernel[-1]
        return "convolution", 2 * outputs * math.prod(kernel) // channels
    return None


def _collective(one: _Instruction, operands: list[str], devices: int) -> tuple | None:
    """Return (kind, bytes that a device puts in, how many devices take part), else None."""
    kind = one.opcode.removesuffix("-start")
    if kind not in _SENDS:
        return None
    size = sum(map(_size, operands))
    if kind == "collective-permute":
        return kind, size, devices
    line = one.line
    if among := re.search(r"replica_groups=\{\{([\d,]*)", line):
        return kind, size, len(_elements(among[1]))
    if among := re.search(r"replica_groups=\[(?:\d+,)*(\d+)\]<=", line):
        return kind, size, int(among[1])
    if among := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", among[1]))
        named = re.findall(
            r"'(\w+)'(?::\(\d+\)(\d+))?", among[2]
        )  # a part of an axis has its own size
        return kind, size, math.prod(int(part or sizes[name]) for name, part in named)
    return kind, size, devices
