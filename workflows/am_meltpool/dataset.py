"""Scan lines in the layout of RAISE-LPBF as clips and targets: the same code for real and synthetic files.

v1.1 has one file an object, ``C0NN.hdf5``, with groups that are layers; v1.0 has the same below ``/C0NN/``.
A layer holds ``frame`` (n, H, W) uint8, ``scan_line_index`` (n,), and ``laser_params`` (lines, 2) with speed
[mm/s] and power [W], which test objects lack. `write_index` looks through all files once and checks them;
`Clips` then reads slices only, block by block and ahead of training.

Source:
    Blanc et al. 2023, Additive Manufacturing Letters 7:100161, and its public baseline: crop around the
    brightest pixel of the mean frame, frames spread evenly over the scan line, normalisation, targets.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from parsl_rasda.data import BlockReader
from parsl_rasda.data.blocks import Block
from parsl_rasda.data.files import OPEN_FILES
from parsl_rasda.data.index import ArrayType
from parsl_rasda.data.layout import Layout
from parsl_rasda.errors import Diagnostic, InvalidFileError, InvalidSettingError
from parsl_rasda.types import JSON

SPLITS = ("train", "validation", "test", "unlabelled")
HOLD_OUT = ("object", "scan_line")
SUFFIXES = (".hdf5", ".h5")

FRAMES, SIDE = 16, 41  # of a clip
GREY_MEAN, GREY_DEVIATION = 0.45, 0.225  # after division by 255
TARGETS = ("speed", "power")
UNITS = ("mm/s", "W")
NOMINAL = (900.0, 215.0)  # speed [mm/s] and power [W] of a target of 1
BLOCK, BLOCKS_KEPT = 4, 512  # scan lines that are read together; 110 kB a block


@dataclass(frozen=True, slots=True)
class ScanLine:
    """Where the video of a scan line lies, and what the laser did.

    Attributes:
        start: Its first frame in the layer.
        stop: After its last frame.
        speed_mm_s: None in test objects.
        power_w: None in test objects.
    """

    file: str
    group: str
    object_name: str
    line: int
    start: int
    stop: int
    speed_mm_s: float | None
    power_w: float | None

    @property
    def is_labelled(self) -> bool:
        """Whether laser parameters are known."""
        return self.speed_mm_s is not None


def write_index(
    root: str | list[str],
    directory: str,
    *,
    hold_out: str = "object",
    held_out_fraction: float = 0.25,
    seed: int = 0,
) -> dict[str, JSON]:
    """Check all files, split their scan lines, and return where that is written.

    A part of the labelled objects, or scan lines, is held out; half of it validates, half tests.

    Args:
        root: A folder with files in the layout of RAISE-LPBF, or a list of files.
        directory: Where the index goes; it exists.
        hold_out: ``object``: splits share no object; ``scan_line``: lines are drawn from all objects.
        held_out_fraction: Part of the objects, or lines, that is held out; at least two are.
        seed: Of the draw.

    Returns:
        ``index`` (path), ``samples`` (per split) and ``mean_mse`` (per labelled split: the error of
        predicting the mean of the training targets).

    Raises:
        InvalidFileError: With everything that is wrong in the files.
        InvalidSettingError: If there are no files, or nothing is left to train on.
    """
    if hold_out not in HOLD_OUT:
        raise InvalidSettingError("data.hold_out", hold_out, f"one of {', '.join(HOLD_OUT)}")
    if not 0 < held_out_fraction < 1:
        raise InvalidSettingError("data.held_out_fraction", held_out_fraction, "between 0 and 1")
    lines = find_scan_lines(root)
    labelled = [line for line in lines if line.is_labelled]
    # What is drawn: objects, or every line for itself.
    keys = [line.object_name if hold_out == "object" else str(n) for n, line in enumerate(labelled)]
    part_of = _draw(list(dict.fromkeys(keys)), held_out_fraction, seed, what=hold_out)
    splits: dict[str, list[ScanLine]] = {split: [] for split in SPLITS}
    for line, key in zip(labelled, keys, strict=True):
        splits[part_of[key]].append(line)
    splits["unlabelled"] = [line for line in lines if not line.is_labelled]
    index = Path(directory) / "index.json"
    index.write_text(
        json.dumps({split: [astuple(line) for line in rows] for split, rows in splits.items()}),
        encoding="utf-8",
    )
    targets = {split: _targets(splits[split]) for split in SPLITS[:-1]}
    mean = targets["train"].mean(dim=0)
    return {
        "index": str(index),
        "samples": {split: len(rows) for split, rows in splits.items()},
        "mean_mse": {split: float((t - mean).square().mean()) for split, t in targets.items()},
    }


def _draw(keys: list[str], fraction: float, seed: int, *, what: str) -> dict[str, str]:
    """Return the split of each object or line."""
    if len(keys) < 3:
        allowed = f"files with 3 labelled {what}s or more: to train, to validate and to test"
        raise InvalidSettingError("data.root", f"{len(keys)} labelled {what}s", allowed)
    held_out = min(max(2, round(fraction * len(keys))), len(keys) - 1)
    order = np.random.default_rng(seed).permutation(len(keys)).tolist()
    names = ["validation" if n % 2 == 0 else "test" for n in range(held_out)]
    names += ["train"] * (len(keys) - held_out)
    return {keys[k]: name for k, name in zip(order, names, strict=True)}


def find_scan_lines(root: str | list[str]) -> list[ScanLine]:
    """Return all scan lines of some files, in the order of files, layers and lines; no frame is read.

    Raises:
        InvalidFileError: With everything that is wrong in the files.
        InvalidSettingError: If there are none.
    """
    paths = [Path(path) for path in root] if isinstance(root, list) else _files_in(Path(root))
    lines: list[ScanLine] = []
    mistakes: list[Diagnostic] = []
    for path in paths:
        if path.suffix not in SUFFIXES:
            mistakes.append(
                Diagnostic(("file",), f"the name {path.name}", f"*{', *'.join(SUFFIXES)}", str(path))
            )
            continue
        try:
            with h5py.File(path, "r") as file:
                for object_name, layer in _layers(file, path.stem):
                    lines += _lines_of(layer, object_name, str(path.absolute()))
        except InvalidFileError as error:
            mistakes += error.mistakes
        except OSError as error:
            mistakes.append(Diagnostic(("file",), str(error), "a whole HDF5 file", str(path)))
    if mistakes:
        raise InvalidFileError(mistakes)
    return lines


def _files_in(folder: Path) -> list[Path]:
    found = sorted(p for p in folder.glob("*") if p.suffix in SUFFIXES)
    if not found:
        raise InvalidSettingError(
            "data.root", str(folder), f"a folder with HDF5 files ({', '.join(SUFFIXES)}), or a list of files"
        )
    return found


def _layers(file: Any, stem: str) -> Iterator[tuple[str, Any]]:  # h5py is untyped
    """Yield the object's name and the group of each layer, in either version of the layout."""
    groups = [group for group in file.values() if isinstance(group, h5py.Group)]
    if any("frame" in group for group in groups):
        yield from ((stem, layer) for layer in groups)
        return
    nested = [(group.name.strip("/"), layer) for group in groups for layer in group.values()]
    if not nested or not all(isinstance(layer, h5py.Group) for _, layer in nested):
        allowed = "layers with `frame` and `scan_line_index`, at the top (v1.1) or below objects (v1.0)"
        found = f"groups {', '.join(file) or 'none'}"
        raise InvalidFileError([Diagnostic(("/",), found, allowed, file.filename)])
    yield from nested


