from __future__ import annotations

from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from fakes.apps import fake_app, stand_on
from fakes.stores import FakeStore


@pytest.fixture(scope="session")
def app(tmp_path_factory: pytest.TempPathFactory) -> FastAPI:
    return fake_app(FakeStore(), tmp_path_factory.mktemp("artifacts"))


@pytest.fixture
def store() -> FakeStore:
    return FakeStore()


@pytest.fixture
def client(app: FastAPI, store: FakeStore, tmp_path: Path) -> TestClient:
    stand_on(app, store, tmp_path / "artifacts", max_bytes=100_000)
    return TestClient(app)
