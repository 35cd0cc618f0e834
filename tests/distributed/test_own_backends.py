"""Our own backends pass what we ask of those of others."""

from ditplan.testing.backends import BackendTests


class TestNative(BackendTests):
    name = "native"


class TestDryRun(BackendTests):
    name = "dry-run"