def _lines_of(layer: Any, object_name: str, path: str) -> Iterator[ScanLine]:
    """Yield the scan lines of a layer after checking it."""
    for key in ("frame", "scan_line_index"):
        if key not in layer:
            raise _wrong(layer, key, "nothing", "a data set")
    frame, index = layer["frame"], layer["scan_line_index"][:]
    if frame.ndim != 3 or frame.dtype != np.uint8:
        found = f"{frame.dtype} of shape {frame.shape}"
        raise _wrong(layer, "frame", found, "uint8 of shape (n, height, width)")
    if index.shape != frame.shape[:1] or index.dtype.kind not in "iu":
        found = f"{index.dtype} of shape {index.shape}"
        raise _wrong(layer, "scan_line_index", found, f"a whole number for each of {len(frame)} frames")
    starts = np.flatnonzero(np.diff(index, prepend=index[:1] - 1)).tolist()
    numbers = index[starts].tolist()
    if len(set(numbers)) < len(numbers):
        twice = next(n for k, n in enumerate(numbers) if n in numbers[:k])
        found = f"scan line {twice} in several pieces"
        raise _wrong(layer, "scan_line_index", found, "each scan line in one piece")
    laser = _laser(layer, numbers)
    for number, start, stop in zip(numbers, starts, [*starts[1:], len(index)], strict=True):
        yield ScanLine(path, layer.name, object_name, number, start, stop, *laser.get(number, (None, None)))


