"""Settings of all tests."""

from hypothesis import settings

# An example may take as long as it does: machines stall, and a first one pays for imports.
settings.register_profile("blocklora", deadline=None)
settings.load_profile("blocklora")
