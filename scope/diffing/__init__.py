"""Compares a model with its fine-tune: by weights, by activations, and by the latents of the base's SAE.

A crosscoder trained on both models would be a further section of `result.Diff`, beside `latents`: it needs the same text.
"""
