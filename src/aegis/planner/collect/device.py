"""The device that is measured, and the operations on it. Only here and in `ranks` is PyTorch used."""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Any, NamedTuple

from aegis.errors import ConfigError, SiteError
from aegis.planner.collect.timing import median_ms

if TYPE_CHECKING:
    from collections.abc import Callable

    from aegis.planner.collect.points import Point

_CACHE = 256 << 20  # bytes: weights of so much are taken in turn, so that none comes from a cache
_COPIES = 8
_LARGE, _TINY = 64 << 20, 1 << 10  # elements of 2 bytes
_KINDS = ("cuda", "xpu", "cpu")


def import_torch() -> Any:
    """Return PyTorch.

    Raises:
        SiteError: it is not installed.
    """
    try:
        torch = importlib.import_module("torch")  # seconds, and only this command needs it
    except ImportError as error:
        raise SiteError(
            "measuring needs PyTorch, which this Python does not have",
            hint="run `python -m aegis plan collect` with the Python of your engine (vLLM, SGLang), "
            "after `pip install aegis-serve` there",
        ) from error
    return torch


class Traffic(NamedTuple):
    """What the memory of the device delivers."""

    bandwidth: float  # bytes/s of a large copy, read and written
    efficiency: float  # of an embedding's look-up, relative to it
    latency: float  # s of the smallest copy


