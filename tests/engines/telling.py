"""An engine that tells how long it read."""

import msgspec

from llm_service.engines.scripted import ScriptedEngine
from llm_service.generation import Finish, GenerationRequest, Sink


class TellingEngine(ScriptedEngine):
    """A scripted one that says of each prompt that it took half a second, as Ollama would."""

    async def generate(self, request: GenerationRequest, sink: Sink) -> Finish:
        finish = await super().generate(request, sink)
        assert finish.usage is not None
        return msgspec.structs.replace(finish, usage=msgspec.structs.replace(finish.usage, prompt_seconds=0.5))
