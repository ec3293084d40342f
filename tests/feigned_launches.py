"""Every launch of the GPU backend through Triton's own binding of arguments, up to the compiled
kernel; run as a program, without the interpreter. Nothing is computed."""

from __future__ import annotations

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver
from triton.runtime.jit import JITFunction

from mishkit.backends import triton
from mishkit.functions import ACTIVATIONS


class FeignedDriver:
    """What Triton asks of a GPU before it launches."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 80, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


NAMES = ("relu", "mish", "hard_mish", "swish", "aptx")


def main() -> None:
    launched = []

    def compiled_only(self: JITFunction, grid: tuple[int, ...]):
        def launch(*arguments, **options):
            assert len(grid) == 1 and 0 < grid[0] < 2**31
            kernel = self.warmup(*arguments, grid=grid, **options)
            launched.append((self.__name__, kernel.metadata.name))

        return launch

    driver._active = FeignedDriver()
    JITFunction.__getitem__ = compiled_only
    cases = [(name, ACTIVATIONS[name].defaults) for name in NAMES] + [("aptx", (0.1, 1.0, 0.5))]
    for name, values in cases:
        a = ACTIVATIONS[name]
        for dtype in (torch.float32, torch.bfloat16):
            for shape in ((1,), (37,), (3, 5, 16)):
                x = torch.ones(shape).to(dtype)
                triton.forward(a, x, *values)
                triton.forward_out(a, x, torch.empty_like(x), *values)
                triton.backward(a, x, x, *values)
                triton.double_backward(a, x, x, x, *values)
                y, side = triton.forward_packed(a, x, *values)
                triton.forward_packed_out(a, x, x, *values)
                triton.backward_packed(a, x, y, side, *values)
                if x.dim() > 1:
                    for numbers in (torch.ones(x.shape[1]), torch.ones(x.shape[:2])):
                        triton.affine(None, x, numbers, numbers)
                        triton.affine(a, x, numbers, numbers, *values)
                        triton.affine_backward(a, x, x, numbers, numbers, *values)
                    row, column = torch.ones(x.numel() // x.shape[-1]), torch.ones(x.shape[-1])
                    triton.layer_norm_again(x, row, row, column, column)
                if a.trainable:
                    channels = x.shape[1] if x.dim() > 1 else 1
                    for count in {1, channels}:
                        rows = torch.ones(len(a.parameters), count)
                        triton.trained(a, x, rows)
                        triton.trained_backward(a, x, x, rows)
    print(len(launched), *sorted({name for name, _ in launched}))


if __name__ == "__main__":
    main()
