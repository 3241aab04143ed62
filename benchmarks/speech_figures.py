"""Of `python -m benchmarks speech`: from what a client heard to figures, and how they are shown."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.paced_tts import CHARACTERS_PER_SECOND, PIECE
from benchmarks.report import aligned, pyplot
from benchmarks.speech_client import Heard, Sound

# Seconds of nothing that nobody takes for a gap.
_UNHEARD = 0.02


class Gap(msgspec.Struct):
    """Silence that no voice made: all sound that had come was heard by `at`, the next came so many `seconds` later."""

    at: float
    seconds: float


class Row(msgspec.Struct):
    """One answer of an engine, spoken by a TTS. `synthesis` is in seconds a second of sound, as the service counts it.

    `note` says why there is no answer.
    """

    engine: str
    voice: str
    heard: Heard | None = None
    synthesis: float = 0.0
    note: str = ""
    failed: bool = False


class Figures(msgspec.Struct):
    """What a row comes to, in seconds since asking where it is a moment; `sound` is the length of all of it."""

    first_text: float
    first_chunk: float
    first_sound: float
    text_over: float
    sound_over: float
    words: int
    chunks: int
    sound: float
    gaps: list[Gap]
    silence: float


def gaps(sounds: Sequence[Sound]) -> list[Gap]:
    """Return when a player that plays each piece as it comes, or behind the one before, has nothing to play."""
    found: list[Gap] = []
    until = sounds[0].at if sounds else 0.0
    for sound in sounds:
        if sound.at - until > _UNHEARD:
            found.append(Gap(until, sound.at - until))
        until = max(until, sound.at) + sound.seconds
    return found


def played(sounds: Sequence[Sound]) -> list[tuple[float, float]]:
    """Return when the player begins and ends each piece."""
    spans: list[tuple[float, float]] = []
    until = 0.0
    for sound in sounds:
        begin = max(until, sound.at)
        until = begin + sound.seconds
        spans.append((begin, until))
    return spans


def positions(heard: Heard) -> list[float]:
    """Return how many characters of the answer each piece of sound, with those before it, stands for."""
    spans = {cut.id: (cut.start, cut.end) for cut in heard.cuts}
    lasts: dict[int, float] = {}
    for sound in heard.sounds:
        lasts[sound.chunk] = lasts.get(sound.chunk, 0.0) + sound.seconds
    said: dict[int, float] = {}
    reached = []
    for sound in heard.sounds:
        said[sound.chunk] = said.get(sound.chunk, 0.0) + sound.seconds
        start, end = spans[sound.chunk]
        reached.append(start + (end - start) * said[sound.chunk] / lasts[sound.chunk])
    return reached


def figures(heard: Heard) -> Figures:
    """Return the figures of an answer that was heard to its end."""
    assert heard.over is not None
    found = gaps(heard.sounds)
    spoken = [cut for cut in heard.cuts if cut.text]
    return Figures(
        first_text=heard.written[0][0],
        first_chunk=spoken[0].at,
        first_sound=heard.sounds[0].at,
        text_over=heard.over,
        sound_over=played(heard.sounds)[-1][1],
        words=len(heard.text.split()),
        chunks=len(spoken),
        sound=sum(sound.seconds for sound in heard.sounds),
        gaps=found,
        silence=sum(gap.seconds for gap in found),
    )


_COLUMNS = (
    "engine", "TTS", "words", "first word s", "first chunk s", "first sound s", "text over s", "sound over s",
    "chunks", "sound s", "gaps", "silence s", "longest gap s", "synthesis s per s of sound",
)  # fmt: skip


def table(rows: Sequence[Row]) -> str:
    """Return the table as Markdown, which reads well in a terminal, too."""
    text = aligned([_COLUMNS, *map(_cells, rows)])
    text += [f"\n{row.engine}, {row.voice}: {row.note}" for row in rows if row.note]
    return "\n".join(text)


def _cells(row: Row) -> tuple[str, ...]:
    if row.heard is None:
        return (row.engine, row.voice, *["-"] * (len(_COLUMNS) - 2))
    found = figures(row.heard)
    moments = (found.first_text, found.first_chunk, found.first_sound, found.text_over, found.sound_over)
    return (
        row.engine,
        row.voice,
        f"{found.words}",
        *(f"{moment:.2f}" for moment in moments),
        f"{found.chunks}",
        f"{found.sound:.1f}",
        f"{len(found.gaps)}",
        f"{found.silence:.1f}",
        f"{max((gap.seconds for gap in found.gaps), default=0.0):.2f}",
        f"{row.synthesis:.2f}",
    )


_NOTES = f"""\
Moments are seconds since the user's message was sent, on the client's clock. Each row has a service of its own,
`python main.py websocket` with its defaults, and is the first answer of its session; the client takes raw samples
(`"format": "pcm", "binary": true`) and plays each piece as it comes, or behind the one before.

