"""The engines, and the one place that names them: `open_engine`.

An engine's module is imported when it is opened: the libraries of the others would only make the start slow.
"""

import asyncio
import contextlib
import re
from collections.abc import AsyncGenerator, Iterable
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING

import structlog

from llm_service.config import Settings
from llm_service.devices import Device, detect, llama_cpp_options, ollama_options, threads
from llm_service.engine_spec import EngineSpec
from llm_service.engines.base import Engine
from llm_service.engines.opened import COUNTING_ANSWERS, OpenedEngine
from llm_service.errors import ConfigurationError, EngineError, EngineUnavailable, EngineUnreachable

if TYPE_CHECKING:
    from llm_service.engines.llama_cpp import LlamaCppEngine
    from llm_service.engines.ollama import OllamaEngine

__all__ = ["OpenedEngine", "open_engine"]

# How often the log tells of a download that runs.
PULL_LOG_SECONDS = 5.0

_log = structlog.get_logger(__name__)


async def open_engine(settings: Settings) -> OpenedEngine:
    """Open the engines that ENGINES names, else the one of LLM_PROVIDER.

    `auto` takes Ollama if it has the model, else the embedded one.

    Raises:
        StartupError: the device or the engine cannot be had; the message says what to do.
    """
    device = await asyncio.to_thread(
        detect, settings.compute_device, settings.gpu_device_id, settings.cuda_visible_devices
    )
    match "several" if settings.engines else settings.llm_provider:
        case "several":
            opened = await _open_several(settings, device)
        case "auto":
            opened = await _open_auto(settings, device)
        case "ollama":
            opened = await _open_ollama(settings, device, "LLM_PROVIDER names it")
        case "openai" | "vllm":
            opened = await _open_openai(settings, device)
        case "llama_cpp":
            opened = await _open_embedded(settings, device, "LLM_PROVIDER names it")
        case "scripted":
            opened = await _open_scripted(settings, device)
    _log.info(
        "engine_opened",
        provider=opened.provider,
        model=opened.model,
        reason=opened.reason,
        device=str(device),
        context_window=opened.context_window,
    )
    return opened


async def _open_auto(settings: Settings, device: Device) -> OpenedEngine:
    if settings.embedded_model_named:
        return await _open_embedded(settings, device, "LLM_MODEL is a GGUF file")
    try:
        return await _open_ollama(settings, device, "it has the model")
    except EngineUnavailable as unavailable:
        why = unavailable.message
        if settings.llm_model_given:
            _log.warning("model_not_there", model=settings.llm_model, reason=why)
            why += f"; the embedded engine has its own model instead of {settings.llm_model}"
    try:
        return await _open_embedded(settings, device, why)
    except EngineUnavailable as error:
        raise EngineUnavailable(f"{why}; and the embedded engine cannot be had: {error.message}") from None


async def _open_ollama(settings: Settings, device: Device, reason: str) -> OpenedEngine:
    engine = _ollama(settings, device)
    model, url = settings.llm_model, _without_credentials(settings.ollama_base_url)
    async with _closed_on_failure(engine):
        models = await _listed(
            engine, f"no Ollama answers at {url}; start it, or set OLLAMA_BASE_URL", f"the Ollama at {url}"
        )
        if not _has(models, model):
            if not settings.ollama_pull:
                raise EngineUnavailable(f"the Ollama at {url} has no model {model!r}; run: ollama pull {model}")
            await _pull(engine, model)
            models.append(model)
        return await _loaded(engine, settings, device, reason, model=model, available=models)


async def _pull(engine: "OllamaEngine", model: str) -> None:
    """Have Ollama download the model, with a log line now and then.

    Raises:
        EngineUnavailable: it could not be downloaded.
    """
    said_at = 0.0
    try:
        async for progress in engine.pull(model):
            if monotonic() - said_at > PULL_LOG_SECONDS:
                said_at = monotonic()
                percent = round(100 * (progress.completed or 0) / progress.total) if progress.total else None
                _log.info("pulling_model", model=model, status=progress.status, percent=percent)
    except EngineError as error:
        raise EngineUnavailable(f"the model {model!r} could not be pulled: {error.message}") from None


