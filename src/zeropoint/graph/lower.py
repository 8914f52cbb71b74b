"""An annotated, calibrated graph as a graph of zeropoint operators."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from zeropoint import ops
from zeropoint._reference.quantize import f32
from zeropoint.graph.annotate import POOLS, Annotation, Form, clamp_bounds, unary_function
from zeropoint.graph.builder import GraphBuilder, source_name
from zeropoint.graph.calibrate import Calibration
from zeropoint.graph.canonicalize import arguments, numbers
from zeropoint.graph.constants import constant_of
from zeropoint.graph.embedding import EMBEDDINGS, lower_embedding
from zeropoint.graph.recurrent import lower_recurrent, recurrent_quality
from zeropoint.nn.quantized.modules.weighted import quantize_weight
from zeropoint.tensor import QDtype, QTensor, is_per_channel
from zeropoint.tensor._pointwise import make_table

__all__ = ["Lowering"]

aten = torch.ops.aten

# Recurrent layers feed errors back: trained ones have 30 to 45 dB in int8, or, of inputs that 8 bits cannot hold, 5.
_LEAST_QUALITY = 20.0


@dataclass(frozen=True)
class Int8:
    """A quantized value of the new graph."""

    node: fx.Node
    scale: float
    zero_point: int
    dtype: QDtype

    @property
    def qparams(self) -> tuple[float, int]:
        return self.scale, self.zero_point


class Lowering(GraphBuilder):
    """Builds the new graph in the order of the old one."""

    def __init__(self, module: fx.GraphModule, annotation: Annotation, calibration: Calibration) -> None:
        super().__init__(module)
        self.annotation, self.calibration = annotation, calibration
        self.floats: dict[fx.Node, Any] = {}
        self.ints: dict[fx.Node, Int8] = {}

    def run(self) -> fx.GraphModule:
        for node in self.module.graph.nodes:
            self._current = node
            if node.op == "output":
                self.graph.output(fx.map_arg(node.args[0], self.as_float))
            elif node in self.annotation.carrier:
                self.cover(node, "int8")  # done with its clamp
            elif node in self.floats:
                continue  # a part of a recurrent layer's or a bag's result
            elif node.target is operator.getitem and node.args[0] in self.ints:
                self._part(node)  # also where it is needed in float only: there is no list of floats
            elif node in self.annotation.by_weight:
                self._by_weight(node)
            elif node in self.annotation.forms:
                self._lower(node)
                if node.target is not operator.getitem:
                    self.cover(node, "int8")
            else:
                self.floats[node] = self.graph.node_copy(node, self.as_float)
                if node in self.annotation.reasons:
                    self.floats[node].meta["source"] = source_name(node)
                    self.cover(node, self.annotation.reasons[node])
        self.graph.eliminate_dead_code()
        result = fx.GraphModule(self.module, self.graph)
        result.graph.lint()
        return result

    # ---- values

    def as_float(self, node: fx.Node) -> fx.Node:
        """The value in float32; dequantized if it only exists as int8."""
        if node not in self.floats:
            q = self.ints[node]
            self.floats[node] = self.call(ops.dequantize_per_tensor, q.node, *q.qparams)
            self.floats[node].meta["val"] = node.meta.get("val")
        return self.floats[node]

    def as_int8(self, node: fx.Node) -> Int8:
        """The value in int8; quantized as calibration saw it if it only exists as float."""
        if node not in self.ints:
            scale, zero_point, dtype = self.calibration.qparams(node)
            x = self.floats[node]
            q = self.call(ops.quantize_per_tensor, x, f32(scale), zero_point, dtype.storage)
            self._record(node, Int8(q, f32(scale), zero_point, dtype))
        return self.ints[node]

    def _record(self, node: fx.Node, value: Int8) -> None:
        """``value`` is what ``node`` is in int8; its shape is what joining operators looks at."""
        if isinstance(node.meta.get("val"), torch.Tensor):
            value.node.meta["val"] = node.meta["val"].to(value.dtype.storage)
        self.ints[node] = value

    def output(self, node: fx.Node) -> tuple[float, int, QDtype]:
        scale, zero_point, dtype = self.calibration.qparams(node)
        return f32(scale), zero_point, dtype

    # ---- operators

    def _by_weight(self, node: fx.Node) -> None:
        if node.target in EMBEDDINGS:
            self.floats.update(lower_embedding(self, node, self.as_float))
            self.cover(node, "int8")
            return
        quality = recurrent_quality(self.module, node, self.calibration.recurrent_runs.get(node, []))
        if quality >= _LEAST_QUALITY:
            self.floats.update(lower_recurrent(self, node, self.as_float))
            self.cover(node, "int8")
            return
        self.floats[node] = self.graph.node_copy(node, self.as_float)
        self.floats[node].meta["source"] = source_name(node)
        self.cover(node, f"int8 would leave {quality:.0f} dB of signal to noise, under {_LEAST_QUALITY:.0f}")

    def _lower(self, node: fx.Node) -> None:
        form = self.annotation.forms[node]
        source = self.annotation.inputs[node][0]
        if form is Form.TABLE and self.annotation.carrier.get(source) is node:
            bounds = clamp_bounds(node)
            assert bounds is not None
            if self.annotation.forms[source] is Form.LAYER:
                self._layer(source, node, bounds)
            else:
                self._binary(source, node, bounds)
            return
        getattr(self, f"_{form.value}")(node)

    def _clamp(
        self, bounds: tuple[float, float] | None, scale: float, zero_point: int, dtype: QDtype
    ) -> tuple[int, int]:
        """The integers that a clamp leaves."""
        if bounds is None:
            return dtype.quant_min, dtype.quant_max
        low, high = (
            int(ops.quantize_per_tensor(torch.tensor([bound]), scale, zero_point, dtype.storage)) for bound in bounds
        )
        return low, high

    def _layer(self, node: fx.Node, result: fx.Node | None = None, bounds: tuple[float, float] | None = None) -> None:
        a = arguments(node)
        result, self._current = result or node, node
        x = self.as_int8(node.args[0])
        data, w_scale, w_zero_point = self._weight(node, a["weight"])
        bias = self._corrected_bias(node, a, data, w_scale, w_zero_point)
        one_dimension, dims = node.target is aten.conv1d.default, 3 if node.target is aten.conv3d.default else 2
        if one_dimension:
            data = data.unsqueeze(2)
        name = source_name(node)
        weight = self.constant(f"{name}_weight", data.contiguous())
        zero = None if w_zero_point is None else self.constant(f"{name}_zero_point", w_zero_point)
        rest = (self.constant(f"{name}_scale", w_scale), zero, self.constant(f"{name}_bias", bias))
        if result in self.annotation.quantized:
            scale, zero_point, dtype = self.output(result)
            output = (scale, zero_point, *self._clamp(bounds, scale, zero_point, dtype), dtype.storage)
        else:
            scale, zero_point, dtype, output = 1.0, 0, None, (1.0, 0, 0, 255, torch.float32)
        if node.target is aten.linear.default:
            packed = self.call(ops.linear_pack, weight, zero)
            out = self.call(ops.linear, x.node, weight, packed, *rest, *x.qparams, *output)
        else:
            stride, padding, dilation = (
                [first, *numbers(a[key], 1)] if one_dimension else numbers(a[key], dims)
                for key, first in (("stride", 1), ("padding", 0), ("dilation", 1))
            )
            convolve, pack = (ops.conv3d, ops.conv3d_pack) if dims == 3 else (ops.conv2d, ops.conv2d_pack)
            packed = self.call(pack, weight, zero, dilation, a["groups"], stride)
            image = self.call(aten.unsqueeze.default, x.node, 2) if one_dimension else x.node
            geometry = (stride, padding, dilation, a["groups"])
            out = self.call(convolve, image, weight, packed, *rest, *geometry, *x.qparams, *output)
            if one_dimension:
                out = self.call(aten.squeeze.dim, out, 2)
        if dtype is None:
            out.meta["val"] = result.meta.get("val")
            self.floats[result] = out
        else:
            self._record(result, Int8(out, scale, zero_point, dtype))

    def _weight(self, node: fx.Node, weight: fx.Node) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """int8 weight, float32 scales and int64 zero points (None: all 0) by the node's qconfig."""
        qconfig: Any = self.annotation.qconfigs[node]
        value = constant_of(self.module, weight)
        assert value is not None
        q: QTensor = quantize_weight(value, qconfig.weight())
        data = q.int_repr()
        if is_per_channel(q.qscheme()):
            scale, zero_point = q.q_per_channel_scales().float(), q.q_per_channel_zero_points().long()
        else:
            scale, zero_point = torch.tensor([q.q_scale()], dtype=torch.float32), torch.tensor([q.q_zero_point()])
        return data, scale.contiguous(), zero_point.contiguous() if bool(zero_point.any()) else None

    def _corrected_bias(
        self, node: fx.Node, a: dict[str, Any], data: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor | None
    ) -> torch.Tensor:
        """The bias, plus what rounding the weight takes from the mean of each output channel.

        Bias correction (Nagel et al., 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction") with
        the means of the calibration inputs; padding is taken to have the mean of the rest. A bias of exactly 0 is no
        accident and stays: keys of Swin V2 have one, so that padding has no key, and are divided by their length.
        """
        weight = constant_of(self.module, a["weight"])
        assert weight is not None
        spread = lambda t: t.double().reshape(-1, *[1] * (weight.dim() - 1))
        rounded = (data.double() - (0 if zero_point is None else spread(zero_point))) * spread(scale)
        lost = (weight.double() - rounded).flatten(2).sum(2) if weight.dim() > 2 else weight.double() - rounded
        means = self.calibration.channel_means(node.args[0])
        groups = a.get("groups", 1)
        by_group = means.reshape(groups, 1, -1).expand(-1, lost.shape[0] // groups, -1).flatten(0, 1)
        bias = constant_of(self.module, a["bias"])
        correction = (lost * by_group).sum(1)
        return (correction if bias is None else torch.where(bias == 0, 0.0, bias.double() + correction)).float()

    def _table(self, node: fx.Node) -> None:
        found = unary_function(self.module, node)
        assert found is not None
        x = self.as_int8(found[0])
        scale, zero_point, dtype = self.output(node)
        table = make_table(found[1], x.scale, x.zero_point, x.dtype, scale, zero_point, dtype)
        out = self.call(ops.lookup, x.node, self.constant(f"{source_name(node)}_table", table))
        self._record(node, Int8(out, scale, zero_point, dtype))

    def _attention(self, node: fx.Node) -> None:
        q, k, v = (self.as_int8(x) for x in self.annotation.inputs[node])
        a = arguments(node)
        factor = a["scale"] if a["scale"] is not None else node.args[0].meta["val"].shape[3] ** -0.5
        scale, zero_point, dtype = self.output(node)
        sides = [value for side in (q, k, v) for value in (side.node, *side.qparams)]
        mask = None if a["attn_mask"] is None else self.as_float(a["attn_mask"])
        for _ in range(0 if mask is None else 4 - a["attn_mask"].meta["val"].dim()):
            mask = self.call(aten.unsqueeze.default, mask, 0)
        out = self.call(ops.attention, *sides, factor, scale, zero_point, dtype.storage, mask, a["is_causal"])
        self._record(node, Int8(out, scale, zero_point, dtype))

    def _part(self, node: fx.Node) -> None:
        whole = self.as_int8(node.args[0])
        self._record(node, Int8(self.call(operator.getitem, whole.node, node.args[1]), *whole.qparams, whole.dtype))

    def _keep(self, node: fx.Node) -> None:
        x = self.as_int8(self.annotation.inputs[node][0])
        if node.target in POOLS:
            out = self._pool(node, x)
        elif node.target in (aten.constant_pad_nd.default, aten.pad.default):
            # Not constant_pad_nd, whose Scalar native code cannot hand to ATen.
            sides = fx.map_arg(arguments(node)["pad"], self.as_float)
            out = self.call(aten.pad.default, x.node, sides, "constant", float(x.zero_point))
        elif node.target is aten.upsample_bilinear2d.vec:
            a = arguments(node)
            size = fx.map_arg(a["output_size"] or [], self.as_float)
            factors = a["scale_factors"] or (0.0, 0.0)
            out = self.call(ops.interpolate_bilinear2d, x.node, size, a["align_corners"], *factors)
        else:
            args, kwargs = fx.map_arg((node.args[1:], node.kwargs), self.as_float)
            out = self.graph.call_function(node.target, (x.node, *args), kwargs)
            out.meta["source"] = source_name(node)
        self._record(node, Int8(out, x.scale, x.zero_point, x.dtype))

    def _pool(self, node: fx.Node, x: Int8) -> fx.Node:
        a, image = arguments(node), x.node
        target: Any = node.target
        if target is aten.adaptive_avg_pool2d.default:
            return self.call(ops.adaptive_avg_pool2d, image, x.zero_point, numbers(a["output_size"], 2))
        dims = {aten.max_pool1d.default: 1, aten.avg_pool1d.default: 1, aten.max_pool3d.default: 3}.get(target, 2)
        kernel = numbers(a["kernel_size"], dims)
        stride = numbers(a["stride"], dims) if a["stride"] else kernel
        window = [kernel, stride, numbers(a["padding"], dims)]
        if dims == 1:
            image = self.call(aten.unsqueeze.default, image, 2)
            window = [[1, *window[0]], [1, *window[1]], [0, *window[2]]]
        if target in (aten.avg_pool1d.default, aten.avg_pool2d.default):
            rest = (a["ceil_mode"], a["count_include_pad"], a.get("divisor_override"))
            out = self.call(ops.avg_pool2d, image, x.zero_point, *window, *rest)
        else:
            window.append(numbers(a["dilation"], dims) if dims > 1 else [1, *numbers(a["dilation"], 1)])
            if dims == 3:
                return self._max_pool3d(image, window, a["ceil_mode"])
            out = self.call(ops.max_pool2d, image, *window, a["ceil_mode"])
        return self.call(aten.squeeze.dim, out, 2) if dims == 1 else out

    def _max_pool3d(self, x: fx.Node, window: list[list[int]], ceil_mode: bool) -> fx.Node:
        """Over the planes first, then over the depth."""
        planes = self.call(aten.flatten.using_ints, self.call(aten.transpose.int, x, 1, 2), 0, 1)
        planes = self.call(ops.max_pool2d, planes, *(values[1:] for values in window), ceil_mode)
        size = self.call(aten.sym_size.int, x, 2)
        volume = self.call(aten.unflatten.int, planes, 0, [-1, size])
        line = self.call(aten.flatten.using_ints, self.call(aten.transpose.int, volume, 1, 2), 3, 4)
        kernel, stride, padding, dilation = (values[0] for values in window)
        line = self.call(ops.max_pool2d, line, [kernel, 1], [stride, 1], [padding, 0], [dilation, 1], ceil_mode)
        width = self.call(aten.sym_size.int, planes, 3)
        return self.call(aten.unflatten.int, line, 3, [-1, width])

    def _binary(self, node: fx.Node, result: fx.Node | None = None, bounds: tuple[float, float] | None = None) -> None:
        result, self._current = result or node, node
        a, b = (self.as_int8(x) for x in self.annotation.inputs[node])
        scale, zero_point, dtype = self.output(result)
        out = self.call(
            ops.add if node.target is aten.add.Tensor else ops.mul, a.node, *a.qparams, b.node, *b.qparams, scale, zero_point,
            *self._clamp(bounds, scale, zero_point, dtype), dtype.storage,
        )  # fmt: skip
        self._record(result, Int8(out, scale, zero_point, dtype))

    def _join(self, node: fx.Node) -> None:
        parts = [self.as_int8(x) for x in self.annotation.inputs[node]]
        a = arguments(node)
        out = self.call(aten.cat.default, [p.node for p in parts], a["dim"])
        self._record(node, Int8(out, *parts[0].qparams, parts[0].dtype))

    def _mean(self, node: fx.Node) -> None:
        x = self.as_int8(self.annotation.inputs[node][0])
        scale, zero_point, dtype = self.output(node)
        dims = self.annotation.inputs[node][0].meta["val"].dim() - 2
        image = x.node
        if dims == 1:
            image = self.call(aten.unsqueeze.default, image, 2)
        elif dims == 3:
            image = self.call(aten.flatten.using_ints, image, 2, 3)
        output = (scale, zero_point, dtype.quant_min, dtype.quant_max, dtype.storage)
        out = self.call(ops.global_avg_pool2d, image, *x.qparams, *output)
        if node.target is aten.mean.dim and not arguments(node)["keepdim"]:
            out = self.call(aten.flatten.using_ints, out, 1, 3)
        elif dims == 1:
            out = self.call(aten.squeeze.dim, out, 2)
        elif dims == 3:
            out = self.call(aten.unsqueeze.default, out, 2)
        self._record(node, Int8(out, scale, zero_point, dtype))
