"""Our own backends pass what we ask of those of others."""

from ditplan.testing.backends import BackendTests


class TestNative(BackendTests):
    name = "native"


class TestDryRun(BackendTests):
    name = "dry-run"


class TestXdit(BackendTests):
    name = "xdit"


class TestDiffusers(BackendTests):
    name = "diffusers"


class TestSglang(BackendTests):
    name = "sglang"


class TestVllmOmni(BackendTests):
    name = "vllm-omni"


class TestCacheDit(BackendTests):
    name = "cache-dit"
