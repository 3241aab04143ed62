"""llama.cpp inside this process: its server on a loopback port, spoken to like any other.

One streaming path serves both: what stops an answer on a distant llama-server stops it here.
"""

import asyncio
import secrets
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec

from llm_service.devices import LlamaCppOptions
from llm_service.engines.model_files import checked
from llm_service.engines.openai import OpenAIEngine
from llm_service.engines.refusals import UNREADABLE
from llm_service.errors import EngineUnavailable, FastTalkError, GenerationFailed, ModelNotFound
from llm_service.generation import Finish, GenerationRequest, Sink

# llama.cpp stops between two batches of a prompt, so a batch is how long a cancelled prompt runs on.
# On two cores 128 tokens take 0.3 s, and a prompt as a whole no longer than in batches of 512.
_BATCH_ON_CPU = 128
_BATCH_ON_GPU = 512
# llama.cpp's default for prompts that lost their slot is 8 GiB of memory.
_PROMPT_CACHE_MIB = 1024
# While it waits for a token it looks for a closing server this often, in seconds; its default is 30.
_PING_SECONDS = 1


class _Slot(msgspec.Struct):
    n_ctx: int
    is_processing: bool


class LlamaCppEngine:
    """One model in a llama.cpp of our own. Made by `open`."""

    def __init__(self, server: Any, address: str, api: OpenAIEngine, model: str, window: int) -> None:
        # The list is the one owner, so that the server can be destroyed in a thread of our choice.
        self._servers = [server]
        self._address = address
        self._api = api
        self._model = model
        self._window = window

    @classmethod
    async def open(
        cls,
        path: Path,
        *,
        context_window: int,
        parallel: int = 2,
        options: LlamaCppOptions,
        connect_timeout: float = 5.0,
        read_timeout: float = 600.0,
    ) -> "LlamaCppEngine":
        """Load a GGUF file and start to serve it; its name is the file's without the ending.

        `context_window` is in tokens and for each of the `parallel` responses; a model that was trained for
        less gets less. Times are in seconds. Loading holds Python's global lock: nothing else runs in this
        process until it is done.

        Raises:
            EngineUnavailable: xllamacpp is missing, or the file is and can't be loaded.
        """
        model, key = path.stem, secrets.token_urlsafe(32)
        xllamacpp = _import_xllamacpp()
        await asyncio.to_thread(checked, path)
        params = xllamacpp.CommonParams()
        _configure_model(params, path, model, context_window, parallel)
        _configure_device(params, options)
        _configure_server(params, key)
        server = await asyncio.to_thread(_start, xllamacpp, params, path)
        address: str = server.listening_address
        api = OpenAIEngine(
            f"{address}/v1",
            api_key=key,
            connect_timeout=connect_timeout,
            read_timeout=read_timeout,
            name="llama_cpp",
            # llama.cpp notices that its client has left only when it writes, and without progress it writes
            # nothing until the whole prompt is evaluated.
            extra={"return_progress": True},
        )
        engine = cls(server, address, api, model, context_window)
        del server
        try:
            # Also needed for closing: a server that is destroyed before its loop runs never comes to an end.
            engine._window = min(slot.n_ctx for slot in await engine._slots())
        except FastTalkError:
            await engine.aclose()
            raise EngineUnavailable(f"llama.cpp loaded '{path}' but does not answer.") from None
        return engine

    @property
    def name(self) -> str:
        """The provider's name, as in LLM_PROVIDER."""
        return "llama_cpp"

    @property
    def model(self) -> str:
        """The name of the one model."""
        return self._model

    @property
    def address(self) -> str:
        """The URL of the server inside; without the key, which never leaves this object, it refuses."""
        return self._address

    async def generate(self, request: GenerationRequest, sink: Sink) -> Finish:
        """Hand the answer to `sink` as it comes; cancelling frees the slot.

        Raises:
            ContextOverflow: the prompt is longer than the window; nothing was generated.
            EngineError: anything else.
        """
        self._check(request.model)
        return await self._api.generate(request, sink)

    async def continues(self, request: GenerationRequest) -> bool:
        """Whether the model's template leaves the request's last message open."""
        self._check(request.model)
        return await self._api.continues(request)

    async def load(self, model: str, context_window: int) -> None:  # noqa: ARG002
        """Return: the model has been in memory, warmed up, since `open`.

        Raises:
            ModelNotFound: the name is another model's.
        """
        self._check(model)

    async def ping(self) -> None:
        """Return if the server inside answers."""
        await self._api.ping()

    async def models(self) -> list[str]:
        """The one model's name."""
        return [self._model]

    async def context_window(self, model: str) -> int | None:
        """The window of each response, in tokens; None for a model that is not the one here."""
        return self._window if model == self._model else None

    async def count_tokens(self, model: str, text: str) -> int | None:
        """Tokens of this text alone; None for a model that is not the one here."""
        return await self._api.count_tokens(model, text) if model == self._model else None

    async def busy_slots(self) -> int:
        """How many responses llama.cpp works on at this moment, wanted or not."""
        return sum(slot.is_processing for slot in await self._slots())

    async def aclose(self) -> None:
        """Abort what runs, stop the server and free the model. A second call does nothing."""
        # Connections first: a server with open streams waits for them.
        await self._api.aclose()
        await asyncio.to_thread(self._servers.clear)

    async def _slots(self) -> list[_Slot]:
        document = await self._api.document("/slots")
        try:
            return msgspec.json.decode(document, type=list[_Slot])
        except UNREADABLE:
            raise GenerationFailed("llama.cpp sent a list of slots that can't be read.") from None

    def _check(self, model: str) -> None:
        if model != self._model:
            raise ModelNotFound(f"The embedded engine has no model '{model}', only '{self._model}'.")


def _import_xllamacpp() -> ModuleType:
    try:
        import xllamacpp
    except ImportError:
        raise EngineUnavailable(
            "The embedded engine is not installed: pip install 'fasttalk-llm-service[embedded]'"
        ) from None
    module: ModuleType = xllamacpp
    return module


def _configure_model(params: Any, path: Path, model: str, window: int, parallel: int) -> None:
    params.model.path = str(path)
    params.model_alias = {model}
    params.n_parallel = parallel
    # llama.cpp divides its context among the slots.
    params.n_ctx = window * parallel
    params.ctx_shift = False
    params.cache_ram_mib = _PROMPT_CACHE_MIB
    params.warmup = True


def _configure_device(params: Any, options: LlamaCppOptions) -> None:
    params.n_gpu_layers = options.n_gpu_layers
    params.main_gpu = options.main_gpu
    params.n_batch = params.n_ubatch = _BATCH_ON_GPU if options.n_gpu_layers else _BATCH_ON_CPU
    params.cpuparams.n_threads = options.n_threads
    params.cpuparams_batch.n_threads = options.n_threads


def _configure_server(params: Any, key: str) -> None:
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    # Other users of the machine reach a loopback port, too.
    params.api_keys = [key]
    params.ui = False
    params.endpoint_slots = True
    params.sse_ping_interval = _PING_SECONDS
    # llama.cpp logs to standard error and there is no other way to keep what users say out of it.
    params.verbosity = 0


def _start(xllamacpp: ModuleType, params: Any, path: Path) -> Any:
    try:
        return xllamacpp.Server(params)
    except RuntimeError:
        # It says no more than that it failed; why went to the log that is switched off.
        raise EngineUnavailable(
            f"llama.cpp can't load '{path}': the file is broken, of a kind this llama.cpp does not know, "
            "or too large for the memory."
        ) from None
