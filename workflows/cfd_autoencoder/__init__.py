"""Compression of flows by a convolutional autoencoder: simulate, prepare, tune by RASDA, compare with PCA."""
