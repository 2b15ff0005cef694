"""What every endpoint is asked, for `vllm bench serve` and for our own generator alike. Pure but for reading a file of prompts."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from msgspec import Struct

from aegis.bench.prompts import CUSTOM_OUTPUT, Lengths, random_prompts, read_custom, read_sharegpt
from aegis.bench.work import Work, arrivals
from aegis.errors import ConfigError

if TYPE_CHECKING:
    from aegis.api.targets import Target
    from aegis.bench.prompts import Prompt, Tokens

Dataset = Literal["random", "sharegpt", "jsonl"]
DATASETS: Final = get_args(Dataset)
OUTPUT: Final = 128  # tokens of an answer to a random prompt, as vLLM
ROWS_OWN: Final = -1  # tokens of an answer: what each row of the file says
EVEN: Final = 1e6  # a burstiness that vLLM can compute with, and whose gaps differ by a thousandth
IN_VLLM: Final = {"random": "random", "sharegpt": "sharegpt", "jsonl": "custom"}


class Question(Struct, frozen=True, kw_only=True):
    """The load of one endpoint; each gets the same."""

    prompts: int = 100
    dataset: Dataset = "random"
    path: str | None = None  # of the file of prompts
    input_tokens: int = 1024  # of random prompts
    output_tokens: int | None = (
        None  # of an answer; None: 128 of random ones, 256 of jsonl, the file's own of sharegpt
    )
    concurrency: int = 0  # 0: no limit
    rate: float = math.inf  # requests/s; infinite: all at once
    burstiness: float = 1.0  # 1: Poisson; infinite: evenly spaced
    chat: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what has no meaning."""
        if (self.dataset == "random") != (self.path is None):
            needed = "needs a file" if self.path is None else "reads no file"
            raise ConfigError(f"--dataset {self.dataset} {needed}: --dataset-path")
        if self.concurrency and math.isfinite(self.rate):
            raise ConfigError("--concurrency and --rate exclude each other", hint="give one of them")
        rows_own = (self.output_tokens, self.dataset) == (ROWS_OWN, "jsonl")
        if self.output_tokens is not None and self.output_tokens < 1 and not rows_own:
            raise ConfigError(
                "--output-tokens is 1 at least", hint="-1, with --dataset jsonl: each row's own"
            )

    @property
    def text(self) -> str:
        """The load in words."""
        if self.dataset == "random":
            what = f"random prompts of {self.input_tokens} + {self.output_tokens or OUTPUT} tokens"
        else:
            what = f"prompts of {self.path}"
        if math.isfinite(self.rate):
            spaced = "evenly" if math.isinf(self.burstiness) else f"burstiness {self.burstiness:g}"
            how = f"{self.rate:g} a second ({spaced})"
        else:
            how = f"{self.concurrency} at a time" if self.concurrency else "all at once"
        return f"{self.prompts} {what} for each endpoint, {how}"

    def vllm_words(self) -> list[str]:
        """Return the arguments of `vllm bench serve` that mean the same."""
        words = ["--num-prompts", str(self.prompts), "--dataset-name", IN_VLLM[self.dataset]]
        words += ["--seed", str(self.seed)]
        if self.path is not None:
            words += ["--dataset-path", os.path.abspath(self.path)]  # noqa: PTH100 - links stay, as they are on nodes
        if self.dataset == "random":
            words += ["--random-input-len", str(self.input_tokens)]
            words += ["--random-output-len", str(self.output_tokens or OUTPUT)]
        elif self.dataset == "jsonl":
            words += ["--custom-output-len", str(self.output_tokens or CUSTOM_OUTPUT), "--skip-chat-template"]
        elif self.output_tokens:
            words += ["--sharegpt-output-len", str(self.output_tokens)]
        if self.concurrency:
            words += ["--max-concurrency", str(self.concurrency)]
        if math.isfinite(self.rate):
            words += ["--request-rate", repr(self.rate), "--burstiness", repr(min(self.burstiness, EVEN))]
        if self.chat:
            words += ["--backend", "openai-chat", "--endpoint", "/v1/chat/completions"]
        return words

    def read_prompts(self, tokens: Tokens) -> tuple[Prompt, ...]:
        """Return the prompts.

        Args:
            tokens: what the server makes of words, where they are random.

        Raises:
            ConfigError: the file cannot be read, or holds none.
        """
        if self.dataset == "sharegpt":
            return read_sharegpt(Path(self.path or ""), self.prompts, self.output_tokens, self.seed)
        if self.dataset == "jsonl":
            return read_custom(Path(self.path or ""), self.prompts, self.output_tokens or CUSTOM_OUTPUT)
        lengths = Lengths(self.input_tokens, self.output_tokens or OUTPUT)
        return random_prompts(self.prompts, lengths, tokens, self.seed)

    def work(self, target: Target, model: str, prompts: tuple[Prompt, ...], seconds: float) -> Work:
        """Return the work of one endpoint; a request may take so many seconds."""
        options: dict[str, Any] = {"ignore_eos": True} if self.dataset == "random" else {}
        open_loop = math.isfinite(self.rate)
        return Work(
            target=target,
            model=model,
            prompts=prompts,
            concurrency=0 if open_loop else self.concurrency or len(prompts),
            arrivals=arrivals(len(prompts), self.rate, self.burstiness, self.seed) if open_loop else (),
            chat=self.chat,
            options=options,
            seconds=seconds,
        )
