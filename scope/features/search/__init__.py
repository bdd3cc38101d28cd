"""Searching a pack: by what latents fire on, what they are called and what they promote."""
