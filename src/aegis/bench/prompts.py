"""What is asked: random words of given lengths, or the prompts of a file, each with the length of its answer. Pure but for reading.

Without a tokenizer the words are common ones that nearly every vocabulary holds whole. How many tokens a server makes of
them is learnt from its usage (`fit`), and the results count what the server counted.
"""

from __future__ import annotations

import math
import random
from typing import TYPE_CHECKING, Final, TypeVar

import msgspec
from msgspec import Struct

from aegis.errors import ConfigError, DeploymentError, Problem

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

COMMON: Final = """
able about above across after again against air all almost along also always among and another any are area around
ask at away back base be become been before began being below best better between big black blue board body book
both box boy bring build but by call came can car care carry case cause center change check city class clear close
cold come common could country course cover cut dark day deep did do does door down draw drive dry during each early
earth east easy eat end enough even ever every example eye face fact fall family far farm fast father feel feet few
field find fine fire first fish five fly follow food foot for force form found four free friend from front full game
gave get give go gold good got great green ground group grow had half hand hard has have he head hear heat help her
here high him his hold home horse hot hour house how idea if in inch is island it just keep kind king knew know land
language large last late laugh lead learn leave left less let letter life light like line list little live long look
love low machine made main make man many map mark may me mean measure men might mile mind minute miss money moon more
"""
WORDS: Final = tuple(COMMON.split())
PROBES: Final = (64, 256)  # words of the two prompts that the tokens of a word are learnt from
CUSTOM_OUTPUT: Final = 256  # as vLLM's --custom-output-len
LETTERS_PER_TOKEN: Final = 4.0  # of plain text, where a file does not say how long its answers are
SHORTEST: Final = 4  # tokens; what vLLM drops of ShareGPT
LONGEST_PROMPT: Final = 1024
LONGEST: Final = 2048  # with its answer
MOST_SHOWN: Final = 20  # wrong lines of a file
NOT_OF_TYPE: Final = (ValueError, RecursionError)  # of msgspec and of what is no UTF-8; nested too deep

Line = TypeVar("Line")
Used = TypeVar("Used")


class Prompt(Struct, frozen=True):
    """One request: its text, and how many tokens the answer may have."""

    text: str
    output_tokens: int


class Tokens(Struct, frozen=True):
    """How many tokens a server makes of our words."""

    per_word: float = 1.0
    fixed: float = 0.0  # begin-of-text, a chat's template

    def words(self, tokens: int) -> int:
        """Return how many words make about so many tokens."""
        return max(1, round((tokens - self.fixed) / self.per_word))


class Lengths(Struct, frozen=True):
    """Lengths of `random` prompts in tokens, as vLLM draws them: uniform within length * (1 -+ range_ratio)."""

    input: int = 1024
    output: int = 128
    range_ratio: float = 0.0
    prefix: int = 0  # the same for all, in front of `input`


def fit(tokens: Sequence[int], words: Sequence[int] = PROBES) -> Tokens:
    """Return the line through two measured lengths; what makes no sense (a server that counts nothing) is one token a word."""
    (few, many), (short, long) = tokens, words
    per_word = (many - few) / (long - short)
    return Tokens(per_word, few - per_word * short) if per_word > 0 else Tokens()


def probe_text(words: int) -> str:
    """Return that many words, whose mix is that of random prompts."""
    return " ".join(WORDS[index * 97 % len(WORDS)] for index in range(words))


def random_prompts(count: int, lengths: Lengths, tokens: Tokens, seed: int = 0) -> tuple[Prompt, ...]:
    """Return prompts of random words; the same for the same arguments, and none begins like another but for the prefix.

    Raises:
        ConfigError: the lengths make no sense.
    """
    if not 0 <= lengths.range_ratio < 1:
        raise ConfigError(f"--random-range-ratio {lengths.range_ratio:g} is not within [0, 1)")
    if min(lengths.input, lengths.output) < 1 or lengths.prefix < 0:
        raise ConfigError("random prompts need an input and an output of one token at least")
    draw = random.Random(seed)  # noqa: S311 - no secret
    prefix = draw.choices(WORDS, k=Tokens(tokens.per_word).words(lengths.prefix)) if lengths.prefix else []

    def length(middle: int) -> int:
        spread = middle * lengths.range_ratio
        return max(1, draw.randint(math.floor(middle - spread), math.ceil(middle + spread)))

    def prompt() -> Prompt:
        words = prefix + draw.choices(WORDS, k=tokens.words(length(lengths.input)))
        return Prompt(" ".join(words), length(lengths.output))

    return tuple(prompt() for _ in range(count))


