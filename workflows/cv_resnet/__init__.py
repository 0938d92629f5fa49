"""Image classification by residual networks: prepare, tune by RASDA, evaluate on a test half."""