async def _open_openai(settings: Settings, device: Device) -> OpenedEngine:
    engine = _openai(settings, settings.llm_provider)
    model, url = settings.llm_model, _without_credentials(settings.openai_base_url)
    async with _closed_on_failure(engine):
        models = await _listed(
            engine, f"no OpenAI-compatible API answers at {url}; start it, or set OPENAI_BASE_URL", f"the API at {url}"
        )
        if model not in models:
            offered = ", ".join(models[:10]) or "none"
            raise EngineUnavailable(f"the API at {url} has no model {model!r}; set LLM_MODEL to one it has: {offered}")
        return await _loaded(engine, settings, device, "LLM_PROVIDER names it", model=model, available=models)


async def _open_embedded(settings: Settings, device: Device, reason: str) -> OpenedEngine:
    from llm_service.engines.model_files import BUNDLED, BUNDLED_TEMPERATURE, locate

    if settings.embedded_model_named:
        name = settings.llm_model
    elif settings.llm_provider == "llama_cpp" and settings.llm_model_given:
        raise ConfigurationError(
            f"LLM_MODEL={settings.llm_model}: the embedded engine takes a path to a .gguf file or "
            "owner/repo:file.gguf on Hugging Face; leave LLM_MODEL empty for the model it comes with"
        )
    else:
        name = BUNDLED
    path = await asyncio.to_thread(locate, name, settings.model_path)
    engine = await _llama_cpp(settings, device, path)
    async with _closed_on_failure(engine):
        opened = await _loaded(engine, settings, device, reason, model=path.stem, available=[path.stem])
    return replace(opened, temperature=BUNDLED_TEMPERATURE) if name == BUNDLED else opened


async def _open_scripted(settings: Settings, device: Device) -> OpenedEngine:
    engine = _scripted(settings, ("scripted",))
    return await _loaded(engine, settings, device, "LLM_PROVIDER names it", model="scripted", available=["scripted"])


async def _open_several(settings: Settings, device: Device) -> OpenedEngine:
    from llm_service.engines.several import open_several

    async def make(spec: EngineSpec) -> Engine:
        return await _made(spec, settings, device)

    return await open_several(settings, device, make)


async def _made(spec: EngineSpec, settings: Settings, device: Device) -> Engine:
    """Return one of several engines; an embedded one is loaded by then, of others nothing is known yet."""
    wanted = settings.model_copy(
        update={
            "ollama_base_url": spec.url,
            "ollama_timeout": spec.timeout or settings.ollama_timeout,
            "openai_base_url": spec.url,
            "openai_api_key": spec.api_key,
            "openai_timeout": spec.timeout or settings.openai_timeout,
        }
    )
    match spec.provider:
        case "ollama":
            return _ollama(wanted, device)
        case "openai" | "vllm":
            return _openai(wanted, spec.provider)
        case "llama_cpp":
            from llm_service.engines.model_files import BUNDLED, locate

            name = settings.llm_model if settings.embedded_model_named else BUNDLED
            return await _llama_cpp(wanted, device, await asyncio.to_thread(locate, name, settings.model_path))
        case "scripted":
            from llm_service.engines.several import default_model

            return _scripted(settings, spec.models.values() or (default_model(settings), *settings.allowed_models))


def _ollama(settings: Settings, device: Device) -> "OllamaEngine":
    from llm_service.engines.ollama import OllamaEngine

    return OllamaEngine(
        settings.ollama_base_url,
        keep_alive=settings.ollama_keep_alive,
        options=_ollama_options(settings, device),
        connect_timeout=settings.connect_timeout,
        read_timeout=settings.ollama_timeout,
    )


