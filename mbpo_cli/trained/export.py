"""Export a policy or a model as one file that does not need this package, and check that it is the same.

Knows the formats of torch and ONNX; does not know what is exported.
"""

from __future__ import annotations

import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mbpo_cli.failures import ConfigError, one_line
from mbpo_cli.trained.exportable import Exportable

ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")
# The version of ONNX's operators: old enough for many runtimes, and the same with every version of torch.
OPSET = 18
# The file within a PyTorch file that describes it.
METADATA = "metadata.json"
# The largest difference that rounding explains, in the units of `Port.unit`.
TOLERANCE = 1e-5
NUM_EXAMPLES = 1000

Function = Callable[..., Tensor | Sequence[Tensor]]


def format_of(argument: str, path: Path, name: str | None) -> str:
    """Return the format that a file's suffix determines; check that it is `name` and can be written."""
    found = next((known for known, form in FORMATS.items() if form.suffix == path.suffix), None)
    if found is None or name not in (None, found):
        suffixes = ", ".join(f"{form.suffix} for {known}" for known, form in FORMATS.items())
        raise ConfigError(f"{argument} {path}: must end in {FORMATS[name].suffix if name else suffixes}")
    if found == "onnx" and not all(importlib.util.find_spec(package) for package in ONNX_PACKAGES):
        raise ConfigError(
            f"--output {path}: needs this package's extra: pip install 'mbpo-cli[onnx]'; .pt2 needs none"
        )
    return found


def export(exportable: Exportable, name: str, metadata: Mapping[str, Any]) -> tuple[bytes, float]:
    """Return a file in the format of that name, and the `greatest_difference` of its outputs.

    Raises:
        ConfigError: It cannot be exported, or the difference is more than rounding.
    """
    # In-place operations, which stand in the file if nothing needs gradients, would prevent them.
    with torch.set_grad_enabled(exportable.has_gradients), warnings.catch_warnings():
        # TorchScript warns at each call that it is deprecated, and ONNX's exporter uses deprecated functions.
        warnings.simplefilter("ignore")
        example = exportable.eval().examples(2, torch.Generator().manual_seed(0))
        try:
            exported = FORMATS[name].write(exportable, tuple(example), metadata)
        except Exception as error:  # code of a known function or of an agent of the user's own
            raise ConfigError(f"--format {name}: {type(error).__name__}: {one_line(error)}") from error
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        difference = greatest_difference(exportable, FORMATS[name].read(exported))
    if not difference <= TOLERANCE:
        raise ConfigError(
            f"--format {name}: not written, as its outputs differ by {difference:.1e} from the run's; "
            f"rounding would explain {TOLERANCE:.0e} of their size"
        )
    return exported, difference


def greatest_difference(original: Exportable, exported: Function) -> float:
    """Return the greatest difference between two functions' outputs on examples, in batches of several sizes.

    `Port.difference` defines it. NaN if an output is NaN.
    """
    examples = original.examples(NUM_EXAMPLES, torch.Generator().manual_seed(0))
    units = [
        port.unit(output)
        for port, output in zip(original.outputs, _outputs(original(*examples)), strict=True)
    ]
    differences = []
    for num_rows in (1, 2, NUM_EXAMPLES):
        rows = [example[:num_rows] for example in examples]
        expected, actual = _outputs(original(*rows)), _outputs(exported(*rows))
        pairs = zip(original.outputs, expected, actual, units, strict=True)
        differences += [port.difference(*values) for port, *values in pairs]
    return float(torch.stack(differences).max())


def _outputs(found: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    return [found] if isinstance(found, Tensor) else found


def _dynamic_shapes(exportable: Exportable) -> Any:
    batch = torch.export.Dim("batch")
    return (tuple({0: batch} for _ in exportable.inputs),)  # of the one parameter *values


def _write_pt2(exportable: Exportable, example: tuple[Tensor, ...], metadata: Mapping[str, Any]) -> bytes:
    file = io.BytesIO()
    program = torch.export.export(exportable, example, dynamic_shapes=_dynamic_shapes(exportable))
    torch.export.save(program, file, extra_files={METADATA: json.dumps(metadata)})
    return file.getvalue()


def _write_torchscript(
    exportable: Exportable, example: tuple[Tensor, ...], metadata: Mapping[str, Any]
) -> bytes:
    file, extra = io.BytesIO(), {METADATA: json.dumps(metadata)}
    traced = torch.jit.trace(exportable, example, check_trace=False)  # type: ignore[no-untyped-call]
    torch.jit.save(traced, file, _extra_files=extra)
    return file.getvalue()


def _write_onnx(exportable: Exportable, example: tuple[Tensor, ...], metadata: Mapping[str, Any]) -> bytes:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of packages that are not needed
    program = torch.onnx.export(
        exportable,
        example,
        input_names=[port.name for port in exportable.inputs],
        output_names=[port.name for port in exportable.outputs],
        dynamic_shapes=_dynamic_shapes(exportable),
        opset_version=OPSET,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    # What lies between inputs and outputs gets names that no input has, such as "view".
    for node in program.model.graph:
        for value in node.outputs:
            if value not in program.model.graph.outputs:
                value.name = f"between.{value.name}"
    for key, value in metadata.items():
        program.model.metadata_props[key] = value if isinstance(value, str) else json.dumps(value)
    data: bytes = program.model_proto.SerializeToString()
    return data


def _read_onnx(data: bytes) -> Function:
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]

    def run(*inputs: Tensor) -> list[Tensor]:
        fed = dict(zip(names, (tensor.numpy() for tensor in inputs), strict=True))
        return [torch.from_numpy(np.asarray(output)) for output in session.run(None, fed)]

    return run


class Format(NamedTuple):
    """The suffix of a file format, and functions that encode an exportable, given examples, and decode it."""

    suffix: str
    write: Callable[[Exportable, tuple[Tensor, ...], Mapping[str, Any]], bytes]
    read: Callable[[bytes], Function]


FORMATS = {
    "pt2": Format(".pt2", _write_pt2, lambda data: torch.export.load(io.BytesIO(data)).module()),
    "torchscript": Format(
        ".pt",
        _write_torchscript,
        lambda data: torch.jit.load(io.BytesIO(data)),  # type: ignore[no-untyped-call]
    ),
    "onnx": Format(".onnx", _write_onnx, _read_onnx),
}
