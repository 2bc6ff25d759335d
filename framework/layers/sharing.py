"""Parameters that several steps use: how their names are found, and who adds to their cotangents.

The backwards of a plan run from the last step to the first. So of the steps that use a parameter the last one writes its cotangent, and
each of the others computes its own part into scratch and adds it (`Adding`). That order is the same in every plan, and so are the bits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from framework import kernels
from framework.layers.layer import Context, Footprint, Layer, Own, Pair, Params
from framework.memory import Array
from framework.parameters import ParameterSpec

if TYPE_CHECKING:
    from framework.layers.steps import Step

T = TypeVar("T")


@dataclass(frozen=True)
class Adding(Layer):
    """A layer that adds to the cotangents of some parameters, which a later step has written: what `flatten` puts in its place.

    Its rules are the layer's own, but those that write gradients compute these parts into scratch first.

    Attributes:
        layer: The layer.
        names: The parameters that it adds to, by local name.
    """

    layer: Layer
    names: tuple[str, ...]

    @property
    def kind(self) -> str:
        return self.layer.kind

    def parameters(self, x: Any) -> dict[str, ParameterSpec]:
        return self.layer.parameters(x)

    def statistics(self, x: Any) -> dict[str, ParameterSpec]:
        return self.layer.statistics(x)

    def state(self, x: Any) -> dict[str, ParameterSpec]:
        return self.layer.state(x)

    def advance(self, state: Params, statistics: Params) -> None:
        self.layer.advance(state, statistics)

    def apply(self, params: Params, x: Any, context: Context) -> Any:
        return self.layer.apply(params, x, context)

    def forward(self, params: Params, x: Any, context: Context) -> tuple[Array, Own]:
        return self.layer.forward(params, x, context)

    def vjp(self, params: Params, x: Any, y: Any, own: Own, cotangent: Array, grads: Params, context: Context) -> Any:
        (parts,) = self._parts(grads, context=context)
        found = self.layer.vjp(params, x, y, own, cotangent, {**grads, **parts}, context)
        _add(grads, parts)
        return found

    def jvp(
        self, params: Params, x: Any, params_tangent: Params, x_tangent: Any, context: Context
    ) -> tuple[Array, Array]:
        return self.layer.jvp(params, x, params_tangent, x_tangent, context)

    def vjp_with_tangent(
        self,
        params: Pair[Params],
        x: Pair[Any],
        cotangent: Pair[Array],
        grads: Pair[Params],
        x_cotangent: Any,
        context: Context,
    ) -> None:
        values, tangents = self._parts(*grads, context=context)
        into = {**grads[0], **values}, {**grads[1], **tangents}
        self.layer.vjp_with_tangent(params, x, cotangent, into, x_cotangent, context)
        _add(grads[0], values)
        _add(grads[1], tangents)

    def footprint(self, x: Any, training: bool = True) -> Footprint:
        plain, specs = self.layer.footprint(x, training), self.layer.parameters(x)
        added = [specs[name] for name in self.names if name in specs]  # `parameters_of` refuses the others
        scratch = sum(spec.size * spec.dtype.itemsize for spec in added)
        return replace(
            plain,
            backward_workspace=plain.backward_workspace + scratch,
            hvp_workspace=plain.hvp_workspace + 2 * scratch,
            backward_flops=plain.backward_flops + sum(spec.size for spec in added),
        )

    def _parts(self, *grads: Params, context: Context) -> list[Params]:
        """Scratch for the layer's own parts of these gradients, all of it one array."""
        sizes = [grads[0][name].size for name in self.names]
        scratch = context.empty((len(grads) * sum(sizes),), grads[0][self.names[0]].dtype, "workspace")
        found: list[Params] = []
        for each in grads:
            found.append({})
            for name, size in zip(self.names, sizes, strict=True):
                found[-1][name] = kernels.front(scratch, each[name].shape)
                scratch = scratch[size:]
        return found


def _add(grads: Params, parts: Params) -> None:
    for name, part in parts.items():
        grads[name] += part


