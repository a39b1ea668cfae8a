"""The converter interface: what every operation can be asked.

A converter is the one place that knows an operation. Analysis, the channel system, arrangement, rewriting and
receptive fields ask the same converter, so they can never disagree about an operation, and a new operation is one
class in one file. Every question has a default that is safe for the role, or an error that names the class and the
method; `docs/converters.md` has the questions as a table. `bu2td.ops.bases` has classes to derive from.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, fx, nn

from bu2td.errors import Bu2tdError, ConverterError
from bu2td.ir import Dim, Dims, TensorDims, is_tensor, map_dims
from bu2td.ops.fields import Field, hull, nothing
from bu2td.ops.roles import Role
from bu2td.ops.site import Change, Expr, NoRuleError, Rebuilt, Site, System
from bu2td.ops.surgery import led_by, resized, resized_deeply


class Converter:
    """Knowledge of one operation. Subclass it, override what differs, register it.

    Class attributes:
        role: of all sites (see `Role`); `role_at` may differ from site to site.
        leaf: keep modules of this type whole when capturing.
        needs_map: it takes statistics over positions, and cannot follow the global pool.
        aliases: its result may share memory with what it reads.
        width_attributes: attributes of the module that count its channels, and follow them.
    """

    role: Role = Role.OPAQUE
    leaf: bool = True
    needs_map: bool = False
    aliases: bool = False
    width_attributes: tuple[str, ...] = ()

    # -- what it is to the network around it -------------------------------------------------------

    def role_at(self, site: Site) -> Role:
        """The role of one site, where it depends on its arguments."""
        return self.role

    def kernel(self, site: Site) -> tuple[int, int]:
        """Window (k_h, k_w) over the image plane; (1, 1) for pointwise operations."""
        return (1, 1)

    def stride(self, site: Site) -> tuple[int, int]:
        """Stride over the image plane."""
        return (1, 1)

    def groups(self, site: Site) -> int:
        """In how many groups channels are read apart from one another."""
        return 1

    def pads(self, site: Site) -> bool:
        """Whether its window reaches over the border of the map."""
        return False

    def lends(self, site: Site) -> tuple[int, ...]:
        """Positions of arguments that only lend their size or type."""
        return ()

    def has_activation(self, site: Site) -> bool:
        """Whether a site of the role NORM_ACT really has an activation."""
        return False

    def path_rate(self, module: nn.Module) -> str | None:
        """The attribute with the share of images for which a module drops a whole path in training; None: none."""
        return None

    # -- channels ----------------------------------------------------------------------------------

    def tie(self, site: Site, system: System) -> Any:
        """State how channel dimensions of inputs and output depend on one another.

        By default elementwise operations hand their channels on, and what is opaque keeps them as they are.

        Returns:
            The expressions of the site's value, in the structure of ``site.value``.

        Raises:
            NoRuleError: the operation has none for this site, which then is opaque.
        """
        role = self.role_at(site)
        if role is Role.OPAQUE:
            return pinned(site, system)
        if role.keeps_shape or (role is Role.PASS and _same_shape(site)):
            return system.of(site.tensor())
        if role in (Role.ADD, Role.MUL):
            return broadcast(site, system)
        raise self._lacks("tie", site, "say how its channels depend on one another")

    def rebuild(self, site: Site, change: Change) -> Rebuilt:
        """Return the operation for other channel counts, another stride and kernel.

        By default an elementwise module follows the width (see `with_width`), and anything else is copied.
        """
        if site.module is None:
            return Rebuilt()
        role = self.role_at(site)
        if role.pointwise and is_tensor(site.value):
            axis = channel_axis(site.value)
            new: Any = self.with_width(site.module, change.sizes[site.node.name][axis], site.value[axis].size)
            if hasattr(new, "inplace"):
                new.inplace = bool(change.inplace and new.inplace)
            return Rebuilt(module=new)
        if role in (Role.CONV, Role.LINEAR) and (change.stride_one or _changes_width(site, change)):
            raise self._lacks("rebuild", site, "say how it is built for other widths")
        return Rebuilt(module=resized_deeply(site.module))

    def with_width(self, module: Any, width: int, before: int | None = None) -> nn.Module:
        """A module of the same class and settings for another number of channels.

        Parameters and buffers that are led by the number of channels follow it, and so do ``width_attributes``.

        Args:
            module: the module.
            width: its new number of channels.
            before: its own; by default what the first of ``width_attributes`` says.

        Raises:
            ConverterError: modules inside of the module have parameters, which must be said to follow.
        """
        if before is None:
            before = getattr(module, self.width_attributes[0])
        inside = [name for name, child in module.named_children() if next(child.parameters(), None) is not None]
        if inside and width != before:
            raise ConverterError(
                f"the converter {type(self).__qualname__} has no with_width(), to say how {', '.join(inside)} "
                f"inside of a {type(module).__qualname__} of {before} channels follow to {width}; write it, or set "
                f"leaf = False, so that the module is traced"
            )
        values = {**module._parameters, **module._buffers}
        sole = self.role.normalises  # else one value may be shared, and serves any number of channels
        shapes = {name: led_by(v.shape, before, width, sole) for name, v in values.items() if v is not None}
        own = [name for name in self.width_attributes if hasattr(module, name)]
        return resized(module, shapes, dict.fromkeys(own, width))

    # -- new units of this kind --------------------------------------------------------------------

    def unit(self, site: Site, width: int) -> nn.Module:
        """A norm, activation or dropout of this site's kind over the channels of (N, width, H, W) maps.

        By default what `rebuild` makes of the site for that width.
        """
        if not is_tensor(site.value):
            raise self._lacks("unit", site, "build a module of its kind for laterals and merges")
        axis = channel_axis(site.value)
        sizes = tuple(width if i == axis else None for i in range(len(site.value)))
        change = Change({site.node.name: sizes, site.source(): sizes}, inplace=True)
        module = self.rebuild(site, change).module
        if module is None and site.module is not None:
            module = self.with_width(site.module, width, site.value[axis].size)
        if module is None:
            raise self._lacks("unit", site, "build a module of its kind for laterals and merges")
        return module

    def dense(self, site: Site, in_channels: int, out_channels: int, kernel: tuple[int, int]) -> nn.Module:
        """A dense convolution (groups 1, dilation 1, stride 1, 'same' padding) of this site's kind."""
        raise self._lacks("dense", site, "build a convolution of its kind for laterals, merges and transitions")

    # -- receptive fields --------------------------------------------------------------------------

    def interval(self, site: Site, fields: Mapping[str, Any]) -> Any:
        """How receptive fields pass through the operation (see `bu2td.ops.fields`).

        Args:
            site: the node; the sizes of ``site.dims`` are those of the image whose fields are asked for.
            fields: by node name, the fields of all inputs: a `Field` for a tensor, a tuple of those for several.

        Returns:
            The field of the value, in the structure of ``site.value``; None if the operation has no rule. By
            default, operations that are pointwise by their role pass the hull of what they read.
        """
        return pointwise(site, fields) if self.role_at(site).pointwise else None

    # -- modules, without a graph around them ------------------------------------------------------

    def input_width(self, module: Any) -> int | None:
        """How many channels a module must read; None if it does not say."""
        return None

    def size_multiple(self, module: Any) -> int | None:
        """What the sides of the module's map must be multiples of; None if it works on one map size only."""
        return 1

    def empty_output(self, module: Any, *inputs: Tensor, proof: bool = False) -> Any:
        """An empty meta tensor (or tuple of them) of the output's shape, without running the module.

        Asked where running it on meta tensors is slow, or where it runs at one map size only.

        Args:
            module: the module.
            inputs: meta tensors.
            proof: the module has not run on such inputs before; say so if it would not.

        Returns:
            The output; None: run the module.

        Raises:
            ValueError: the module does not run on these inputs.
        """
        return inputs[0] if self.role.keeps_shape and not proof else None

    def trailing(self, module: Any) -> tuple[nn.Module, ...] | None:
        """What a norm runs behind its normalisation, in order; None if that is not known."""
        return None

    def reset(self, module: Any) -> None:
        """Give new parameters and buffers their initial values, by the module's own ``reset_parameters``."""
        reset = getattr(module, "reset_parameters", None)
        if callable(reset):
            reset()

    def resets_children(self, module: nn.Module) -> bool:
        """Whether `reset` initialises modules inside of the module, so that it must follow theirs."""
        return not (module._parameters or module._buffers)

    def fill_buffers(self, module: Any) -> None:
        """Compute the buffers that a state_dict leaves out."""

    def _lacks(self, method: str, site: Site, purpose: str) -> ConverterError:
        return ConverterError(
            f"the converter {type(self).__qualname__} of {site.operation} (role {self.role_at(site).name}) has no "
            f"{method}(), which would {purpose}; write it, or derive from bu2td.Activation, bu2td.Norm or "
            f"bu2td.Convolution"
        )


