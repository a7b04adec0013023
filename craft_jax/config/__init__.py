"""Settings: their declarations, config files and flags, and provenance."""
