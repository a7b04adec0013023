"""Hypothesis without a time limit: the machine may be busy."""

import hypothesis

hypothesis.settings.register_profile('text', deadline=None, max_examples=100)
hypothesis.settings.load_profile('text')
