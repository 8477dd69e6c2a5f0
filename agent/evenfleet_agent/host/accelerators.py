"""Look which accelerators are attached, without any vendor's library: /dev, /sys/bus/usb."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from evenfleet_agent.host.system import ROOT, find, read_text

# Before its firmware is loaded, an Edge TPU on USB is one of Global Unichip; afterwards one of Google.
_EDGE_TPU_USB: Final = {("1a6e", "089a"), ("18d1", "9302")}


def edge_tpu(root: Path = ROOT) -> str | None:
    """Return how an Edge TPU is attached, ``USB`` or ``PCIe``; None where there is none.

    Source:
        Vendor and product numbers of Coral's udev rules; /dev/apex_0 is made by the gasket driver for PCIe.
    """
    if find(root / "dev", "apex_[0-9]*"):
        return "PCIe"
    for device in find(root / "sys/bus/usb/devices", "*"):
        if (read_text(device / "idVendor"), read_text(device / "idProduct")) in _EDGE_TPU_USB:
            return "USB"
    return None


def gpu(root: Path = ROOT) -> str | None:
    """Return the driver of the first GPU that can compute, as the kernel calls it; None where there is none.

    A render node is what OpenCL, Vulkan and CUDA need; a screen's frame buffer has none.
    """
    if find(root / "dev", "nvidia[0-9]*"):
        return "nvidia"
    drivers = [node / "device/driver" for node in find(root / "sys/class/drm", "renderD[0-9]*")]
    return next((driver.resolve().name for driver in drivers if driver.exists()), None)
