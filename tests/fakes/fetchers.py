"""A download without a network: it brings the files of releases in memory, when the test says so."""

from __future__ import annotations

from pathlib import Path

from evenfleet_agent.fetcher import FetchOrder, FetchResult
from evenfleet_agent.rollout import Cause
from evenfleet_shared import manifest as manifests
from evenfleet_shared.manifest import Manifest


class FakeFetcher:
    """A `Fetcher`; `finish` and `fail` end what is under way, and `start_error` is what beginning ends in."""

    def __init__(self) -> None:
        self._releases: dict[str, tuple[Manifest, dict[str, bytes]]] = {}
        self._under_way: tuple[str, tuple[str, ...], Path] | None = None
        self._result: FetchResult | None = None
        self.start_error: OSError | None = None
        self.started: list[tuple[str, tuple[str, ...]]] = []
        self.orders: list[FetchOrder] = []

    def add(self, manifest: Manifest, files: dict[str, bytes]) -> str:
        """Make a release known; returns its name."""
        name = manifests.digest(manifests.encode(manifest))
        self._releases[name] = (manifest, files)
        return name

    @property
    def busy(self) -> bool:
        return self._under_way is not None

    def finish(self) -> None:
        """Bring what is under way into its slot, the manifest last."""
        assert self._under_way is not None
        release, variants, directory = self._under_way
        manifest, files = self._releases[release]
        golden = manifest.golden
        wanted = [manifest.variant(name).artifact for name in variants]
        (directory / manifests.MANIFEST_NAME).unlink(missing_ok=True)
        for reference in (*wanted, golden.inputs, golden.labels, golden.outputs):
            path = directory / reference.file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(files[reference.file])
        (directory / manifests.MANIFEST_NAME).write_bytes(manifests.encode(manifest))
        self._end(FetchResult(ok=True))

    def fail(self, reason: str, cause: Cause = "link") -> None:
        self._end(FetchResult(ok=False, cause=cause, reason=reason))

    def start(self, order: FetchOrder) -> None:
        assert self._under_way is None, "two downloads at once"
        if self.start_error is not None:
            raise self.start_error
        self._under_way = (order.release, order.variants, Path(order.directory))
        self.started.append((order.release, order.variants))
        self.orders.append(order)

    def fileno(self) -> int | None:
        return None

    def result(self) -> FetchResult | None:
        result, self._result = self._result, None
        return result

    def stop(self) -> None:
        self._under_way = self._result = None

    def _end(self, result: FetchResult) -> None:
        assert self._under_way is not None
        self._under_way, self._result = None, result