def with_shared(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """Returns steps whose `shared` holds full names, and of which those add that must.

    Raises:
        ValueError: A name stands for no step's parameter, for one that is itself shared, or for one that the step uses twice.
    """
    if not any(step.shared or step.names for step in steps):
        return steps
    places = {step.path: number for number, step in enumerate(steps)}
    users: dict[str, dict[int, str]] = {}  # of each parameter: the steps that use it, and its local names there
    for number, step in enumerate(steps):
        for local, name in step.names.items():
            users.setdefault(name, {})[number] = local
    named = set(users)
    found = []
    for number, step in enumerate(steps):
        full = {}
        for local, name in step.shared.items():
            options = [o for o in _scopes(step.path, name) if o in named or o.rpartition(".")[0] in places]
            if not options:
                raise ValueError(f"step {step.path!r} shares its {local} with {name!r}, {_but(name)}")
            full[local] = options[0]
            path, _, there = options[0].rpartition(".")
            if options[0] not in named:
                if there in steps[places[path]].shared:
                    raise ValueError(
                        f"step {step.path!r} shares its {local} with {name!r}, which is itself shared with "
                        f"{steps[places[path]].shared[there]!r}; name that one"
                    )
                users.setdefault(options[0], {}).setdefault(places[path], there)
            if number in users[options[0]]:
                raise ValueError(f"step {step.path!r} uses one parameter, {name!r}, twice; share it between two steps")
            users[options[0]][number] = local
        found.append(replace(step, shared=full))
    adds: dict[int, list[str]] = {}
    for each in users.values():
        for number, local in each.items():
            if number != max(each):
                adds.setdefault(number, []).append(local)
    return tuple(
        replace(step, layer=Adding(step.layer, tuple(adds[number]))) if number in adds else step
        for number, step in enumerate(found)
    )


def parameters_of(steps: tuple[Step, ...], inputs: Sequence[Any]) -> tuple[dict[str, ParameterSpec], dict[str, str]]:
    """Returns the parameters of steps by full name, each once, and the full names of those that a step knows by another name.

    Args:
        steps: The leaf steps.
        inputs: The spec of each step's input.

    Raises:
        ValueError: A step shares a parameter that is not there, or that has another shape or dtype.
    """
    found: dict[str, ParameterSpec] = {}
    aliases: dict[str, str] = {}
    for step, x in zip(steps, inputs, strict=True):
        for local, spec in step.layer.parameters(x).items():
            own = f"{step.path}.{local}"
            name = step.shared.get(local) or step.names.get(local, own)
            if name != own:
                aliases[own] = name
            if local not in step.shared:
                found.setdefault(name, spec)
    for step, x in zip(steps, inputs, strict=True):
        specs = step.layer.parameters(x)
        for local, name in {**step.names, **step.shared}.items():
            if local not in specs:
                raise ValueError(
                    f"step {step.path!r} shares its {local} with {name!r}, but {step.layer.kind} has only: {', '.join(specs) or 'none'}"
                )
            if name not in found:
                raise ValueError(f"step {step.path!r} shares its {local} with {name!r}, {_but(name)}")
            told, wanted = (f"{s.dtype.name}{list(s.shape)}" for s in (found[name], specs[local]))
            if told != wanted:
                raise ValueError(
                    f"step {step.path!r} shares its {local}, {wanted}, with {name!r}, which is {told}; they must be equal in shape and dtype"
                )
    return found, aliases


def _but(name: str) -> str:
    return (
        f"but no step has a parameter of that name; write the path of its layer and its own name, as 'embedding.token', seen from a "
        f"chain that holds both (and {name.rpartition('.')[0] or name!r} must be a single layer there)"
    )


def under_own_names(steps: Sequence[Step], params: Mapping[str, T]) -> dict[str, T]:
    """Returns parameters with those that steps share under these steps' own names, too.

    Args:
        steps: Leaf steps that have not been through `with_shared`.
        params: By full name. What is not among them, a chain around these steps has put there, or nobody.
    """
    found = dict(params)
    for step in steps:
        for local, name in step.shared.items():
            own = f"{step.path}.{local}"
            options = [option for option in _scopes(step.path, name) if option in params]
            if own not in params and options:
                found[own] = params[options[0]]
    return found


def _scopes(path: str, name: str) -> Iterator[str]:
    """Yields what a name may stand for at a path: seen from the innermost chain first, then from those around it."""
    while path:
        path = path.rpartition(".")[0]
        yield f"{path}.{name}" if path else name