@contextmanager
def blaming(converter: Converter, what: str, where: str) -> Iterator[None]:
    """Turn an exception inside of a converter into an error that names it.

    Args:
        converter: whose method is called.
        what: what it is to do, "rebuild" say.
        where: the node, for the message.

    Raises:
        ConverterError: the converter failed.
        NoRuleError: it has no rule for this site.
    """
    try:
        yield
    except (Bu2tdError, NoRuleError):
        raise
    except Exception as error:
        cause = f"{type(error).__name__}: {error}"
        raise ConverterError(
            f"the converter {type(converter).__qualname__} failed to {what} {where}: {cause}"
        ) from error


def channel_axis(dims: Sequence[Dim]) -> int:
    """The dimension that counts channels: the second, or the last constant one where maps are channels-last."""
    if len(dims) > 1 and dims[1].kind == "channel":
        return 1
    return max((i for i, d in enumerate(dims) if d.kind == "channel"), default=len(dims) - 1)


def _same_shape(site: Site) -> bool:
    return is_tensor(site.value) and [d.size for d in site.value] == [d.size for d in site.input_dims()]


def _changes_width(site: Site, change: Change) -> bool:
    names = (site.source(), site.node.name)
    return any(
        new is not None and new != old.size
        for name in names
        for new, old in zip(change.sizes.get(name) or (), site.dims[name], strict=False)
    )