def read_sharegpt(
    file: Path, count: int, output_tokens: int | None = None, seed: int = 0
) -> tuple[Prompt, ...]:
    """Return the first turns of conversations, drawn as vLLM draws them: shuffled, too short or long ones left out.

    Args:
        file: a JSON list of `{"conversations": [{"from": ..., "value": ...}, ...]}`, or one a line.
        count: of prompts; what is drawn repeats where the file has fewer.
        output_tokens: of every answer; None takes the length of the answer in the file, by its letters.
        seed: of the shuffling.

    Raises:
        ConfigError: it cannot be read, has another form (all lines that have), or nothing of it can be used.
    """
    chosen = []
    for turns in _conversations(file):
        asked, answered = turns[0].value, turns[1].value
        read = len(asked) / LETTERS_PER_TOKEN
        written = output_tokens or round(len(answered) / LETTERS_PER_TOKEN)
        if written >= (1 if output_tokens else SHORTEST) and SHORTEST <= read <= min(
            LONGEST_PROMPT, LONGEST - written
        ):
            chosen.append(Prompt(asked, written))
    random.Random(seed).shuffle(chosen)  # noqa: S311 - no secret
    return _repeated(chosen, count, file)


def read_custom(file: Path, count: int, output_tokens: int = CUSTOM_OUTPUT) -> tuple[Prompt, ...]:
    """Return the prompts of a JSONL file in vLLM's `custom` form: `{"prompt": ..., "output_tokens": ...}` a line.

    Args:
        file: rows without a prompt are errors, other keys are not.
        count: of prompts; they repeat where the file has fewer.
        output_tokens: of every answer; -1 takes each row's own.

    Raises:
        ConfigError: it cannot be read, holds nothing, or lines are wrong; all of them.
    """

    def prompt(row: Row) -> Prompt:
        wanted = row.output_tokens if output_tokens == -1 else output_tokens
        if not wanted or wanted < 1:
            raise ValueError("the row has no output_tokens of 1 or more, and --output-tokens gives none")
        return Prompt(row.prompt, wanted)

    return _repeated(_each_line(_bytes(file), file, Row, prompt), count, file)


class Turn(Struct):
    """One turn of a ShareGPT conversation."""

    value: str


class Conversation(Struct):
    """One entry of a ShareGPT file."""

    conversations: list[Turn] = []


class Row(Struct):
    """One line of a `custom` file."""

    prompt: str
    output_tokens: int | None = None


def _conversations(file: Path) -> Iterator[list[Turn]]:
    """Yield the conversations of two turns or more."""
    data = _bytes(file)
    if data.lstrip()[:1] == b"[":
        try:
            entries = msgspec.json.decode(data, type=list[Conversation])
        except NOT_OF_TYPE as error:
            raise ConfigError(f"{file}: {error}") from None
    else:
        entries = _each_line(data, file, Conversation, lambda entry: entry)
    return (entry.conversations for entry in entries if len(entry.conversations) > 1)


def _each_line(data: bytes, file: Path, type_: type[Line], use: Callable[[Line], Used]) -> list[Used]:
    """Return what `use` makes of each line that is not empty, or raise with those that are wrong, of JSON or by its ValueError."""
    used: list[Used] = []
    problems = []
    for number, line in enumerate(data.split(b"\n"), 1):
        if not line.strip():
            continue
        try:
            used.append(use(msgspec.json.decode(line, type=type_)))
        except NOT_OF_TYPE as error:
            problems.append(Problem(f"{file}:{number}", str(error)))
    if more := problems[MOST_SHOWN:]:
        problems[MOST_SHOWN:] = [Problem(str(file), f"{len(more)} more lines are wrong")]
    if problems:
        raise DeploymentError(problems)
    return used


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ConfigError(f"{str(file)!r} cannot be read: {error.strerror}") from None


def _repeated(chosen: Sequence[Prompt], count: int, file: Path) -> tuple[Prompt, ...]:
    if not chosen:
        raise ConfigError(f"{str(file)!r} holds no prompt that can be used")
    return tuple(chosen[index % len(chosen)] for index in range(count))
