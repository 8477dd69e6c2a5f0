from __future__ import annotations

import pytest

from evenfleet_agent.host import accelerators


@pytest.mark.parametrize(("vendor", "product"), [("1a6e", "089a"), ("18d1", "9302")])
def test_edge_tpu_on_usb_is_known_before_and_after_its_firmware(tmp_path, vendor, product):
    device = tmp_path / "sys/bus/usb/devices/2-1"
    device.mkdir(parents=True)
    (device / "idVendor").write_text(vendor + "\n")
    (device / "idProduct").write_text(product + "\n")
    assert accelerators.edge_tpu(tmp_path) == "USB"


def test_edge_tpu_on_pcie_is_known_by_its_device(tmp_path):
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/apex_0").touch()
    assert accelerators.edge_tpu(tmp_path) == "PCIe"


def test_gpu_is_told_by_its_driver(tmp_path):
    (tmp_path / "sys/bus/platform/drivers/v3d").mkdir(parents=True)
    device = tmp_path / "sys/class/drm/renderD128/device"
    device.mkdir(parents=True)
    (device / "driver").symlink_to(tmp_path / "sys/bus/platform/drivers/v3d")
    assert accelerators.gpu(tmp_path) == "v3d"


def test_nvidia_needs_no_render_node(tmp_path):
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidia0").touch()
    assert accelerators.gpu(tmp_path) == "nvidia"


def test_machine_with_neither_has_none(tmp_path):
    (tmp_path / "sys/class/drm/card0").mkdir(parents=True)
    assert (accelerators.edge_tpu(tmp_path), accelerators.gpu(tmp_path)) == (None, None)
