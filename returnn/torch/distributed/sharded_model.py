"""
A model whose parameters, gradients and optimizer state are spread over the ranks (FSDP2, ``torch.distributed.fsdp.fully_shard``).

The *step* is the root of the sharding, not the model: while a step runs, the parameters outside of sharded submodules
are gathered, and the user's step function may use the model, which keeps its class and its names, in any way. The
parameters of a sharded submodule are gathered while its forward runs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import types
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from returnn.errors import ModelError, NotSupportedError, OptionError
from returnn.log import log
from returnn.options.registry import closest_names
from returnn.options.sharding import ShardingOptions

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

__all__ = ["ShardedModel", "choose_units", "check_optimizer"]

T = TypeVar("T")

#: Submodules with fewer parameters are not worth a communication of their own.
_MIN_UNIT_PARAMETERS = 1_000_000
_OPTION = "torch_distributed"
#: Name of a method of ours, see _add_entry.
_ENTRY = "_returnn_step_without_data"
_CONTAINERS = (torch.nn.ModuleList, torch.nn.ModuleDict)
#: Optimizers of torch that fail on tensors of which each rank has a part (torch 2.13).
_UNSUITED_OPTIMIZERS = ("Adafactor", "LBFGS", "Muon", "Rprop", "SparseAdam")


def choose_units(model: torch.nn.Module, shard_modules: Sequence[str] | None) -> dict[str, torch.nn.Module]:
    """
    Choose the submodules whose parameters are gathered one by one. All other parameters are gathered for the whole step.

    :param model:
    :param shard_modules: names of classes. None: the entries of lists of modules (``torch.nn.ModuleList``) with at
        least a million parameters each. Empty: none
    :return: name -> module, in the order of the model; each has parameters that are used nowhere outside of it
    :raises OptionError: a name that no submodule has, or a container without forward
    """
    modules = {name: module for name, module in model.named_modules() if name}
    if shard_modules is None:
        candidates = dict(_large_entries(model, ""))
    else:
        classes = Counter(type(module).__name__ for module in modules.values())
        for wanted in shard_modules:
            if not classes[wanted]:
                guess = closest_names(wanted, classes)
                raise OptionError(
                    _OPTION,
                    expected='"shard_modules" with names of classes of submodules of the model',
                    got=wanted,
                    todo=f"Did you mean {guess[0]!r}?" if guess else f"The model has {', '.join(sorted(classes))}",
                )
        candidates = {name: module for name, module in modules.items() if type(module).__name__ in shard_modules}
        for name, module in candidates.items():
            if type(module).forward is torch.nn.Module.forward or isinstance(module, _CONTAINERS):
                raise OptionError(
                    _OPTION,
                    expected='"shard_modules" with classes that have a forward method',
                    got=f"{type(module).__name__} ({name})",
                    todo="Give the class of its entries",
                )
    return _without_shared_parameters(model, {n: m for n, m in candidates.items() if any(True for _ in m.parameters())})


def _num_parameters(module: torch.nn.Module) -> int:
    return sum(param.numel() for param in module.parameters())


def _large_entries(module: torch.nn.Module, prefix: str) -> Iterator[tuple[str, torch.nn.Module]]:
    for name, child in module.named_children():
        if _num_parameters(child) < _MIN_UNIT_PARAMETERS:
            continue
        own_type = type(child).forward is not torch.nn.Module.forward and not isinstance(child, _CONTAINERS)
        if own_type and isinstance(module, torch.nn.ModuleList):
            yield prefix + name, child
        else:
            yield from _large_entries(child, f"{prefix}{name}.")


def _without_shared_parameters(model: torch.nn.Module, units: dict[str, torch.nn.Module]) -> dict[str, torch.nn.Module]:
    """FSDP2 would silently make two parameters of one that two units share."""
    while True:
        owners: dict[int, set[str]] = {}
        names: dict[int, list[str]] = {}
        for param_name, param in model.named_parameters(remove_duplicate=False):
            owners.setdefault(id(param), set()).add(_innermost(param_name, units))
            names.setdefault(id(param), []).append(param_name)
        conflicts = {
            unit: names[param]
            for param, param_owners in owners.items()
            if len(param_owners) > 1
            for unit in param_owners
        }
        conflicts.pop("", None)
        if not conflicts:
            return units
        for unit, shared in conflicts.items():
            print(
                f"FSDP: {unit} is not sharded by itself, since a parameter is shared: {' = '.join(shared[:3])}.",
                file=log.v3,
            )
        units = {name: module for name, module in units.items() if name not in conflicts}


def _innermost(param_name: str, units: dict[str, torch.nn.Module]) -> str:
    """:return: name of the unit that holds the parameter; "": none"""
    parts = param_name.split(".")[:-1]
    for num in range(len(parts), 0, -1):
        if ".".join(parts[:num]) in units:
            return ".".join(parts[:num])
    return ""


def check_optimizer(optimizer: torch.optim.Optimizer) -> None:
    """
    :param optimizer: of a sharded model
    :raises NotSupportedError: it needs whole parameters
    """
    name = type(optimizer).__name__
    if name in _UNSUITED_OPTIMIZERS and type(optimizer).__module__.startswith("torch."):
        raise NotSupportedError(
            f'option "optimizer": {name} needs whole parameters, but {_OPTION} = {{"class": "fsdp"}} gives each rank a part. '
            "Use e.g. adamw, or another class in torch_distributed."
        )


@dataclasses.dataclass
class _Call:
    """One call of a unit in a step."""

    unit: str
    #: whether an argument required gradients: then torch reduces the gradients of the unit at that place of the backward pass
    input_grad: bool
    grad_enabled: bool
    children: list[_Call] = dataclasses.field(default_factory=list)


class _StepRoot(torch.nn.Module):
    """Root of the sharding: runs any function while its parameters are gathered."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.model = model

    def forward(self, func: Callable[[], Any]) -> Any:
        """:return: what the function returns"""
        return func()


