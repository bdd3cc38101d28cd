"""A pack, or some of its latents, in a form that other programs read, and as a card for people."""
