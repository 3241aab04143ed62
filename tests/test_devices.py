"""Which device is chosen, and what is said when the one asked for is not there."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_service import devices
from llm_service.devices import Device, LlamaCppOptions, Probe, Requested, detect
from llm_service.errors import DeviceUnavailable

GIB = 2**30
A100 = Device("cuda", 0, "NVIDIA A100", 80 * GIB)
T4 = Device("cuda", 1, "NVIDIA T4", 16 * GIB)
APPLE = Device("mps", 0, "Apple silicon", 16 * GIB)
CPU = Device("cpu", 0, "some CPU", None)


def having(*found: Device) -> Probe:
    return lambda _visible: found


@pytest.mark.parametrize(
    ("requested", "gpu", "found", "kind", "index"),
    [
        ("auto", 0, (A100, T4), "cuda", 0),
        ("auto", 1, (A100, T4), "cuda", 1),
        ("auto", 0, (APPLE, A100), "cuda", 0),
        ("auto", 0, (APPLE,), "mps", 0),
        ("auto", 0, (), "cpu", 0),
        ("auto", 3, (), "cpu", 0),
        ("cuda", 1, (A100, T4), "cuda", 1),
        ("mps", 0, (A100, APPLE), "mps", 0),
        ("cpu", 0, (A100, APPLE), "cpu", 0),
    ],
)
def test_choice(requested: Requested, gpu: int, found: tuple[Device, ...], kind: str, index: int) -> None:
    """Auto takes cuda, then mps, then cpu; a name takes that kind; the id chooses among GPUs."""
    device = detect(requested, gpu, None, having(*found))
    assert (device.kind, device.index) == (kind, index)


@pytest.mark.parametrize(
    ("requested", "gpu", "visible", "found", "said"),
    [
        ("cuda", 0, None, (), ("COMPUTE_DEVICE=cuda", "cpu:0", "driver", "COMPUTE_DEVICE=auto")),
        ("cuda", 0, "-1", (), ("CUDA_VISIBLE_DEVICES='-1'",)),
        ("cuda", 0, None, (APPLE,), ("mps:0 (Apple silicon, 16.0 GiB)",)),
        ("mps", 0, None, (A100,), ("COMPUTE_DEVICE=mps", "cuda:0 (NVIDIA A100, 80.0 GiB)", "macOS")),
        ("cuda", 2, None, (A100, T4), ("GPU_DEVICE_ID=2", "cuda:1 (NVIDIA T4, 16.0 GiB)")),
        ("auto", 2, None, (A100,), ("GPU_DEVICE_ID=2", "CUDA_VISIBLE_DEVICES")),
    ],
)
def test_what_is_not_there(
    requested: Requested, gpu: int, visible: str | None, found: tuple[Device, ...], said: tuple[str, ...]
) -> None:
    """The error names the variable and its value, what was found, and what to do; nothing is fallen back to."""
    with pytest.raises(DeviceUnavailable) as raised:
        detect(requested, gpu, visible, having(*found))
    assert [part for part in said if part not in raised.value.message] == []


def test_the_cpu_needs_no_probe() -> None:
    """Asked for the cpu, no driver is touched."""

    def never(_visible: str | None) -> list[Device]:
        raise AssertionError

    assert detect("cpu", 0, None, never).kind == "cpu"


def test_this_machine() -> None:
    """With the real probe, auto finds something here, and it can be described."""
    device = detect("auto", 0, None)
    assert device.name
    assert set(json.loads(json.dumps(device.describe()))) == {"kind", "index", "name", "memory_bytes"}


class NVMLError(Exception):
    pass


class FakeNVML:
    """pynvml as far as it is used, over (name, UUID, bytes or None) of each GPU."""

    NVMLError = NVMLError

    def __init__(self, *gpus: tuple[str, str, int | None], driver: bool = True) -> None:
        self.gpus, self.driver, self.open = gpus, driver, 0

    def nvmlInit(self) -> None:  # noqa: N802
        if not self.driver:
            raise NVMLError
        self.open += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open -= 1

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return len(self.gpus)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> tuple[str, str, int | None]:  # noqa: N802
        return self.gpus[index]

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> tuple[str, str, int | None]:  # noqa: N802
        if uuid != "MIG-7":
            raise NVMLError
        return ("a slice", uuid, 10 * GIB)

    def nvmlDeviceGetName(self, gpu: tuple[str, str, int | None]) -> bytes:  # noqa: N802
        return gpu[0].encode()

    def nvmlDeviceGetUUID(self, gpu: tuple[str, str, int | None]) -> str:  # noqa: N802
        return gpu[1]

    def nvmlDeviceGetMemoryInfo(self, gpu: tuple[str, str, int | None]) -> Any:  # noqa: N802
        if gpu[2] is None:
            raise NVMLError
        return SimpleNamespace(total=gpu[2])


FOUR = (("A", "GPU-aa", GIB), ("B", "GPU-ab", GIB), ("C", "GPU-c", GIB), ("D", "GPU-d", None))
LINUX = ("linux", "x86_64")


def only(**modules: Any) -> Callable[[str], Any]:
    """Return an import that finds these modules alone."""
    return modules.get


@pytest.mark.parametrize(
    ("visible", "names"),
    [
        (None, "ABCD"),
        ("", ""),
        ("-1", ""),
        ("0", "A"),
        ("2,0", "CA"),
        (" 1 , 3 ", "BD"),
        ("0,9,1", "A"),  # nothing from the invalid one on
        ("0,-1,1", "A"),
        ("GPU-d,0", "DA"),
        ("GPU-ab", "B"),
        ("GPU-a", ""),  # fits two
        ("GPU-x,0", ""),
        ("0,,1", "A"),
    ],
)
def test_cuda_visible_devices(visible: str | None, names: str) -> None:
    """NVML's GPUs are chosen and ordered as CUDA does it: by index, by UUID or a beginning of one that fits one."""
    nvml = FakeNVML(*FOUR)
    found = devices.accelerators(visible, only(pynvml=nvml), LINUX)
    assert [(device.name, device.index) for device in found] == [(name, index) for index, name in enumerate(names)]
    assert nvml.open == 0


