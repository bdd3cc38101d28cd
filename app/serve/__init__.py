"""The layer between the pages and the library: the session, open packs, loaded models, jobs, downloads."""
