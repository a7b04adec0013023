"""The process and its machine: files, signals, memory, devices, caches."""