def _openai(settings: Settings, name: str) -> Engine:
    from llm_service.engines.openai import OpenAIEngine

    return OpenAIEngine(
        settings.openai_base_url,
        name=name,
        api_key=settings.openai_api_key.get_secret_value(),
        connect_timeout=settings.connect_timeout,
        read_timeout=settings.openai_timeout,
    )


async def _llama_cpp(settings: Settings, device: Device, path: Path) -> "LlamaCppEngine":
    from llm_service.engines.llama_cpp import LlamaCppEngine

    return await LlamaCppEngine.open(
        path,
        options=llama_cpp_options(device, threads(settings.num_threads)),
        context_window=settings.default_context_window,
        parallel=settings.llama_cpp_parallel,
        read_timeout=settings.openai_timeout,
    )


def _scripted(settings: Settings, models: Iterable[str]) -> Engine:
    from llm_service.engines.scripted import ScriptedEngine

    return ScriptedEngine(tokens_per_second=settings.scripted_tokens_per_second, models=models)


async def _listed(engine: Engine, nobody: str, engine_there: str) -> list[str]:
    """Return the engine's models; `nobody` and `engine_there` begin what is said when there are none to be had."""
    try:
        return await engine.models()
    except EngineUnreachable:
        raise EngineUnavailable(nobody) from None
    except EngineError as error:
        raise EngineUnavailable(f"{engine_there} does not list its models: {error.message}") from None


@contextlib.asynccontextmanager
async def _closed_on_failure(engine: Engine) -> AsyncGenerator[None, None]:
    try:
        yield
    except BaseException:
        await engine.aclose()
        raise


async def _loaded(
    engine: Engine, settings: Settings, device: Device, reason: str, *, model: str, available: list[str]
) -> OpenedEngine:
    """Have the model loaded, so that nobody's first word waits for it, and learn its window.

    Raises:
        EngineUnavailable: it could not be loaded.
    """
    try:
        limit = await engine.context_window(model)
        window = settings.default_context_window if limit is None else min(settings.default_context_window, limit)
        if settings.preload:
            await engine.load(model, window)
    except EngineError as error:
        raise EngineUnavailable(f"the model {model!r} could not be loaded: {error.message}") from None
    return OpenedEngine(
        engine=engine,
        provider=engine.name,
        model=model,
        models=frozenset({model, *_offered(settings.allowed_models, available, engine.name)}),
        context_window=window,
        device=device,
        reason=reason,
        # Ollama and the embedded one are told the window.
        window_enforced=engine.name in ("ollama", "llama_cpp") or (limit is not None and limit <= window),
        answer_in_window=engine.name in COUNTING_ANSWERS,
        counts_tokens=await engine.count_tokens(model, "a") is not None,
    )


def _ollama_options(settings: Settings, device: Device) -> dict[str, int]:
    """Return what Ollama is told of the device: what somebody chose, since it may run on another machine.

    Left to itself, Ollama takes its own machine's GPU and cores.
    """
    options = ollama_options(device, threads(settings.num_threads))
    if settings.compute_device == "auto":
        options.pop("num_gpu", None)
        options.pop("main_gpu", None)
    if settings.num_threads is None:
        options.pop("num_thread", None)
    return options


def _offered(allowed: tuple[str, ...], available: list[str], provider: str) -> list[str]:
    """Return the models of ALLOWED_MODELS that are there: a session must not choose one that cannot answer."""
    missing = [model for model in allowed if not _has(available, model)]
    if missing:
        _log.warning("allowed_models_missing", models=missing, provider=provider)
    return [model for model in allowed if model not in missing]


def _has(models: list[str], model: str) -> bool:
    # Ollama adds the tag "latest" to a name without one.
    return model in models or f"{model}:latest" in models


def _without_credentials(url: str) -> str:
    # What is said of an engine is shown in /health and in the log.
    return re.sub(r"//[^/]*@", "//", url)
