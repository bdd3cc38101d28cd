"""Feature packs: everything a page shows about each latent, collected in one pass and browsable without the model."""
