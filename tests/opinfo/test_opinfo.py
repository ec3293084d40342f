"""torch's own description (OpInfo) of the operators that `enable` answers, held against them.

The inputs, references, tolerances, error cases and skips are those that ship with torch, in
`torch.testing._internal`. The tests that go with them in torch's repository don't ship. Those below
do the same checks under the same names, since the skips go by name. They run with our kernels, or
with torch's if ``MISHKIT_OPINFO=torch``. `tools/opinfo.py` (``make opinfo``) compares both.
"""

from __future__ import annotations

import os
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip("expecttest")  # which torch's helpers import
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal import composite_compliance
from torch.testing._internal.common_device_type import (
    OpDTypes,
    instantiate_device_type_tests,
    onlyCPU,
    ops,
)
from torch.testing._internal.common_methods_invocations import op_db, python_ref_db
from torch.testing._internal.common_utils import TestCase, gradcheck, gradgradcheck
from torch.testing._internal.opinfo.core import (
    UnaryUfuncInfo,
    generate_elementwise_unary_extremal_value_tensors,
    generate_elementwise_unary_large_value_tensors,
    generate_elementwise_unary_small_value_tensors,
    generate_elementwise_unary_tensors,
)

import mishkit as mk

pytestmark = pytest.mark.filterwarnings("default")

NAMES = tuple(f"nn.functional.{name}" for name in ("mish", "silu", "gelu", "hardswish"))
OPS = [op for op in op_db if op.name in NAMES]
UFUNCS = [op for op in OPS if isinstance(op, UnaryUfuncInfo)]
REFS = [op for op in python_ref_db if op.name.removeprefix("_refs.") in NAMES]
TORCHS = os.environ.get("MISHKIT_OPINFO") == "torch"
FLOATS = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def setup_module() -> None:
    if not TORCHS:
        mk.enable()
        assert len(mk.enabled()) == len(NAMES)


def teardown_module() -> None:
    mk.disable()