class Device:
    """One device of this machine."""

    def __init__(self, torch: Any, kind: str) -> None:
        self.torch = torch
        self.kind = kind
        self._module: Any = getattr(torch, kind, None)
        self._target = torch.device(kind)

    @property
    def title(self) -> str:
        """Its name, as the driver says it."""
        if self.kind == "cpu":
            return f"CPU, {self.torch.get_num_threads()} threads"
        return str(self._module.get_device_name(0))

    @property
    def count(self) -> int:
        """Devices of its kind here."""
        return 1 if self.kind == "cpu" else int(self._module.device_count())

    @property
    def capacity(self) -> int:
        """Bytes of its memory."""
        if self.kind == "cpu":
            return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        return int(self._module.get_device_properties(0).total_memory)

    @property
    def sm_version(self) -> int:
        """Compute capability times ten of NVIDIA's, 0 of others."""
        if self.kind != "cuda" or self.torch.version.hip:
            return 0
        major, minor = self._module.get_device_capability(0)
        return int(major * 10 + minor)

    def wait(self) -> None:
        """Return when all work is done."""
        if self.kind != "cpu":
            self._module.synchronize()

    def formats(self) -> list[str]:
        """Return the formats that products can be computed in here."""
        return [name for name, make in self._products().items() if self._try(_smallest(make))]

    def measure(self, point: Point) -> float | None:
        """Return ms of a point, or None if this device or PyTorch cannot do it."""
        done: float | None = None

        def run() -> None:
            nonlocal done
            with self.torch.inference_mode():
                done = median_ms(self._work(point), self.wait)

        self._try(run)
        return done

    def traffic(self) -> Traffic:
        """Return what the memory delivers."""
        torch, target = self.torch, self._target
        large = torch.zeros(_LARGE, dtype=torch.bfloat16, device=target)
        tiny, width = torch.zeros(_TINY, dtype=torch.bfloat16, device=target), 4096
        table, rows = large.view(-1, width), _LARGE // width // 4
        index = torch.randint(0, _LARGE // width, (rows,), device=target)
        into, small = torch.empty_like(large), torch.empty_like(tiny)
        copied = 4 * _LARGE / median_ms(lambda: into.copy_(large), self.wait) * 1000
        gathered = 4 * rows * width / median_ms(lambda: table[index], self.wait) * 1000
        latency = median_ms(lambda: small.copy_(tiny), self.wait) / 1000
        return Traffic(copied, min(1.0, gathered / copied), latency)

    def _try(self, run: Callable[[], object]) -> bool:
        try:
            run()
        except (RuntimeError, NotImplementedError, AttributeError, TypeError, ValueError):
            return False  # PyTorch has many words for "not here", out of memory among them
        finally:
            if self.kind != "cpu":
                self._module.empty_cache()
        return True

    def _work(self, point: Point) -> Callable[[], object]:
        if point.operation == "gemm":
            n, k, m = point.axes
            return self._products()[str(point.key[0])](m, n, k)
        kv_heads, size = int(point.key[-3]), int(point.key[-2])
        if point.operation == "context_attention":
            heads, length, batch = point.axes
            return self._attention((batch, heads, kv_heads or heads, size), length, length)
        heads, batch, length = point.axes
        return self._attention((batch, heads, kv_heads or heads, size), 1, length)

    def _products(self) -> dict[str, Callable[[int, int, int], Callable[[], object]]]:
        return {"bfloat16": self._bfloat16, "fp8": self._fp8}

    def _bfloat16(self, m: int, n: int, k: int) -> Callable[[], object]:
        linear = self.torch.nn.functional.linear
        x, weights = self._random(m, k), self._in_turn(n, k)
        return lambda: linear(x, weights())

    def _fp8(self, m: int, n: int, k: int) -> Callable[[], object]:
        """Scale the input, cast it, multiply: what an engine does for dynamic fp8."""
        torch = self.torch
        amd = bool(torch.version.hip) and "gfx94" in getattr(
            self._module.get_device_properties(0), "gcnArchName", ""
        )
        fp8 = torch.float8_e4m3fnuz if amd else torch.float8_e4m3fn
        x, weights = self._random(m, k), self._in_turn(n, k, fp8)
        one = torch.ones((), dtype=torch.float32, device=self._target)
        largest = torch.finfo(fp8).max

        def call() -> object:
            scale = x.abs().amax().float() / largest
            quantized = (x / scale).to(fp8)
            return torch._scaled_mm(  # noqa: SLF001 - the only fp8 product that PyTorch has
                quantized, weights().t(), scale_a=scale, scale_b=one, out_dtype=torch.bfloat16
            )

        return call

    def _attention(self, sizes: tuple[int, int, int, int], new: int, length: int) -> Callable[[], object]:
        batch, heads, kv_heads, size = sizes
        attend = self.torch.nn.functional.scaled_dot_product_attention
        q = self._random(batch, heads, new, size)
        k, v = self._random(batch, kv_heads, length, size), self._random(batch, kv_heads, length, size)
        return lambda: attend(q, k, v, is_causal=new > 1, enable_gqa=heads != kv_heads)

    def _random(self, *shape: int) -> Any:
        return self.torch.randn(shape, dtype=self.torch.bfloat16, device=self._target)

    def _in_turn(self, n: int, k: int, dtype: Any = None) -> Callable[[], Any]:
        copies = max(1, min(_COPIES, _CACHE // (2 * n * k)))
        weights = [self._random(n, k) for _ in range(copies)]
        if dtype is not None:
            weights = [each.to(dtype) for each in weights]
        turn = 0

        def following() -> Any:
            nonlocal turn
            turn += 1
            return weights[turn % copies]

        return following


def _smallest(make: Callable[[int, int, int], Callable[[], object]]) -> Callable[[], object]:
    def run() -> object:
        return make(32, 64, 64)()

    return run


def find_device(kind: str = "auto") -> Device:
    """Return the device of a kind, or the first kind that is there.

    Raises:
        SiteError: PyTorch is not installed.
        ConfigError: no such device.
    """
    torch = import_torch()
    there = [each for each in _KINDS if each == "cpu" or getattr(torch, each).is_available()]
    if kind == "auto":
        return Device(torch, there[0])
    if kind not in there:
        raise ConfigError(
            f"PyTorch {torch.__version__} sees no {kind} device here", hint=f"there is {', '.join(there)}"
        )
    return Device(torch, kind)
