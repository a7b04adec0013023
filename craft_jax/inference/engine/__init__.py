"""Many requests at once: a scheduler, slots on a device, a prefix cache."""
