"""The backend passes what ditplan asks of all."""

from ditplan.testing.backends import BackendTests


class TestSplitGuidance(BackendTests):
    name = "split-guidance"
