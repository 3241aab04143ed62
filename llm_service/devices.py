"""Where the engines compute: which device there is, which was asked for, and what it means to each engine."""

import importlib
import importlib.util
import os
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import psutil

from llm_service.errors import DeviceUnavailable

Kind = Literal["cuda", "mps", "cpu"]
Requested = Literal["auto", "cuda", "cpu", "mps"]


@dataclass(frozen=True, slots=True)
class Device:
    """One device; `index` counts as CUDA counts (behind CUDA_VISIBLE_DEVICES), `memory` is in bytes.

    `memory` is None where nothing tells; that of mps and cpu is the machine's, shared with all else on it.
    """

    kind: Kind
    index: int
    name: str
    memory: int | None

    def __str__(self) -> str:
        memory = "" if self.memory is None else f", {self.memory / 2**30:.1f} GiB"
        return f"{self.kind}:{self.index} ({self.name}{memory})"

    def describe(self) -> dict[str, str | int | None]:
        """Return the fields for a log line or /info: JSON values under names with units."""
        return {"kind": self.kind, "index": self.index, "name": self.name, "memory_bytes": self.memory}


@dataclass(frozen=True, slots=True)
class LlamaCppOptions:
    """What llama.cpp is told: `n_gpu_layers` 0 keeps the model off the GPU, -1 takes as many as fit."""

    n_gpu_layers: int
    main_gpu: int
    n_threads: int


Probe = Callable[[str | None], Sequence[Device]]
"""Takes CUDA_VISIBLE_DEVICES (None: not set), returns the GPUs that may be used, in CUDA's order."""


def detect(
    requested: Requested, gpu_device_id: int, cuda_visible_devices: str | None, probe: Probe | None = None
) -> Device:
    """Return the device to compute on; `auto` takes cuda, then mps, then cpu.

    `cuda_visible_devices` is the process's own CUDA_VISIBLE_DEVICES, unchanged: "" hides every GPU, None is
    "not set". May take seconds where torch is installed, hence not for an event loop.

    Raises:
        DeviceUnavailable: what was asked for is not here; the message says what is, and what to do.
    """
    if requested == "cpu":
        return _cpu()
    found = list((probe or accelerators)(cuda_visible_devices))
    gpus = [device for device in found if device.kind == "cuda"]
    if requested in ("auto", "cuda") and gpus:
        if gpu_device_id < len(gpus):
            return gpus[gpu_device_id]
        raise DeviceUnavailable(
            f"GPU_DEVICE_ID={gpu_device_id} was asked for, but the visible GPUs are {_list(gpus)};"
            " choose one of their indexes, or change CUDA_VISIBLE_DEVICES"
        )
    for device in found:
        if device.kind == "mps" and requested in ("auto", "mps"):
            return device
    if requested == "auto":
        return _cpu()
    hidden = "" if cuda_visible_devices is None else f" with CUDA_VISIBLE_DEVICES={cuda_visible_devices[:200]!r}"
    advice = (
        "install NVIDIA's driver (a container needs its GPUs passed in, as by docker run --gpus all)"
        if requested == "cuda"
        else "it needs macOS on Apple silicon, outside of a container"
    )
    raise DeviceUnavailable(
        f"COMPUTE_DEVICE={requested} was asked for, but only {_list([*found, _cpu()])} was found{hidden};"
        f" {advice}, or set COMPUTE_DEVICE=auto"
    )


def ollama_options(device: Device, threads: int) -> dict[str, int]:
    """Return the `options` of Ollama's API. Without num_gpu Ollama puts on the GPU what fits."""
    options = {"num_thread": threads}
    if device.kind == "cuda":
        options["main_gpu"] = device.index
    elif device.kind == "cpu":
        options["num_gpu"] = 0
    return options


def llama_cpp_options(device: Device, threads: int) -> LlamaCppOptions:
    """Return what the embedded llama.cpp is told of the device."""
    # -1, not a large number: given a number of layers llama.cpp no longer checks whether they fit.
    layers = 0 if device.kind == "cpu" else -1
    return LlamaCppOptions(n_gpu_layers=layers, main_gpu=device.index, n_threads=threads)


def threads(requested: int | None) -> int:
    """Return how many CPU threads an engine gets: as many as asked for or, for None, one per physical core.

    Never more than the logical cores this process may use: beyond them llama.cpp's threads wait for each other.
    """
    return physical_cores() if requested is None else max(1, min(requested, available_cores()))


def physical_cores() -> int:
    """Return how many physical cores this process may use, at least 1."""
    available = available_cores()
    return min(psutil.cpu_count(logical=False) or available, available)


def available_cores(root: Path = Path("/")) -> int:
    """Return how many logical cores this process may use, at least 1: affinity and container quota count.

    A quota of 2.5 cores is 2. `root` is where /proc and /sys are.
    """
    affinity = getattr(os, "sched_getaffinity", None)  # Linux alone has it
    cores = len(affinity(0)) if affinity else os.cpu_count() or 1
    quota = _cpu_quota(root)
    return cores if quota is None else max(1, min(cores, int(quota)))