def _laser(layer: Any, numbers: list[int]) -> dict[int, tuple[float, float]]:
    """Return speed and power of each scan line; nothing if the layer does not tell."""
    if "laser_params" not in layer:
        return {}
    laser = layer["laser_params"][:].astype(float)
    if laser.ndim != 2 or laser.shape[1] != 2:
        raise _wrong(layer, "laser_params", f"shape {laser.shape}", "(lines, 2): speed [mm/s], power [W]")
    for n in numbers:
        if not (0 <= n < len(laser) and np.isfinite(laser[n]).all() and (laser[n] > 0).all()):
            raise _wrong(layer, "laser_params", f"no speed and power of scan line {n}", "those of each line")
    return {n: (float(laser[n, 0]), float(laser[n, 1])) for n in numbers}


def _wrong(layer: Any, key: str, found: str, allowed: str) -> InvalidFileError:
    return InvalidFileError([Diagnostic((f"{layer.name}/{key}",), found, allowed, layer.file.filename)])


class Clips(BlockReader):
    """The clips of one split with their targets, read in blocks of neighbouring scan lines of a layer.

    No more files are open than `parsl_rasda.data` allows, and none across a fork. What fits into
    `BLOCKS_KEPT` is read and cut once only.
    """

    def __init__(self, index: str, split: str) -> None:
        """Read the index, no frames.

        Args:
            index: Path that `write_index` returned under ``index``.
            split: One of `SPLITS`.

        Raises:
            InvalidSettingError: If there is no such split.
        """
        splits = json.loads(Path(index).read_text(encoding="utf-8"))
        if split not in splits:
            raise InvalidSettingError("split", split, f"one of {', '.join(splits)} of {index}")
        self.lines = [ScanLine(*row) for row in splits[split]]
        self.targets = _targets(self.lines)
        self._kept = lru_cache(BLOCKS_KEPT)(self._load)
        layers = itertools.groupby(self.lines, key=lambda line: (line.file, line.group))
        layout = Layout([len(list(lines)) for _, lines in layers], BLOCK)
        super().__init__(layout, [ArrayType((FRAMES, SIDE, SIDE), "uint8"), ArrayType((2,), "float32")])

    def read_block(self, number: int) -> Block:
        """Return clips (n, frames, side, side), as grey values, and targets (n, 2).

        Raises:
            DataError: If a file has become unreadable.
        """
        return self._kept(number)

    def announce_block(self, number: int) -> None:
        """Let the system begin to fetch the frames of a block."""
        for line in self._lines_of(number):
            with OPEN_FILES.opened(line.file) as file:
                file.announce(f"{line.group}/frame", line.start, line.stop)

    def batch_of(self, parts: Block) -> tuple[Tensor, Tensor]:
        """Return clips (n, 1, frames, side, side), normalised, and targets (n, 2), NaN where unknown."""
        grey, targets = (torch.from_numpy(part) for part in parts)
        return (grey[:, None].float() / 255 - GREY_MEAN) / GREY_DEVIATION, targets

    def _load(self, number: int) -> Block:
        lines = self._lines_of(number)
        clips = []
        for line in lines:
            with OPEN_FILES.opened(line.file) as file:
                clips.append(clip_of(file.read(f"{line.group}/frame", line.start, line.stop)))
        return [np.stack(clips), _targets(lines).numpy()]

    def _lines_of(self, block: int) -> list[ScanLine]:
        (first,), (size,) = self.layout.extents(np.array([block]))
        return self.lines[first : first + size]


def clip_of(frames: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return `FRAMES` frames spread over a scan line, cut around the brightest pixel of its mean frame.

    Args:
        frames: Shape ``(n, height, width)``; beyond its borders the picture is black.
    """
    brightest = int(frames.mean(axis=0).argmax())
    row, column = divmod(brightest, frames.shape[2])
    chosen = frames[np.linspace(0, len(frames) - 1, FRAMES).astype(int)]
    half = SIDE // 2
    framed = np.pad(chosen, ((0, 0), (half, half), (half, half)))
    return framed[:, row : row + SIDE, column : column + SIDE]


def _targets(lines: Sequence[ScanLine]) -> Tensor:
    """Return speed and power over their nominal values, shape ``(lines, 2)``; NaN where unknown."""
    missing = float("nan")
    rows = [(line.speed_mm_s or missing, line.power_w or missing) for line in lines]
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 2) / torch.tensor(NOMINAL)