class TestCommon(TestCase):
    @onlyCPU
    @ops(OPS, dtypes=OpDTypes.none)
    def test_dtypes(self, device: str, op: Any) -> None:
        """The dtypes that are said to be supported are, forward and backward, and no others."""
        for dtype in (*FLOATS, torch.int32, torch.uint8, torch.bool):
            with self.subTest(dtype=dtype):
                works = self._works(op, device, dtype, backward=False)
                self.assertEqual(works, dtype in op.dtypes, f"forward, {dtype}")
                if dtype.is_floating_point:
                    works = self._works(op, device, dtype, backward=True)
                    self.assertEqual(works, dtype in op.backward_dtypes, f"backward, {dtype}")

    def _works(self, op: Any, device: str, dtype: torch.dtype, backward: bool) -> bool:
        try:
            for sample in op.sample_inputs(device, dtype, requires_grad=backward):
                result = op(sample.input, *sample.args, **sample.kwargs)
                if backward:
                    result.sum().backward()
        except (RuntimeError, NotImplementedError):
            return False
        return True

    @onlyCPU
    @ops(OPS, allowed_dtypes=(torch.float32, torch.float64, torch.bfloat16))
    def test_noncontiguous_samples(self, device: str, dtype: torch.dtype, op: Any) -> None:
        for sample in op.sample_inputs(device, dtype, requires_grad=True):
            other = sample.noncontiguous()
            results = []
            for one in (sample, other):
                x = one.input
                y = op(x, *one.args, **one.kwargs)
                grad = torch.ones_like(y) * 0.5
                (dx,) = torch.autograd.grad(y, x, grad) if y.requires_grad else (None,)
                results.append((y, dx))
            self.assertEqual(*results)

    @onlyCPU
    @ops(OPS, dtypes=OpDTypes.none)
    def test_errors(self, device: str, op: Any) -> None:
        if op.error_inputs_func is None:
            return  # torch describes none
        for error in op.error_inputs(device):
            sample = error.sample_input
            with self.assertRaisesRegex(error.error_type, error.error_regex):
                op(sample.input, *sample.args, **sample.kwargs)

    @onlyCPU
    @ops(OPS, allowed_dtypes=FLOATS)
    def test_out(self, device: str, dtype: torch.dtype, op: Any) -> None:
        """`out=` in any layout, resized from empty, with a wrong dtype or device."""
        if not op.supports_out:
            self.skipTest("no out=")
        for sample in op.sample_inputs(device, dtype):
            expected = op(sample.input, *sample.args, **sample.kwargs)

            def call(out: Tensor, sample: Any = sample) -> Tensor:
                return op(sample.input, *sample.args, **sample.kwargs, out=out)

            outs = [torch.full_like(expected, 7), expected.new_empty(0)]
            if expected.dim():
                transposed = torch.full_like(expected, 7).movedim(0, -1).contiguous()
                outs += [transposed.movedim(-1, 0)]
                outs += [expected.new_zeros((*expected.shape, 2))[..., 0]]
            for out in outs:
                strides, pointer = out.stride(), out.data_ptr()
                self.assertIs(call(out), out)
                self.assertEqual(out, expected)
                if out.numel() and out is not outs[1]:
                    self.assertEqual((out.stride(), out.data_ptr()), (strides, pointer))
            with self.assertRaises(RuntimeError):
                call(torch.empty_like(expected, dtype=torch.long))
            with self.assertRaises(RuntimeError):
                call(torch.empty_like(expected, device="meta"))

    @onlyCPU
    @ops(OPS, allowed_dtypes=(torch.float32,))
    def test_out_warning(self, device: str, dtype: torch.dtype, op: Any) -> None:
        """An output that has elements and the wrong shape is resized, with a warning."""
        if not op.supports_out:
            self.skipTest("no out=")
        for sample in op.sample_inputs(device, dtype):
            expected = op(sample.input, *sample.args, **sample.kwargs)
            out = expected.new_empty((*expected.shape, 3))
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                op(sample.input, *sample.args, **sample.kwargs, out=out)
            self.assertEqual(out, expected)
            if expected.numel():
                self.assertTrue(any("was resized" in str(one.message) for one in caught))

    @onlyCPU
    @ops(OPS, allowed_dtypes=FLOATS)
    def test_variant_consistency_eager(self, device: str, dtype: torch.dtype, op: Any) -> None:
        """In place gives the same, forward and backward, and keeps the memory."""
        forms = [form for form in (op.get_inplace(), op.get_method()) if form is not None]
        for sample in op.sample_inputs(device, dtype, requires_grad=True):
            calls = [(form, dict(sample.kwargs)) for form in forms]
            if "inplace" not in sample.kwargs and op.name != "nn.functional.gelu":
                calls.append((op, {**sample.kwargs, "inplace": True}))
            expected = op(sample.input, *sample.args, **sample.kwargs)
            grad = torch.ones_like(expected)
            (dx,) = torch.autograd.grad(expected, sample.input, grad, retain_graph=True)
            for form, kwargs in calls:
                x = sample.input.detach().clone().requires_grad_()
                clone = x.clone()
                result = form(clone, *sample.args, **kwargs)
                self.assertEqual(result, expected)
                if kwargs.get("inplace"):
                    self.assertEqual(result.data_ptr(), clone.data_ptr())
                self.assertEqual(torch.autograd.grad(result, x, grad)[0], dx)

    @onlyCPU
    @ops(REFS, allowed_dtypes=(torch.float32, torch.float64, torch.bfloat16))
    def test_python_ref(self, device: str, dtype: torch.dtype, op: Any) -> None:
        """torch's reference in Python gives the same, and the same strides, as the operator."""
        for sample in op.reference_inputs(device, dtype):
            reference = op(sample.input, *sample.args, **sample.kwargs)
            result = op.torch_opinfo(sample.input, *sample.args, **sample.kwargs)
            self.assertEqual(result, reference, atol=None, rtol=None, exact_stride=False)
            self.assertEqual(result.shape, reference.shape)
            self.assertEqual(result.dtype, reference.dtype)


