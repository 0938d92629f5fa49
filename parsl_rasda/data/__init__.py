"""SAMPLES BY THE TERABYTE: shards on disk, written once, and read in blocks in shuffled order.

A *shard* is a file of many samples. A *block* is a few consecutive samples and the unit that is read, always
as one slice (to pick 16 samples by a list of their numbers is forty times slower in HDF5). A prepare stage
writes shards::

    with ShardWriter(directory, dtypes={"frames": "uint8"}) as shards:
        for split, frames, power in clips():
            shards.write(split, frames=frames, power=power)
    return {"index": str(shards.index), "samples": shards.samples}

and a training function reads them, each sample once an epoch at any world size::

    training = open_shards(trial.inputs["data"]["index"], split="train")
    for epoch in trial.epochs():
        for frames, power in trial.batches(training):
            ...

Samples in files of another layout are read in the same way by your own `BlockReader`, which defines the
blocks: see `workflows/am_meltpool/dataset.py`.

Reading order: `layout` and `order` (which sample comes when, as pure functions), `index` and `formats`
(what is on disk) with `hdf5`, `zarr3`, `plain_shard`, `tfrecord` and `example`, `files` (open
files), `blocks`, `shards`, `writer`.
"""

from __future__ import annotations

from parsl_rasda.data.blocks import BlockReader
from parsl_rasda.data.shards import Shards, open_shards
from parsl_rasda.data.writer import ShardWriter

__all__ = ["BlockReader", "ShardWriter", "Shards", "open_shards"]