class ShardedModel:
    """Shards a model in place, and runs its steps."""

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        device: str | torch.device,
        options: ShardingOptions,
        mesh: DeviceMesh | None = None,
    ):
        """
        The process group must exist. All ranks must have the same parameters.

        :param model: whole, with its final parameters; anywhere, e.g. in host memory. Changed in place, moved to the device
        :param device: of this rank
        :param options:
        :param mesh: of the ranks; None: all ranks
        :raises OptionError: see :func:`choose_units`
        :raises ModelError: a parameter that cannot be sharded
        """
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        self.model = model
        self.options = options
        device = torch.device(device)
        if mesh is None:
            mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
        self.mesh = mesh
        self._units = choose_units(model, options.shard_modules)
        _check_parameters(model, self._units)
        self._classes = {name: type(unit).__name__ for name, unit in self._units.items()}  # torch changes them
        self._own_parameters = {name: self._names_of(name) for name in ("", *self._units)}
        print(self._description(), file=log.v3)
        self._root = _StepRoot(model)
        kwargs: dict[str, Any] = {"mesh": mesh, **_precision_policy(options)}
        # From the inside out: a module takes the parameters that no module inside of it has taken.
        for name in sorted(self._units, key=lambda name: -name.count(".")):
            fully_shard(self._units[name], reshard_after_forward=options.reshard_after_forward, **kwargs)
        # The parameters of the root are needed until the end of the step anyway.
        fully_shard(self._root, reshard_after_forward=False, **kwargs)
        model.to(device)  # buffers
        self._register_methods()
        self._running: list[list[_Call]] = []  # stack of the calls whose forward runs now; empty: no step runs
        # By whether gradients are computed: the calls of the last step.
        self._last_calls: dict[bool, list[_Call]] = {}
        # Names of parameters that got no gradient in the last update.
        self._unused: frozenset[str] = frozenset()
        for name, unit in self._units.items():
            self._watch(name, unit)
            _add_entry(unit)

    # ---- set-up

    def _names_of(self, unit: str) -> list[str]:
        """:return: of the parameters that are gathered with that unit; "": with the step"""
        return [name for name, _ in self.model.named_parameters() if _innermost(name, self._units) == unit]

    def _description(self) -> str:
        params = dict(self.model.named_parameters())
        sizes = {unit: sum(params[name].numel() for name in names) for unit, names in self._own_parameters.items()}
        classes = Counter(self._classes.values())
        units = ", ".join(f"{num} x {name}" for name, num in classes.items())
        text = f"FSDP: {sum(sizes.values())} parameters over {self.mesh.size()} ranks; "
        if not units:
            return text + "all are gathered for the whole step."
        return text + f"gathered by module: {units}; {sizes['']} parameters of others for the whole step."

    def _register_methods(self) -> None:
        from torch.distributed.fsdp import register_fsdp_forward_method

        known = set(self._classes.values())
        for class_name, methods in self.options.forward_methods.items():
            if class_name not in known:
                raise OptionError(
                    _OPTION,
                    expected=f'"forward_methods" with classes of sharded modules ({", ".join(sorted(known)) or "there are none"})',
                    got=class_name,
                    todo='Methods of other modules can be called in any case; see "shard_modules"',
                )
            for name, unit in self._units.items():
                for method in methods if self._classes[name] == class_name else ():
                    if not callable(getattr(unit, method, None)):
                        raise OptionError(
                            _OPTION, expected=f'"forward_methods" with methods of {class_name}', got=method
                        )
                    register_fsdp_forward_method(unit, method)
                    self._watch_method(name, unit, method)

    def _watch(self, name: str, unit: torch.nn.Module) -> None:
        def enter(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            del module
            self._enter(name, (args, kwargs))

        def leave(module: torch.nn.Module, args: tuple[Any, ...], output: Any) -> None:
            del module, args, output
            self._leave()

        unit.register_forward_pre_hook(enter, with_kwargs=True)
        unit.register_forward_hook(leave)

    def _watch_method(self, name: str, unit: torch.nn.Module, method: str) -> None:
        inner = getattr(unit, method)

        @functools.wraps(inner)
        def call(*args: Any, **kwargs: Any) -> Any:  # Any: as the user's method
            self._enter(name, (args, kwargs))
            try:
                return inner(*args, **kwargs)
            finally:
                self._leave()

        setattr(unit, method, call)

    def _enter(self, name: str, inputs: object) -> None:
        if self._running:  # else: it runs again in the backward pass (gradient checkpointing)
            call = _Call(name, input_grad=_requires_grad(inputs), grad_enabled=torch.is_grad_enabled())
            self._running[-1].append(call)
            self._running.append(call.children)

    def _leave(self) -> None:
        if len(self._running) > 1:
            self._running.pop()

    # ---- steps

    @property
    def is_running(self) -> bool:
        """:return: whether a step runs now"""
        return bool(self._running)

    def run(self, func: Callable[[], T]) -> T:
        """
        Run a step, of training, evaluation or forwarding. All ranks must call it or :meth:`empty_step`.

        :param func: calls the user's step function
        :return: what it returns
        :raises ModelError: the step uses parameters that are not gathered
        """
        is_train = torch.is_grad_enabled()
        calls: list[_Call] = []
        self._running = [calls]
        try:
            with self._precision():
                result = self._root(func)
        except RuntimeError as exc:
            if "mixed torch.Tensor and DTensor" in str(exc):
                raise ModelError(self._not_gathered_text(exc)) from exc
            raise
        finally:
            self._running = []
        self._last_calls[is_train] = calls
        if not is_train:
            self.reshard()
        return result  # type: ignore[no-any-return]

    def _precision(self) -> contextlib.AbstractContextManager[Any]:
        """
        With parameters of 16 bits, all else that a step uses (inputs, buffers) stays as it is: autocast brings them together. A step
        with mixed precision of its own (option torch_amp) sets that inside.
        """
        name = None if self.options.mixed_precision is None else self.options.mixed_precision.param_dtype
        if name is None or name == "float32":
            return contextlib.nullcontext()
        return torch.autocast(self.mesh.device_type, dtype=getattr(torch, name))

    def _not_gathered_text(self, exc: RuntimeError) -> str:
        classes = sorted(set(self._classes.values()))
        return (
            f"The step uses parameters of a sharded module ({', '.join(classes)}) outside of its forward, where each rank has only a part "
            f"of them (torch: {str(exc).split(',')[0]}). If it is a method of that module, list it: "
            f'{_OPTION} = {{"class": "fsdp", "forward_methods": {{"{classes[0] if classes else "Block"}": ["name_of_method"]}}}}; or name other '
            'classes in "shard_modules". With "shard_modules": [] all parameters are whole during a step.'
        )

    def empty_step(self) -> torch.Tensor:
        """
        Take part in a step for which this rank has no data: all communication of the last step, with zero gradients.

        :return: 0-dim zero; backward() takes part in the reduction of the gradients
        :raises ModelError: this rank has had no data yet, so that it is unknown what communication there is
        """
        is_train = torch.is_grad_enabled()
        calls = self._last_calls.get(is_train, self._last_calls.get(True))
        if calls is None:
            raise ModelError(
                "A rank has no data in the first step, which FSDP needs: the dataset has fewer sequences than there are ranks. "
                "Use fewer ranks, or more data."
            )

        def func() -> torch.Tensor:
            start = torch.zeros((), device=next(self.model.parameters()).device, requires_grad=is_train)
            total = self._replay(calls, start)
            return _zero_gradients(total, self._used_parameters("", self.model))

        total: torch.Tensor = self._root(func)
        if not is_train:
            self.reshard()
        return total

    def _replay(self, calls: Sequence[_Call], value: torch.Tensor) -> torch.Tensor:
        for call in calls:
            with torch.set_grad_enabled(call.grad_enabled and torch.is_grad_enabled()):
                unit = self._units[call.unit]
                body = functools.partial(self._replay_unit, call, unit)
                output = getattr(unit, _ENTRY)(value if call.input_grad else value.detach(), body)
            value = value + output
        return value

    def _replay_unit(self, call: _Call, unit: torch.nn.Module, value: torch.Tensor) -> torch.Tensor:
        return _zero_gradients(self._replay(call.children, value), self._used_parameters(call.unit, unit))

    def _used_parameters(self, name: str, unit: torch.nn.Module) -> list[torch.nn.Parameter]:
        """:return: gathered parameters of the unit that got a gradient in the last update"""
        prefix = f"{name}." if name else ""
        params = dict(unit.named_parameters(remove_duplicate=False))
        own = [params[n.removeprefix(prefix)] for n in self._own_parameters[name] if n not in self._unused]
        return [param for param in own if param.requires_grad]

    def reshard(self) -> None:
        """After a step without backward(): the parameters may be changed before the next one, and gathered ones are copies."""
        for module in (self._root, *self._units.values()):
            module.reshard()  # type: ignore[operator]

    def set_gradient_sync(self, value: bool) -> None:
        """
        :param value: False: the next backward passes only add up the gradients of this rank, for gradient accumulation
        """
        self._root.set_requires_gradient_sync(value)  # type: ignore[operator]

    def reduce_gradients(self) -> None:
        """Bring gradients that were added up without synchronisation into ``param.grad``. All ranks must call it."""
        self.set_gradient_sync(True)
        with torch.enable_grad():
            self.empty_step().backward()

    def watch_optimizer(self, optimizer: torch.optim.Optimizer) -> None:
        """
        :param optimizer: its updates tell which parameters have gradients
        :raises NotSupportedError: see :func:`check_optimizer`
        """
        check_optimizer(optimizer)
        params = dict(self.model.named_parameters())

        def note_unused(*args: Any) -> None:
            del args
            self._unused = frozenset(name for name, param in params.items() if param.grad is None)

        optimizer.register_step_pre_hook(note_unused)


def _precision_policy(options: ShardingOptions) -> dict[str, Any]:
    """:return: argument of fully_shard. Any: as there"""
    if options.mixed_precision is None:
        return {}
    from torch.distributed.fsdp import MixedPrecisionPolicy

    def dtype(name: str | None) -> torch.dtype | None:
        return None if name is None else getattr(torch, name)  # type: ignore[no-any-return]

    precision = options.mixed_precision
    policy = MixedPrecisionPolicy(
        param_dtype=dtype(precision.param_dtype),
        reduce_dtype=dtype(precision.reduce_dtype),
        output_dtype=dtype(precision.output_dtype),
    )
    return {"mp_policy": policy}


def _check_parameters(model: torch.nn.Module, units: dict[str, torch.nn.Module]) -> None:
    """:raises ModelError: a parameter that FSDP2 cannot shard"""
    dtypes: dict[str, dict[torch.dtype, str]] = {}
    for name, param in model.named_parameters():
        todo = ""
        if torch.nn.parameter.is_lazy(param):
            todo = "has no shape yet. Give the sizes of all layers in get_model"
        elif not param.ndim:
            todo = "is a single number without dimensions. Make it a parameter of shape [1]"
        elif not param.numel():
            todo = "is empty. Remove it"
        elif param.requires_grad:
            dtypes.setdefault(_innermost(name, units), {}).setdefault(param.dtype, name)
        if todo:
            raise ModelError(f'{_OPTION} = {{"class": "fsdp"}} cannot shard parameter {name}: it {todo}.')
    for by_dtype in dtypes.values():
        if len(by_dtype) > 1:
            examples = ", ".join(f"{name} {str(dtype).removeprefix('torch.')}" for dtype, name in by_dtype.items())
            raise ModelError(
                f'{_OPTION} = {{"class": "fsdp"}} needs one dtype for all parameters that are gathered together, got {examples}. '
                'Use one dtype, and "mixed_precision" for another one in the computation.'
            )


def _requires_grad(obj: object) -> bool:
    if isinstance(obj, torch.Tensor):
        return obj.requires_grad
    if isinstance(obj, (list, tuple)):
        return any(map(_requires_grad, obj))
    return isinstance(obj, dict) and any(map(_requires_grad, obj.values()))


def _add_entry(unit: torch.nn.Module) -> None:
    """
    Give a sharded module a method which runs a function instead of forward, with the parameters gathered. Hooks of the user,
    which expect inputs of forward, do not run.
    """
    from torch.distributed.fsdp import register_fsdp_forward_method

    def entry(
        module: torch.nn.Module, value: torch.Tensor, body: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        del module
        return body(value)

    setattr(unit, _ENTRY, types.MethodType(entry, unit))
    register_fsdp_forward_method(unit, _ENTRY)


class _ZeroGradients(torch.autograd.Function):
    """Identity, whose gradient gives zeros to further tensors."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor, *params: torch.Tensor) -> torch.Tensor:  # Any: of torch
        # Not the tensors: the gathered parameters are freed before the backward pass.
        ctx.specs = [(param.shape, param.dtype, param.device) for param in params]
        return value.clone()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:  # Any: of torch
        zeros = (torch.zeros(shape, dtype=dtype, device=device) for shape, dtype, device in ctx.specs)
        return (grads[0], *zeros)


def _zero_gradients(value: torch.Tensor, params: Sequence[torch.Tensor]) -> torch.Tensor:
    """:return: the value; if gradients are enabled, its backward pass gives zero gradients to the parameters"""
    return _ZeroGradients.apply(value, *params)  # type: ignore[no-any-return, no-untyped-call]
