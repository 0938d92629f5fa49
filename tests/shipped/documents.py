"""The documents, their blocks of code, and what those need to be run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
DOCS = REPOSITORY / "docs"
PAGES = [REPOSITORY / "README.md", *sorted(DOCS.rglob("*.md"))]
_FENCE = re.compile(r"^( *)```(\w*)([^\n]*)\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A fenced block of code.

    Attributes:
        language: As the fence has it, or empty.
        title: What else stands there.
        text: Without the indentation of a list.
    """

    page: str
    line: int
    language: str
    title: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(*languages: str) -> list[Block]:
    """Return all blocks in these languages."""
    return [each for page in PAGES for each in blocks_of(page) if each.language in languages]


def blocks_of(page: Path) -> Iterator[Block]:
    """Yield the blocks of a page."""
    text = page.read_text(encoding="utf-8")
    for found in _FENCE.finditer(text):
        indent, language, title, body = found.groups()
        body = re.sub(rf"^{indent}", "", body, flags=re.MULTILINE)
        line = text[: found.start()].count("\n") + 1
        yield Block(str(page.relative_to(REPOSITORY)), line, language, title.strip(), body)


# ---------------------------------------------------------------------------- what a reader brings

_TORCH = """
import torch
from torch import nn

generator = torch.Generator().manual_seed(0)
_x = torch.randn(96, 4, generator=generator)
_y = _x.sum(1, keepdim=True)
"""
_DATA = """
train_set = torch.utils.data.TensorDataset(_x[:64], _y[:64])
val_set = torch.utils.data.TensorDataset(_x[64:], _y[64:])

def build(config):
    return nn.Sequential(nn.Linear(4, config["width"]), nn.Tanh(), nn.Linear(config["width"], 1))

def evaluate(model):
    with torch.no_grad():
        return float(nn.functional.mse_loss(model(_x[64:]), _y[64:]))
"""

BEFORE: dict[str, str] = {
    "docs/pipelines.md": "import numpy as np\n",
    "docs/own_loop.md": _TORCH + _DATA,
    "docs/models.md": _TORCH
    + """
from torch.optim import Adam
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from parsl_rasda.runtime import local_trial

trial = local_trial({}, epochs=2, batch_size=16)
generator, discriminator, images = nn.Linear(4, 4), nn.Linear(4, 1), _x
noise_like, fid_of = torch.randn_like, lambda g: 0.5
def hinge(real, fake):
    return torch.relu(1 - real).mean() + torch.relu(1 + fake).mean()
""",
    "docs/integrations.md": _TORCH
    + """
from parsl_rasda.runtime import local_trial

build = lambda config: (model := nn.Linear(4, 1), torch.optim.SGD(model.parameters(), 0.05))
def train_one_epoch(model, optimizer):
    optimizer.zero_grad()
    nn.functional.mse_loss(model(_x), _y).backward()
    optimizer.step()
def evaluate(model):
    return nn.functional.mse_loss(model(_x), _y).item()
""",
}
BETWEEN: dict[str, str] = {  # after the first block of a page
    "docs/models.md": """
trial = local_trial({}, epochs=1, batch_size=16)
model, _ = trial.prepare(nn.Linear(4, 1), Adam, lr=0.01)
""",
}
AFTER: dict[str, str] = {
    "docs/own_loop.md": """
import argparse
import tempfile
assert len(trial.history) == 3
train_alone(0.01, 16, epochs=1)
folder = tempfile.mkdtemp()
args = argparse.Namespace(lr=0.01, width=8, epochs=1, resume="", save=folder, report=folder + "/report.json")
run(args)
args.resume, args.epochs = folder, 2
run(args)
assert json.load(open(args.report))["val_loss"] < 10
""",
    "docs/pipelines.md": """
from pathlib import Path
here = Path(".")
data = prepare([simulate(seed, 8, here) for seed in (0, 1)], here)
assert evaluate({"metric": 1.0}, data) == {"metric": 1.0, "samples": 2}
""",
    "docs/integrations.md": """
trial = local_trial({}, epochs=2)
train(trial)
assert len(trial.history) == 2
""",
    "docs/models.md": """
for _ in trial.epochs():
    for x, y in trial.batches((_x, _y)):
        trial.step((model(x) - y).square().mean())
    trial.report()
assert int(ema.n_averaged) > 0
""",
}
