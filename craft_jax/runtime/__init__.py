"""Process and machine: files, signals, memory, distributed start, caches."""