def _cpu_quota(root: Path) -> float | None:
    """Return the cores that the control groups around this process leave it; None without a limit."""
    limits: list[float] = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        controllers, _, path = line.partition(":")[2].partition(
            ":"
        )  # version 2: "0::/group", 1: "4:cpu,cpuacct:/group"
        if controllers and "cpu" not in controllers.split(","):
            continue
        # A limit of any group around ours holds. In a container the path may be the host's and not be there:
        # then the mount itself is our group.
        group = Path(path.lstrip("/"))
        for mount in {root / "sys/fs/cgroup" / name for name in (controllers, controllers and "cpu")}:
            limits += [limit for part in (group, *group.parents) if (limit := _group_quota(mount / part))]
    return min(limits, default=None)


def _group_quota(group: Path) -> float | None:
    quota, _, period = _read(group / "cpu.max").strip().partition(" ")  # version 2: "150000 100000" or "max 100000"
    if not quota:
        quota, period = _read(group / "cpu.cfs_quota_us").strip(), _read(group / "cpu.cfs_period_us").strip()
    if not (quota.isdigit() and period.isdigit() and int(quota) and int(period)):  # "max" and "-1": no limit
        return None
    return int(quota) / int(period)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def accelerators(
    cuda_visible_devices: str | None,
    load: Callable[[str], Any] | None = None,
    system: tuple[str, str] = (sys.platform, platform.machine()),
) -> list[Device]:
    """Return the GPUs of this machine: torch tells if it is installed, else NVIDIA's driver and the platform.

    `load` imports a module or returns None where it is not installed.
    """
    load = load or _load_installed
    hidden = cuda_visible_devices is not None and cuda_visible_devices.strip() in ("", "-1")
    torch = load("torch")
    if torch is not None:
        return ([] if hidden else _ask_torch_for_cuda(torch)) + (_mps() if torch.backends.mps.is_available() else [])
    nvml = None if hidden else load("pynvml")
    found = _ask_nvml(nvml, cuda_visible_devices) if nvml is not None else []
    return found + (_mps() if system == ("darwin", "arm64") else [])


def _load_installed(module: str) -> Any:
    # Looking is instant; importing torch takes seconds and is done only where it is there.
    return importlib.import_module(module) if importlib.util.find_spec(module) else None


def _ask_torch_for_cuda(torch: Any) -> list[Device]:
    # torch reads CUDA_VISIBLE_DEVICES itself, so these are the visible ones.
    if not torch.cuda.is_available():
        return []
    known = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    return [Device("cuda", index, str(gpu.name), int(gpu.total_memory)) for index, gpu in enumerate(known)]


def _ask_nvml(nvml: Any, visible: str | None) -> list[Device]:
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:  # no driver, no library, no permission: no CUDA device
        return []
    try:
        return [_nvml_device(nvml, handle, index) for index, handle in enumerate(_visible_handles(nvml, visible))]
    except nvml.NVMLError:  # a GPU that fell off the bus can't be computed on
        return []
    finally:
        nvml.nvmlShutdown()


def _visible_handles(nvml: Any, visible: str | None) -> list[Any]:
    handles = [nvml.nvmlDeviceGetHandleByIndex(index) for index in range(nvml.nvmlDeviceGetCount())]
    if visible is None:
        return handles
    names = [_text(nvml.nvmlDeviceGetUUID(handle)) for handle in handles]
    chosen: list[Any] = []
    for entry in (part.strip() for part in visible.split(",")):
        if entry.isdigit():
            matching = handles[int(entry) : int(entry) + 1]
        elif entry.startswith("MIG-"):
            matching = [nvml.nvmlDeviceGetHandleByUUID(entry)]
        else:
            matching = [h for h, name in zip(handles, names, strict=True) if entry and name.startswith(entry)]
        if len(matching) != 1:
            break  # as CUDA does: nothing counts from the first entry on that it can't place
        chosen += matching
    return chosen


def _nvml_device(nvml: Any, handle: Any, index: int) -> Device:
    try:
        memory = int(nvml.nvmlDeviceGetMemoryInfo(handle).total)
    except nvml.NVMLError:  # GPUs that share the machine's memory (Jetson, GB10) don't tell
        memory = None
    return Device("cuda", index, _text(nvml.nvmlDeviceGetName(handle)), memory)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value


def _mps() -> list[Device]:
    return [Device("mps", 0, "Apple silicon", psutil.virtual_memory().total)]


def _cpu() -> Device:
    models = [line for line in _read(Path("/proc/cpuinfo")).splitlines() if line.startswith("model name")]
    name = models[0].partition(":")[2].strip() if models else platform.processor() or platform.machine()
    return Device("cpu", 0, name, psutil.virtual_memory().total)


def _list(devices: Sequence[Device]) -> str:
    return ", ".join(map(str, devices))