class TestUnaryUfuncs(TestCase):
    def _compare(self, op: Any, dtype: torch.dtype, samples: Any) -> None:
        for sample in samples:
            x = sample.input if isinstance(sample.input, Tensor) else sample
            torch_kwargs, numpy_kwargs = op.sample_kwargs(x.device, dtype, x)
            y = op(x, **torch_kwargs)
            numbers = x.detach()
            if dtype == torch.bfloat16:
                numbers = numbers.float()
            with np.errstate(all="ignore"):
                expected = op.ref(numbers.cpu().numpy(), **numpy_kwargs)
            expected = torch.as_tensor(np.asarray(expected))
            self.assertEqual(y, expected.to(y.dtype), equal_nan=True, exact_device=False)

    @onlyCPU
    @ops(UFUNCS, allowed_dtypes=FLOATS)
    def test_reference_numerics_normal(self, device: str, dtype: torch.dtype, op: Any) -> None:
        self._compare(
            op,
            dtype,
            generate_elementwise_unary_tensors(op, device=device, dtype=dtype, requires_grad=False),
        )

    @onlyCPU
    @ops(UFUNCS, allowed_dtypes=FLOATS)
    def test_reference_numerics_small(self, device: str, dtype: torch.dtype, op: Any) -> None:
        make = generate_elementwise_unary_small_value_tensors
        self._compare(op, dtype, make(op, device=device, dtype=dtype, requires_grad=False))

    @onlyCPU
    @ops(UFUNCS, allowed_dtypes=FLOATS)
    def test_reference_numerics_large(self, device: str, dtype: torch.dtype, op: Any) -> None:
        make = generate_elementwise_unary_large_value_tensors
        self._compare(op, dtype, make(op, device=device, dtype=dtype, requires_grad=False))

    @onlyCPU
    @ops(UFUNCS, allowed_dtypes=FLOATS)
    def test_reference_numerics_extremal(self, device: str, dtype: torch.dtype, op: Any) -> None:
        make = generate_elementwise_unary_extremal_value_tensors
        self._compare(op, dtype, make(op, device=device, dtype=dtype, requires_grad=False))

    def _strided(self, op: Any, dtype: torch.dtype, whole: Tensor, part: Any) -> None:
        torch_kwargs, _ = op.sample_kwargs(whole.device, dtype, whole)
        self.assertEqual(op(part(whole), **torch_kwargs), part(op(whole, **torch_kwargs)))
        self.assertEqual(
            op(part(whole), **torch_kwargs), op(part(whole).contiguous(), **torch_kwargs)
        )

    @onlyCPU
    @ops(UFUNCS, allowed_dtypes=FLOATS)
    def test_non_contig(self, device: str, dtype: torch.dtype, op: Any) -> None:
        """Every other element, transposed, indexed, expanded, with dimensions of size 1."""
        parts = {
            "every other": lambda x: x[..., ::2],
            "transposed": lambda x: x.mT,
            "index": lambda x: x[:, 1, ...],
            "expanded": lambda x: x[:, :1].expand(x.shape),
            "negative index": lambda x: x.flip(0),
            "channels last": lambda x: x.to(memory_format=torch.channels_last),
            "size 1": lambda x: x[:, :1],
            "size 1 last": lambda x: x[..., :1],
            "chunk": lambda x: x.chunk(2, dim=1)[1],
        }
        x = torch.randn(4, 6, 5, 8, device=device).to(dtype)
        for name, part in parts.items():
            with self.subTest(name):
                self._strided(op, dtype, x, part)

    @onlyCPU
    @ops(UFUNCS, allowed_dtypes=FLOATS)
    def test_batch_vs_slicing(self, device: str, dtype: torch.dtype, op: Any) -> None:
        x = torch.randn(1024, 7, device=device).to(dtype)
        torch_kwargs, _ = op.sample_kwargs(device, dtype, x)
        rows = torch.stack([op(row, **torch_kwargs) for row in x])
        self.assertEqual(op(x, **torch_kwargs), rows)


class _Gradients(TestCase):
    def _each(self, device: str, dtype: torch.dtype, op: Any, variant: Any, check: Any) -> None:
        for sample in op.sample_inputs(device, dtype, requires_grad=True):

            def function(x: Tensor, sample: Any = sample) -> Tensor:
                x = x.clone() if variant is not op.get_op() else x
                return variant(x, *sample.args, **sample.kwargs)

            self.assertTrue(check(function, (sample.input,)))

    def _variant(self, op: Any) -> Any:
        inplace = op.get_inplace()
        if inplace is None or not op.supports_inplace_autograd:
            self.skipTest("not in place")
        return inplace


