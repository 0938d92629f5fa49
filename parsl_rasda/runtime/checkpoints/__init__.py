"""CHECKPOINTS: how a trial's state is kept on disk, and for how long.

A checkpoint is a directory of tensors and a JSON header. It is moved to its place when it is whole, and
reading it executes nothing.

Reading order: `checkpoint` (the format on disk), `saver` (written in the background), `retention` (which ones
may be removed), `shared` (copies that other sites reach), `model` (a trained model in the stages after a
study). What a checkpoint contains is decided elsewhere: by `engine.training_state` and `trial`.
"""
