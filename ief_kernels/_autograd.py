"""What the operators share above their kernels: registration with torch, and the calls of Functions and operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad, profiler

from ._tensors import refuse_double_backward

_implementations: dict[str, Callable[..., Any]] = {}

# The package may be loaded twice under different names (`tools/kernel_hub.py`), and torch knows one operator per name.
NAMESPACE = (__package__ or "ief_kernels").replace(".", "_")
_operators: Any = getattr(torch.ops, NAMESPACE)


def register_operator(
    name: str,
    schema: str,
    implementation: Callable[..., Any],
    fake: Callable[..., Any],
    check: Callable[..., None],
) -> None:
    """Make ``torch.ops.ief_kernels.<name>`` known to torch.

    Calls through torch may come from anybody, so each is checked before a kernel takes an address. Straight calls
    (`call`) come from the public functions, which have checked already.

    Args:
        name: of the operator, without the namespace.
        schema: arguments and results, as `torch.library.define` takes them.
        implementation: computes the results on any device.
        fake: gives empty results of the right shapes and dtypes, for `torch.compile`.
        check: takes the same arguments, and raises ValueError for those that do not fit each other. It looks at sizes,
            dtypes and devices alone, never at values.
    """
    library: Any = torch.library  # its functions have no annotations in some versions of torch
    full = f"{NAMESPACE}::{name}"

    def checked(*arguments: Any) -> Any:
        check(*arguments)
        return implementation(*arguments)

    def checked_fake(*arguments: Any) -> Any:
        check(*arguments)
        return fake(*arguments)

    library.define(full, schema)
    library.impl(full, "default")(checked)
    library.register_fake(full)(checked_fake)
    _implementations[name] = implementation


def gradients_wanted(*arguments: object) -> bool:
    """Return whether a backward pass may follow: gradients are enabled, and a tensor among `arguments` requires one."""
    if torch.is_grad_enabled():
        for item in arguments:
            if isinstance(item, Tensor) and item.requires_grad:
                return True
    return False


def run(op: str, function: type[torch.autograd.Function], wanted: bool, *arguments: Any) -> Any:
    """Call an operator's Function, without what has no effect in this call.

    That is the Function itself where no backward pass may follow, and torch's dispatcher where nothing watches it
    (`unwatched`). On small tensors both cost more than the kernel does.

    Args:
        op: name of the public function, for messages.
        function: its `forward` takes the context, `arguments`, and `straight` for `call`; it keeps that as
            ``ctx.straight`` for `gradient`.
        wanted: what `gradients_wanted` said.
        *arguments: of the Function.

    Raises:
        RuntimeError: a transform of `torch.func` asks for gradients.
        NotImplementedError: a tensor has a forward-mode gradient.
    """
    straight = unwatched(arguments)
    if not straight and transformed():
        _refuse_transforms(op, wanted, arguments)
    if wanted:
        return function.apply(*arguments, straight)
    return function.forward(_NoBackward(), *arguments, straight)


def transformed() -> bool:
    """Return whether derivatives may be asked for that `requires_grad` does not show.

    That is within transforms of `torch.func` and where forward-mode gradients are enabled. `torch.compile` takes no
    notice of either here.
    """
    if torch.compiler.is_compiling():
        return False
    c: Any = torch._C
    return bool(forward_ad._current_level >= 0 or c._are_functorch_transforms_active())


def _refuse_transforms(op: str, wanted: bool, arguments: tuple[Any, ...]) -> None:
    """Raise an error that names the remedy where a derivative is asked for that no fused kernel has."""
    c: Any = torch._C
    if c._are_functorch_transforms_active() and (wanted or forward_ad._current_level >= 0 or _wanted_inside(arguments)):
        raise RuntimeError(
            f"{op}: torch.func transforms (grad, vjp, jvp, jacrev, hessian, and vmap of tensors that require gradients)"
            " are not available with fused kernels; pass backend='reference' there"
        )
    for item in arguments:
        if isinstance(item, Tensor) and forward_ad.unpack_dual(item).tangent is not None:
            raise NotImplementedError(
                f"{op}: forward-mode derivatives (jvp) are not available with fused kernels; pass backend='reference'"
                " there"
            )


def _wanted_inside(arguments: tuple[Any, ...]) -> bool:
    """Return whether a gradient is asked for outside of a `vmap`, whose own tensors do not show it."""
    functorch: Any = torch._C._functorch
    for item in arguments if torch.is_grad_enabled() else ():
        while isinstance(item, Tensor):
            if item.requires_grad:
                return True
            if not functorch.is_functorch_wrapped_tensor(item):
                break
            item = functorch.get_unwrapped(item)
    return False


class _NoBackward:
    """The context of a forward pass that no backward pass follows."""

    def save_for_backward(self, *tensors: Tensor | None) -> None:
        """Save nothing."""

    def set_materialize_grads(self, value: bool) -> None:
        """There will be no gradients."""


_PLAIN = frozenset({Tensor, torch.nn.Parameter})


def unwatched(arguments: tuple[Any, ...]) -> bool:
    """Return whether a call is plain eager code, so that going through torch's dispatcher changes nothing.

    It changes something for compilers and exporters, modes (fake tensors, a default device), transforms of
    `torch.func`, forward-mode gradients, traces, the profiler (which then shows operators by name), subclasses of
    Tensor, and tensors whose memory is not what they say (a lazy negation, zeros without memory).
    """
    if torch.compiler.is_compiling():
        return False
    c: Any = torch._C
    if (
        c._len_torch_dispatch_stack()
        or c._len_torch_function_stack()
        or c._are_functorch_transforms_active()
        or c._get_tracing_state()
        or forward_ad._current_level >= 0
        or profiler._is_profiler_enabled
    ):
        return False
    for item in arguments:
        if isinstance(item, Tensor) and (type(item) not in _PLAIN or item.is_neg() or item._is_zerotensor()):
            return False
    return True


def call(straight: bool, name: str, *arguments: Any) -> Any:
    """Call the registered operator ``ief_kernels::<name>``; `straight` leaves out torch's dispatcher."""
    if straight:
        return _implementations[name](*arguments)
    return getattr(_operators, name)(*arguments)


