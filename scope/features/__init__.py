"""Everything a page shows about each latent: collected in one pass, kept in a pack, browsable without the model."""
