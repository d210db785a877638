"""Counts what updates launch on a GPU, by compiling them for a card that is only described.

XLA's compiler for GPUs also runs where there is none. Its optimised program has one instruction for
each kernel and each copy, and says how often a loop runs. docs/speed.md says how to install it, and
what such a count can show.
"""

import re
from math import prod
from typing import NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from utils.core.devices import DEVICES


class Card(NamedTuple):
    """A GPU: its public figures in the words of XLA, and what a launch and its work take."""

    description: str
    launch: float  # seconds from one small kernel to the next
    bandwidth: float  # bytes of memory a second
    rate: float  # operations a second of large products in bfloat16


class Cost(NamedTuple):
    """Kernels and copies, the bytes that they read and write, and an estimate of the seconds."""

    launches: float
    bytes: float
    seconds: float

    def times(self, number):
        """What it costs as often as that"""
        return Cost(*(number * figure for figure in self))

    def plus(self, other):
        """What both cost"""
        return Cost(*map(sum, zip(self, other)))


class Instruction(NamedTuple):
    """One line of a program: name and shape of the result, operation, operands, all that follows"""

    name: str
    shape: str
    operation: str
    operands: list
    text: str

    def names(self, what):
        """The computation after `what`=, as calls=%fused_add"""
        found = re.search(rf"\b{what}=%([\w.-]+)", self.text)
        return found and found[1]


# NVIDIA's data sheet of the H100 SXM: 132 multiprocessors, 80 GB at 3.35 TB/s, 50 MB of cache. The
# rest is what every chip of compute capability 9.0 has. A launch is measured; of the 989 TFLOP/s of
# the data sheet, products of this size reach about a third.
H100 = Card("""
    platform_name: "CUDA" device_description_str: "H100" runtime_version { major: 13 }
    dnn_version_info { major: 9 }
    gpu_device_info {
      cuda_compute_capability { major: 9 } core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
      device_memory_size: 85000000000 memory_bandwidth: 3350000000000 l2_cache_size: 52428800
      threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
      registers_per_block_limit: 65536 registers_per_core_limit: 65536
      shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
      shared_memory_per_core: 233472
      block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535 }
    """, launch=1.9e-6, bandwidth=3.35e12, rate=3e14)
CARDS = {"h100": H100}
# Without a card nothing can be tried out: cuBLAS multiplies all matrices, as it is.
OPTIONS = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}
# Names, views of memory, and the ends of what was counted where it began.
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all",
        "opt-barrier", "partition-id", "replica-id", "fusion-done", "copy-done", "async-done"}
SIZES = {"pred": 1, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "f16": 2, "bf16": 2, "s32": 4, "u32": 4,
         "f32": 4, "s64": 8, "u64": 8, "f64": 8}
SLICES = {"slice", "dynamic-slice", "gather"}
HEADER = re.compile(r"(ENTRY )?%([\w.-]+) \(.*\{$")
LINE = re.compile(r"\s+(?:ROOT )?%([\w.-]+) = (\(.*?\)|\S+) ([a-z][a-z-]*)\((.*)")


def compiled(function, shapes, card):
    """`function` of arrays of these shapes, compiled for one such card, on a mesh of it alone

    Raises: ValueError where jax has no compiler for it."""
    try:
        topology = topologies.get_topology_desc(
            platform="cuda", target_config=card.description, topology="1x1x1")
    except (RuntimeError, NotImplementedError) as error:
        raise ValueError("--launches: XLA's compiler for GPUs is not installed, see "
                         "docs/speed.md") from error
    mesh, same = Mesh(np.array(topology.devices), (DEVICES,)), PartitionSpec()
    place = NamedSharding(mesh, same)
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes)
    mapped = jax.shard_map(function, mesh=mesh, in_specs=same, out_specs=same, check_vma=False)
    return jax.jit(mapped, donate_argnums=0).trace(shapes).lower().compile(OPTIONS)


def count(text, card):
    """The Cost of an optimised program, given as text"""
    computations, main = _parsed(text)
    return _cost(computations[main], computations, card)


def _parsed(text):
    """{computation: {name: Instruction}}, and the name of the one with which the program begins."""
    computations, main, lines = {}, None, {}
    for line in text.splitlines():
        if header := HEADER.match(line):
            lines = computations.setdefault(header[2], {})
            main = header[2] if header[1] else main
        elif found := LINE.match(line):
            name, shape, operation, rest = found.groups()
            operands = re.findall(r"%([\w.-]+)", rest.partition(")")[0])
            lines[name] = Instruction(name, shape, operation, operands, rest)
    return computations, main


def _cost(lines, computations, card):
    """What the instructions of one computation cost, those of its loops as often as they run."""
    total = Cost(0, 0, 0)
    for one in lines.values():
        if one.operation == "while":
            trips = re.search(r'known_trip_count":\{"n":"(\d+)"', one.text)
            body = _cost(computations[one.names("body")], computations, card)
            total = total.plus(body.times(int(trips[1])))
        elif one.operation == "call":
            total = total.plus(_cost(computations[one.names("to_apply")], computations, card))
        elif one.operation not in FREE:
            moved = _moved(one, lines, computations)
            seconds = max(card.launch, moved / card.bandwidth, _operations(one, lines) / card.rate)
            total = total.plus(Cost(1, moved, seconds))
    return total


def _moved(one, lines, computations):
    """Bytes that an instruction reads and writes; of what it only cuts out or puts in, this part"""
    inner = computations.get(one.names("calls"), {})
    if not inner:  # a product's second result is scratch memory
        shapes = [lines[name].shape for name in one.operands if name in lines]
        return sum(map(_size, shapes)) + _size(one.shape, first=one.operation == "custom-call")
    read = sum(_read(part, inner) for part in inner.values() if part.operation == "parameter")
    put = [inner[part.operands[1]].shape for part in inner.values()
           if part.operation == "dynamic-update-slice"]
    return read + (sum(map(_size, put)) if put else _size(one.shape))


def _read(parameter, inner):
    """Bytes of a parameter that the fused instructions `inner` read."""
    users = [part for part in inner.values() if parameter.name in part.operands]
    if users and all(part.operation in SLICES for part in users):
        return sum(_size(part.shape) for part in users)
    if users and all(part.operation == "dynamic-update-slice" for part in users):
        return 0
    return _size(parameter.shape)


def _operations(one, lines):
    """Floating-point operations of a matrix product; 0 for all else, convolutions too."""
    found = re.search(r'"lhs_contracting_dimensions":\["(\d+)"\]', one.text)
    if not found or one.operands[0] not in lines:
        return 0
    (_, inputs), *_ = _arrays(lines[one.operands[0]].shape)
    (_, outputs), *_ = _arrays(one.shape)
    return 2 * prod(outputs) * inputs[int(found[1])]


def _size(shape, first=False):
    """Bytes of a shape, all arrays of a tuple or its first alone."""
    arrays = _arrays(shape)
    return sum(SIZES[kind] * prod(sides) for kind, sides in arrays[: 1 if first else None])


def _arrays(shape):
    """(type, sides) of each array in a shape: f32[2,3]{1,0} is ("f32", [2, 3])"""
    found = re.findall(r"([a-z]+\d*)\[([\d,]*)\]", shape)
    return [(kind, [int(side) for side in sides.split(",") if side]) for kind, sides in found
            if kind in SIZES]
