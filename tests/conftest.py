"""How many examples a law is tried on: some in each run of the suite, and other ones each time;
many where somebody says `--hypothesis-profile long`.
"""

from hypothesis import settings

settings.register_profile("suite", max_examples=40, deadline=None)
settings.register_profile("long", max_examples=1000, deadline=None)
settings.load_profile("suite")