class TestBwdGradients(_Gradients):
    @onlyCPU
    @ops(OPS, dtypes=OpDTypes.supported_backward, allowed_dtypes=(torch.float64,))
    def test_fn_grad(self, device: str, dtype: torch.dtype, op: Any) -> None:
        self._each(device, dtype, op, op.get_op(), gradcheck)

    @onlyCPU
    @ops(OPS, dtypes=OpDTypes.supported_backward, allowed_dtypes=(torch.float64,))
    def test_fn_gradgrad(self, device: str, dtype: torch.dtype, op: Any) -> None:
        if not op.supports_gradgrad:
            self.skipTest("no second derivative")
        self._each(device, dtype, op, op.get_op(), gradgradcheck)

    @onlyCPU
    @ops(OPS, dtypes=OpDTypes.supported_backward, allowed_dtypes=(torch.float64,))
    def test_inplace_grad(self, device: str, dtype: torch.dtype, op: Any) -> None:
        self._each(device, dtype, op, self._variant(op), gradcheck)

    @onlyCPU
    @ops(OPS, dtypes=OpDTypes.supported_backward, allowed_dtypes=(torch.float64,))
    def test_inplace_gradgrad(self, device: str, dtype: torch.dtype, op: Any) -> None:
        self._each(device, dtype, op, self._variant(op), gradgradcheck)


class TestFwdGradients(_Gradients):
    @onlyCPU
    @ops(OPS, dtypes=OpDTypes.supported_backward, allowed_dtypes=(torch.float64,))
    def test_forward_mode_AD(self, device: str, dtype: torch.dtype, op: Any) -> None:
        if not op.supports_forward_ad:
            self.skipTest("no forward mode")

        def check(function: Any, inputs: Any) -> bool:
            return gradcheck(
                function,
                inputs,
                check_forward_ad=True,
                check_backward_ad=False,
                check_batched_grad=False,
            )

        self._each(device, dtype, op, op.get_op(), check)

    @onlyCPU
    @ops(OPS, dtypes=OpDTypes.supported_backward, allowed_dtypes=(torch.float64,))
    def test_fn_fwgrad_bwgrad(self, device: str, dtype: torch.dtype, op: Any) -> None:
        if not op.supports_fwgrad_bwgrad:
            self.skipTest("no forward over reverse")

        def check(function: Any, inputs: Any) -> bool:
            return gradgradcheck(
                function,
                inputs,
                check_fwd_over_rev=True,
                check_rev_over_rev=False,
                check_undefined_grad=False,
                check_batched_grad=False,
            )

        self._each(device, dtype, op, op.get_op(), check)


class TestCompositeCompliance(TestCase):
    @onlyCPU
    @ops(OPS, allowed_dtypes=(torch.float32,))
    def test_operator(self, device: str, dtype: torch.dtype, op: Any) -> None:
        """With subclasses of Tensor in the place of the arguments."""
        for sample in op.sample_inputs(device, dtype):
            args = [sample.input, *sample.args]
            composite_compliance.check_with_mode(op, args, sample.kwargs, self.assertEqual)
            composite_compliance.check_all_permutations(op, args, sample.kwargs, self.assertEqual)

    @onlyCPU
    @ops([op for op in OPS if op.supports_autograd], allowed_dtypes=(torch.float32,))
    def test_backward(self, device: str, dtype: torch.dtype, op: Any) -> None:
        for sample in op.sample_inputs(device, dtype, requires_grad=True):
            args = [sample.input, *sample.args]
            composite_compliance.check_backward_formula(
                op.get_op(), args, sample.kwargs, sample.output_process_fn_grad,
                op.gradcheck_wrapper, self.assertEqual,
            )  # fmt: skip

    @onlyCPU
    @ops([op for op in OPS if op.supports_forward_ad], allowed_dtypes=(torch.float32,))
    def test_forward_ad(self, device: str, dtype: torch.dtype, op: Any) -> None:
        for sample in op.sample_inputs(device, dtype, requires_grad=True):
            args = [sample.input, *sample.args]
            composite_compliance.check_forward_ad_formula(
                op.get_op(), args, sample.kwargs, op.gradcheck_wrapper, self.assertEqual
            )

    @onlyCPU
    @ops(OPS, allowed_dtypes=(torch.float32,))
    def test_cow_input(self, device: str, dtype: torch.dtype, op: Any) -> None:
        """A copy-on-write input is not copied, as it is only read."""
        for sample in op.sample_inputs(device, dtype, requires_grad=True):
            x = torch._lazy_clone(sample.input.detach()).requires_grad_()
            y = op(x, *sample.args, **sample.kwargs)
            y.sum().backward()
            self.assertTrue(torch._C._is_cow_tensor(x))