@given(st.text(alphabet="0123456789,-GPUaMI \x00", max_size=20))
def test_any_cuda_visible_devices(visible: str) -> None:
    """Whatever the variable holds, there is an answer, and each GPU in it is one of the machine's."""
    found = devices.accelerators(visible, only(pynvml=FakeNVML(*FOUR)), LINUX)
    assert {device.name for device in found} <= set("ABCD") | {"a slice"}


def test_a_slice_of_a_gpu_can_be_named() -> None:
    """A MIG slice is found by its UUID; one that is not there is nothing, not an error."""
    (device,) = devices.accelerators("MIG-7", only(pynvml=FakeNVML(*FOUR)), LINUX)
    assert (device.name, device.memory) == ("a slice", 10 * GIB)
    assert devices.accelerators("MIG-8", only(pynvml=FakeNVML(*FOUR)), LINUX) == []


def test_memory_may_be_unknown() -> None:
    """A GPU that shares the machine's memory is found, its memory is None."""
    assert devices.accelerators("3", only(pynvml=FakeNVML(*FOUR)), LINUX) == [Device("cuda", 0, "D", None)]


@pytest.mark.parametrize("modules", [{}, {"pynvml": FakeNVML(driver=False)}])
def test_without_a_driver_there_is_no_gpu(modules: dict[str, Any]) -> None:
    """No NVML and no driver are the same: no CUDA device, no error."""
    assert devices.accelerators(None, only(**modules), LINUX) == []


def test_apple_silicon() -> None:
    """macOS on arm64 has mps; macOS on Intel and Linux on arm64 have not."""
    for system, kinds in ((("darwin", "arm64"), ["mps"]), (("darwin", "x86_64"), []), (("linux", "aarch64"), [])):
        assert [device.kind for device in devices.accelerators(None, only(), system)] == kinds


def fake_torch(*names: str, mps: bool = False) -> Any:
    gpus = [SimpleNamespace(name=name, total_memory=GIB) for name in names]
    cuda = SimpleNamespace(
        is_available=lambda: bool(gpus), device_count=lambda: len(gpus), get_device_properties=lambda index: gpus[index]
    )
    return SimpleNamespace(cuda=cuda, backends=SimpleNamespace(mps=SimpleNamespace(is_available=lambda: mps)))