- **llama.cpp** is the embedded engine with its bundled model, **scripted** the service's own double, which says its
  words at an even pace.
- **first chunk**: the first clause of the answer, cut and told of. **first sound**: the first samples of it.
- **text over**: `response_complete`, the model had finished. **sound over**: the last sample was played.
- **gaps**: all that had come was played, and the next piece was not there. **silence**: all of them together. Pauses
  that the voice itself makes are sound.
- **paced**: a double with OpenAI's `/v1/audio/speech`, {CHARACTERS_PER_SECOND:g} characters a second, which sends each
  {PIECE:g} s of sound when its synthesis would be done. With factor 0.5 that takes half a second for a second of sound,
  with 1.5 a second and a half: then a third of the time is silence whoever cuts the text, in as many gaps as pieces.
  What that row shows is that text is as early as ever and the speech whole. A TTS must be faster than 1.
- **synthesis**: `fasttalk_speech_synthesis_seconds_total` ÷ `fasttalk_speech_audio_seconds_total`.

In the plot all is in characters of the answer: what was written, what was cut into chunks, the sound that has come, and
what is heard; gaps are red. What lies between the last two is thrown away by a barge-in.
"""


def write(folder: Path, rows: Sequence[Row], described: dict[str, str | int], command: str) -> list[Path]:
    """Write speech.json, speech.md and the plot; return what was written."""
    folder.mkdir(parents=True, exist_ok=True)
    at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    about = {"command": command, "at": at, "machine": described, "python": sys.version.split()[0]}
    found = {f"{row.engine}, {row.voice}": figures(row.heard) for row in rows if row.heard is not None}
    data = folder / "speech.json"
    head = msgspec.json.format(msgspec.json.encode({**about, "figures": found}), indent=1)
    # A row has hundreds of moments: one line each.
    lines = b",\n".join(msgspec.json.encode(_rounded(msgspec.to_builtins(row))) for row in rows)
    data.write_bytes(head.removesuffix(b"\n}") + b',\n "rows": [\n' + lines + b"\n ]\n}\n")
    plot = _plot(folder / "speech.svg", [row for row in rows if row.heard is not None])
    image = "![Text and sound over time](speech.svg)\n\n" if plot else ""
    machine = "\n".join(f"- {name}: {value}" for name, value in described.items())
    page = folder / "speech.md"
    page.write_text(f"# Speech\n\n`{command}`, {at}\n\n{machine}\n\n{table(rows)}\n\n{image}{_NOTES}")
    return [data, page, *plot]


def _rounded(value: object) -> object:
    """Return milliseconds' worth of it: what is finer is not measured."""
    match value:
        case float():
            return round(value, 3)
        case list() | tuple():
            return [_rounded(each) for each in value]
        case dict():
            return {name: _rounded(each) for name, each in value.items()}
    return value


def _plot(path: Path, rows: Sequence[Row]) -> list[Path]:
    plots = pyplot() if rows else None
    if plots is None:
        return []
    engines, voices = (
        list(dict.fromkeys(names)) for names in zip(*((row.engine, row.voice) for row in rows), strict=True)
    )
    size = (5 * len(voices), 3.6 * len(engines))
    figure, grid = plots.subplots(len(engines), len(voices), figsize=size, sharey="row", squeeze=False)
    for row in rows:
        axes = grid[engines.index(row.engine)][voices.index(row.voice)]
        assert row.heard is not None
        _draw(axes, row.heard)
        axes.set(title=f"{row.engine}, {row.voice}", xlabel="seconds since asking", ylabel="characters of the answer")
        axes.grid(visible=True, alpha=0.3)
    grid[0][0].legend(loc="lower right")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plots.close(figure)
    return [path]


def _draw(axes: Any, heard: Heard) -> None:
    reached = positions(heard)
    spans = played(heard.sounds)
    lines = (
        ("written", [at for at, _ in heard.written], [count for _, count in heard.written]),
        ("cut into chunks", [cut.at for cut in heard.cuts], [cut.end for cut in heard.cuts]),
        ("sound has come", [sound.at for sound in heard.sounds], reached),
    )
    for label, moments, counts in lines:
        axes.step([moments[0], *moments], [0, *counts], where="post", label=label)
    moments = [moment for span in spans for moment in span]
    axes.plot(moments, [count for pair in zip([0.0, *reached], reached, strict=False) for count in pair], label="heard")
    silent = [(gap.at, gap.seconds) for gap in gaps(heard.sounds)]
    axes.broken_barh(silent, (0, 1), transform=axes.get_xaxis_transform(), color="red", alpha=0.15, linewidth=0)
