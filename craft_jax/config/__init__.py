"""Settings: what there is, where a value came from, files and flags."""