def test_torch_is_asked_first() -> None:
    """Where torch is installed it tells, and NVML is left alone."""
    torch = fake_torch("A", "B", mps=True)
    found = devices.accelerators(None, only(torch=torch, pynvml=FakeNVML(*FOUR)), LINUX)
    assert [(device.kind, device.index, device.name) for device in found] == [
        ("cuda", 0, "A"), ("cuda", 1, "B"), ("mps", 0, "Apple silicon"),
    ]  # fmt: skip
    assert devices.accelerators("", only(torch=torch), LINUX)[0].kind == "mps"
    assert devices.accelerators(None, only(torch=fake_torch()), LINUX) == []


def test_torch_is_not_imported_where_it_is_not_installed() -> None:
    """Detection does not import what is not there, and nothing at all for the cpu."""
    assert devices._load_installed("no_such_module_anywhere") is None
    assert devices._load_installed("json") is sys.modules["json"]


def test_what_engines_are_told() -> None:
    """The cpu keeps every layer off the GPU; cuda names its GPU; how many layers is left to the engine."""
    assert devices.ollama_options(CPU, 4) == {"num_thread": 4, "num_gpu": 0}
    assert devices.ollama_options(T4, 4) == {"num_thread": 4, "main_gpu": 1}
    assert devices.ollama_options(APPLE, 4) == {"num_thread": 4}
    assert devices.llama_cpp_options(CPU, 4) == LlamaCppOptions(n_gpu_layers=0, main_gpu=0, n_threads=4)
    assert devices.llama_cpp_options(T4, 4) == LlamaCppOptions(n_gpu_layers=-1, main_gpu=1, n_threads=4)
    assert devices.llama_cpp_options(APPLE, 4) == LlamaCppOptions(n_gpu_layers=-1, main_gpu=0, n_threads=4)


def test_threads() -> None:
    """The default is the physical cores; a wish holds up to the logical cores; never less than one."""
    available = devices.available_cores()
    assert 1 <= devices.physical_cores() <= available
    assert devices.threads(None) == devices.physical_cores()
    assert devices.threads(1) == 1
    assert devices.threads(10_000) == available


def machine(root: Path, cgroup: str, files: dict[str, str]) -> Path:
    """Lay out /proc and /sys under `root`: files by path."""
    for name, text in {"proc/self/cgroup": cgroup, **files}.items():
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return root


@pytest.mark.parametrize(
    ("cgroup", "files", "quota"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/a/b\n", {"a/cpu.max": "50000 100000", "a/b/cpu.max": "200000 100000"}, 0.5),
        ("0::/docker/elsewhere\n", {"cpu.max": "300000 100000"}, 3),
        ("4:cpu,cpuacct:/x\n1:memory:/y\n", {
            "cpu,cpuacct/x/cpu.cfs_quota_us": "250000", "cpu,cpuacct/x/cpu.cfs_period_us": "100000",
        }, 2.5),
        ("4:cpu:/x\n", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ("4:cpuacct,cpu:/x\n", {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"}, 1),
        ("nonsense", {"cpu.max": "many few"}, None),
        ("", {}, None),
    ],
)  # fmt: skip
def test_container_quota(tmp_path: Path, cgroup: str, files: dict[str, str], quota: float | None) -> None:
    """The tightest limit of version 1 and 2 control groups around the process holds; none is None."""
    root = machine(tmp_path, cgroup, {f"sys/fs/cgroup/{name}": text for name, text in files.items()})
    assert devices._cpu_quota(root) == quota


@pytest.mark.parametrize(("limit", "cores"), [("10000 100000", 1), ("100000 100000", 1), ("99900000 100000", None)])
def test_a_quota_is_rounded_down_to_whole_cores(tmp_path: Path, limit: str, cores: int | None) -> None:
    """A tenth of a core is one thread, and a quota beyond the machine adds none."""
    root = machine(tmp_path, "0::/\n", {"sys/fs/cgroup/cpu.max": limit})
    assert devices.available_cores(root) == (cores or devices.available_cores(tmp_path / "nothing"))
