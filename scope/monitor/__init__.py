"""Monitors: one score a text, read off a model's activations, with a threshold and what it is worth beside its nulls."""