def broadcast(site: Site, system: System, count: int = 2) -> Any:
    """Tie the dimensions of all tensor operands, aligned from the right; size 1 broadcasts."""
    if site.value is None:
        return None
    operands = [
        (system.of(node), site.dims[node.name])
        for node in site.node.args[:count]
        if isinstance(node, fx.Node) and site.dims[node.name]
    ]
    result = []
    for offset in range(len(site.value), 0, -1):
        dim: Dim = site.value[-offset]
        found: Expr | None = None
        for exprs, dims in operands:
            if offset > len(dims) or exprs[-offset] is None:
                continue
            expr = exprs[-offset]
            if dims[-offset].size == 1 and dim.size != 1:
                system.equal(expr, system.constant(1))
                continue
            found = expr if found is None else system.equal(found, expr)
        result.append(found if dim.kind == "channel" else None)
    return tuple(result)


def pinned(site: Site, system: System) -> Any:
    """Pin every channel dimension that goes in to its bottom-up size, and every one that comes out."""

    def pin(dims: TensorDims, exprs: tuple[Expr | None, ...]) -> None:
        for expr, dim in zip(exprs, dims, strict=True):
            if expr is not None:
                system.equal(expr, system.constant(dim.size))

    for source in site.node.all_input_nodes:
        exprs = system.of(source)
        if exprs is not None:
            map_dims(pin, site.dims[source.name], exprs)
    return constants(site.value, system)


def pointwise(site: Site, fields: Mapping[str, Any]) -> Field | None:
    """The field of an elementwise operation: the hull of all operands, broadcast; None if it is none."""
    if not site.value or not isinstance(site.value[0], Dim):
        return None
    operands = [n for n in site.node.all_input_nodes if isinstance(fields.get(n.name), Field)]
    rank = len(site.value)
    for node in operands:
        dims = site.dims[node.name]
        aligned = zip(reversed(dims), reversed(site.value), strict=False)
        if len(dims) > rank or any(d.size not in (1, v.size) for d, v in aligned):
            return None
    return hull((fields[n.name] for n in operands), rank) if operands else None


def positions(dims: Sequence[Dim]) -> tuple[int, ...]:
    """The dimensions of a tensor that count positions of the image."""
    return tuple(i for i, d in enumerate(dims) if d.kind not in ("batch", "channel"))


def to_size(field: Field, site: Site, along: Callable[[Field, int, int], Field | None]) -> Field | None:
    """Bring the last two dimensions of a field to the sizes of the site's value, each by ``along``.

    A fixed number of positions sees the whole of an image that may have any size: that is a gate, but where the
    image has the model's own size and more than one position is left.

    Args:
        along: the field, a dimension and its new size -> the new field; None where it has no rule.
    """
    for axis in (-2, -1):
        before, after = site.input_dims()[axis], site.value[axis]
        if before.kind != "channel" and after.kind == "channel" and (site.virtual or after.size == 1):
            if field.lo.shape[axis] > 1:
                return nothing(len(site.value), gated=True)
            field = Field(field.lo, field.hi, True)
        else:
            found = along(field, axis, after.size)
            if found is None:
                return None
            field = found
    return field


def constants(value: Dims, system: System) -> Any:
    """Constant expressions for a whole value."""
    return map_dims(
        lambda dims: tuple(system.constant(d.size) if d.kind == "channel" else None for d in dims), value
    )
