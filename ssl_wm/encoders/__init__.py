"""Encoders: the contract, the backbones, loading and saving, and batched embeddings.

``encoder.py`` is the contract, ``load.py`` turns one spec string into an encoder,
``embeddings.py`` turns images into (N, D) features.
"""
