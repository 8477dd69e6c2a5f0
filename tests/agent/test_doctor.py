"""What `doctor` finds here, with real runtimes in subprocesses; the command is in `system/test_measure_command`."""

from __future__ import annotations

import pytest

from evenfleet_agent import doctor
from evenfleet_agent.doctor import Tried
from fakes import vendor_libraries


def tried(runtime, *, delegate=None, works=True, reason=None, executed="xnnpack"):
    return Tried(
        runtime=runtime,
        delegate=delegate,
        works=works,
        runtime_version="2.3.0" if works else None,
        python="3.11.7" if works else None,
        executed=executed,
        reason=reason,
    )


def test_delegate_is_tried_in_the_working_runtimes_that_take_it(tmp_path):
    library = str(vendor_libraries.delegate(tmp_path))
    plain = [tried("litert"), tried("tflite", works=False), tried("litert-compiled")]
    (found,) = doctor.try_delegates(None, [library], plain)
    assert (found.runtime, found.works, found.executed) == ("litert", True, "libfake_delegate.so")


def test_delegate_that_is_not_there_does_not_work_and_says_why():
    (found,) = doctor.try_delegates(None, ["edgetpu"], [tried("litert")])
    assert not found.works
    assert found.runtime_version is not None
    assert found.reason is not None
    assert "libedgetpu1-std" in found.reason


@pytest.mark.parametrize(
    ("plain", "with_delegates", "expected"),
    [
        ([tried("litert"), tried("tflite", works=False)], [], True),
        ([tried("litert", works=False)], [], False),
        ([tried("litert")], [tried("litert", delegate="gpu", works=False)], False),
        ([tried("litert")], [tried("litert", delegate="gpu", works=False), tried("onnx", delegate="gpu")], True),
    ],
)
def test_everything_is_there_when_a_runtime_works_and_each_delegate_in_one(plain, with_delegates, expected):
    asked = sorted({found.delegate for found in with_delegates})
    assert doctor.all_there(plain, asked, with_delegates) is expected


def test_delegate_that_no_working_runtime_takes_is_missing():
    assert not doctor.all_there([tried("tensorflow")], ["npu"], [])


def test_accelerators_that_are_not_attached_are_told_in_a_line_each(tmp_path):
    told = doctor.attached(tmp_path, nvml_library="libnvidia-ml-not-here.so.1")
    assert told["gpu"].startswith("no GPU here: ")
    assert told["nvml"].startswith("no NVIDIA GPU here: ")
    assert told["edge_tpu"].startswith("no Edge TPU here: ")


def test_gpu_that_is_attached_is_told_with_its_memory_and_use(tmp_path):
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidia0").touch()
    (tmp_path / "dev/apex_0").touch()
    told = doctor.attached(tmp_path, nvml_library=str(vendor_libraries.nvml(tmp_path)))
    assert told == {
        "gpu": "a GPU with the driver nvidia",
        "nvml": "Fake A2000, 5369 of 6442 MB used, 37% busy",
        "edge_tpu": "an Edge TPU on PCIe",
    }


def test_what_a_machine_does_not_tell_is_none_and_said_so(tmp_path):
    zone = tmp_path / "sys/class/thermal/thermal_zone0"
    zone.mkdir(parents=True)
    (zone / "type").write_text("cpu")
    (zone / "temp").write_text("51500")
    sources = doctor.read_sources(tmp_path)
    assert sources["temperatures_c"] == {"cpu": 51.5}
    assert sources["governor"] is None
    lines = doctor.table(sources, {}, []).splitlines()
    assert any(line.split() == ["temperatures_c", "cpu", "51.5"] for line in lines)
    assert any(line.startswith("governor") and line.endswith("this machine does not tell") for line in lines)


def test_table_has_a_line_for_everything_that_was_tried():
    lines = doctor.table(
        {},
        {"gpu": "no GPU here"},
        [
            tried("litert"),
            tried("tflite", works=False, reason="not installed: pip install it"),
            tried("litert", delegate="/opt/libv.so", executed="libv.so"),
            tried("litert", delegate="edgetpu", works=False, reason="no edgetpu: x"),
        ],
    ).splitlines()
    assert lines == [
        "gpu                    no GPU here",
        "litert                 works, version 2.3.0, Python 3.11.7; xnnpack ran a small model",
        "tflite                 missing: not installed: pip install it",
        "litert + /opt/libv.so  works: libv.so runs a small model",
        "litert + edgetpu       not used: no edgetpu: x",
    ]
