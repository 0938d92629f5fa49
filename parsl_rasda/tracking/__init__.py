"""Trials in the tools where people look at curves: TensorBoard, MLflow, Weights & Biases.

Read `base` for what a tracker does, then `mlflow` for one of them. Each library is imported by its
own module alone.
"""
