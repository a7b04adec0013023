"""The names of what a run directory holds. Imports nothing."""

CONFIG = 'config.json'
METADATA = 'metadata.json'
METRICS = 'metrics.jsonl'
SUMMARY = 'summary.json'
CHECKPOINTS = 'checkpoints'
PROFILES = 'profiles'
PLOTS = 'plots'
TENSORBOARD = 'tensorboard'

# What `status` in the metadata may be; see `craft_jax.runs.listing.status_of`.
RUNNING, FINISHED, STOPPED, FAILED = 'running', 'finished', 'stopped', 'failed'
DEAD = 'dead'  # says `running`, but no process holds the lock
STATUSES = (RUNNING, FINISHED, STOPPED, FAILED, DEAD)