class TestMathBits(TestCase):
    @onlyCPU
    @ops(OPS, allowed_dtypes=(torch.float32, torch.float64))
    def test_neg_view(self, device: str, dtype: torch.dtype, op: Any) -> None:
        """Of a tensor that is only marked as negated."""
        for sample in op.sample_inputs(device, dtype):
            x = torch._neg_view(sample.input)
            self.assertTrue(x.is_neg())
            expected = op(-sample.input, *sample.args, **sample.kwargs)
            self.assertEqual(op(x, *sample.args, **sample.kwargs), expected)

    @onlyCPU
    @ops(OPS, allowed_dtypes=(torch.complex64,))
    def test_conj_view(self, device: str, dtype: torch.dtype, op: Any) -> None:
        for sample in op.sample_inputs(device, dtype):
            x = sample.input.conj()
            expected = op(x.resolve_conj(), *sample.args, **sample.kwargs)
            self.assertEqual(op(x, *sample.args, **sample.kwargs), expected)


class TestMeta(TestCase):
    def _metadata(self, t: Tensor) -> tuple[Any, ...]:
        return t.shape, t.dtype, t.stride()

    def _layouts(self, x: Tensor) -> list[Tensor]:
        layouts = [x, x.mT] if x.dim() > 1 else [x]
        if x.dim() == 4:
            layouts.append(x.to(memory_format=torch.channels_last))
        return layouts

    @onlyCPU
    @ops(OPS, allowed_dtypes=FLOATS)
    def test_dispatch_meta_outplace(self, device: str, dtype: torch.dtype, op: Any) -> None:
        """Meta and fake tensors predict shape, dtype and strides, forward and backward."""
        for sample in op.sample_inputs(device, dtype):
            for x in self._layouts(sample.input):
                real = self._metadata(op(x, *sample.args, **sample.kwargs))
                meta = op(x.to("meta"), *sample.args, **sample.kwargs)
                self.assertEqual(self._metadata(meta), real)
                mode = FakeTensorMode()
                with mode:
                    fake = op(mode.from_tensor(x), *sample.args, **sample.kwargs)
                self.assertEqual(self._metadata(fake), real)

    @onlyCPU
    @ops(OPS, allowed_dtypes=(torch.float32,))
    def test_dispatch_meta_inplace(self, device: str, dtype: torch.dtype, op: Any) -> None:
        inplace = op.get_inplace()
        if inplace is None:
            self.skipTest("not in place")
        for sample in op.sample_inputs(device, dtype):
            for x in self._layouts(sample.input):
                real = inplace(x.clone(), *sample.args, **sample.kwargs)
                meta = inplace(x.clone().to("meta"), *sample.args, **sample.kwargs)
                self.assertEqual(self._metadata(meta), self._metadata(real))


instantiate_device_type_tests(TestCommon, globals(), only_for="cpu")
instantiate_device_type_tests(TestUnaryUfuncs, globals(), only_for="cpu")
instantiate_device_type_tests(TestBwdGradients, globals(), only_for="cpu")
instantiate_device_type_tests(TestFwdGradients, globals(), only_for="cpu")
instantiate_device_type_tests(TestCompositeCompliance, globals(), only_for="cpu")
instantiate_device_type_tests(TestMathBits, globals(), only_for="cpu")
instantiate_device_type_tests(TestMeta, globals(), only_for="cpu")