def gradient(ctx: Any, op: str, grads: tuple[Tensor | None, ...], *arguments: Any, title: str = "") -> Any:
    """Call the backward operator of ``op`` in a Function's `backward`; a second derivative is refused, not wrong.

    Args:
        ctx: the Function's context.
        op: the operator is ``ief_kernels::<op>_backward``.
        grads: its first arguments, the incoming gradients.
        *arguments: its other arguments.
        title: name of the public function, for messages; by default `op`.
    """
    if torch.is_grad_enabled():  # create_graph=True
        return _Gradient.apply(op, title or op, *grads, *arguments)
    if not (ctx.straight and unwatched(grads)):
        return call(False, f"{op}_backward", *grads, *arguments)
    try:
        return call(True, f"{op}_backward", *grads, *arguments)
    except RuntimeError as error:
        if any(isinstance(grad, Tensor) and torch._C._functorch.is_legacy_batchedtensor(grad) for grad in grads):
            raise RuntimeError(
                f"{title or op}: batched gradients (is_grads_batched=True, or vectorize=True in"
                " torch.autograd.functional) are not available with fused kernels; pass backend='reference' there"
            ) from error
        raise


class _Gradient(torch.autograd.Function):
    """A registered backward operator as a Function of its own, which has no derivative."""

    @staticmethod
    def forward(ctx: Any, op: str, title: str, *arguments: Any) -> Any:
        """Call the backward operator of ``op``."""
        ctx.title = title
        return call(False, f"{op}_backward", *arguments)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Refuse the second derivative with a RuntimeError."""
        refuse_double_backward(ctx.title)


def only_wanted(gradients: tuple[Tensor | None, ...], ctx: Any) -> tuple[Tensor | None, ...]:
    """Return gradients in the order of a Function's arguments, None where the argument asks for none."""
    return tuple([grad if want else None for grad, want in zip(gradients, ctx.needs_input_grad, strict=True)])
