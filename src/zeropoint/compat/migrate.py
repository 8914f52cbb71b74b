"""Rewrites programs written for torch's quantization to zeropoint's names (``zeropoint migrate PATH``).

Works on the syntax tree (libcst), so that formatting and comments stay. What it cannot rewrite it names.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zeropoint.compat.torch_ao import MAPPING
from zeropoint.errors import QuantizationError

__all__ = ["Migration", "migrate_source", "migrate_tree"]

# What has no counterpart: prefix and what to do about it.
_WITHOUT = {
    "torch.ao.quantization.quantize_fx": "graph mode is not part of the eager system; use prepare and convert",
    "torch.quantization.quantize_fx": "graph mode is not part of the eager system; use prepare and convert",
    "torch.ao.quantization.fx": "graph mode is not part of the eager system; use prepare and convert",
    "torch.quantization.fx": "graph mode is not part of the eager system; use prepare and convert",
    "torch.ao.quantization.quantize_jit": "TorchScript mode has no counterpart; use prepare and convert",
    "torch.ao.quantization.backend_config": "graph mode's backend configs have no counterpart",
    "torch.ao.quantization.pt2e": "export mode has no counterpart yet",
    "torch.ao.ns._numeric_suite_fx": "use zeropoint.ns._numeric_suite",
    "torch.ops.quantized": "use zeropoint.nn.quantized.functional",
    "torch.ops._quantized": "use zeropoint.nn.quantized.functional",
    "torch.backends.quantized": "zeropoint chooses its kernels by itself; see zeropoint.backend.isa()",
    "torch.classes.quantized": "packed parameters are not objects here; see weight() and bias() of the modules",
}


@dataclass
class Migration:
    """What became of one file: its new source, how many names were rewritten, and what could not be."""

    source: str
    rewritten: int = 0
    problems: list[tuple[int, str, str]] = field(default_factory=list)  # line, name, what to do


def _target(name: str) -> tuple[str | None, str | None]:
    """The new dotted name, or None; and why there is none."""
    for prefix, advice in _WITHOUT.items():
        if name == prefix or name.startswith(prefix + "."):
            return None, advice
    attribute = MAPPING["attrs"].get(name)
    if attribute is not None:
        return attribute.replace(":", "."), None
    for prefix in sorted(MAPPING["modules"], key=len, reverse=True):
        if name == prefix or name.startswith(prefix + "."):
            ours = MAPPING["modules"][prefix]
            rest = name[len(prefix) :]
            # Only zeropoint.nn.quantized has the level "modules" too.
            return ours + (
                rest
                if ours == "zeropoint.nn.quantized" and not rest.startswith(".dynamic")
                else rest.replace(".modules", "")
            ), None
    return None, None


def migrate_source(source: str, path: str = "<source>") -> Migration:
    """Rewrites one file's text.

    Raises:
        QuantizationError: it is not Python that libcst can parse, or libcst is missing.
    """
    try:
        import libcst as cst
        from libcst.helpers import get_full_name_for_node
        from libcst.metadata import MetadataWrapper, PositionProvider
    except ImportError:
        raise QuantizationError("migrate needs libcst: pip install 'zeropoint[migrate]'") from None
    try:
        wrapper = MetadataWrapper(cst.parse_module(source))
    except cst.ParserSyntaxError as error:
        raise QuantizationError(f"{path}: cannot be parsed: {error.message}") from error
    migration = Migration(source)

    class Rewrite(cst.CSTTransformer):
        METADATA_DEPENDENCIES = (PositionProvider,)

        def __init__(self) -> None:
            super().__init__()
            self.needs_import = False
            self.inside_import = 0

        def _line(self, node: Any) -> int:
            return int(self.get_metadata(PositionProvider, node).start.line)

        def _dotted(self, name: str) -> Any:
            return cst.parse_expression(name)

        def visit_Import(self, node: Any) -> None:
            self.inside_import += 1

        def visit_ImportFrom(self, node: Any) -> None:
            self.inside_import += 1

        def leave_Import(self, original_node: Any, updated_node: Any) -> Any:
            self.inside_import -= 1
            names = []
            for alias in updated_node.names:
                full = get_full_name_for_node(alias.name) or ""
                new, problem = _target(full)
                if problem:
                    migration.problems.append((self._line(original_node), full, problem))
                if new is None:
                    names.append(alias)
                    continue
                migration.rewritten += 1
                if alias.asname is None:
                    # `import torch.ao.quantization` binds `torch`: uses are rewritten to zeropoint's full name.
                    self.needs_import = True
                names.append(alias.with_changes(name=self._dotted(new)))
            return updated_node.with_changes(names=names)

        def leave_ImportFrom(self, original_node: Any, updated_node: Any) -> Any:
            self.inside_import -= 1
            if updated_node.module is None or updated_node.relative:
                return updated_node
            base = get_full_name_for_node(updated_node.module) or ""
            if isinstance(updated_node.names, cst.ImportStar):
                new, problem = _target(base)
                if problem:
                    migration.problems.append((self._line(original_node), base, problem))
                if new is None:
                    return updated_node
                migration.rewritten += 1
                return updated_node.with_changes(module=self._dotted(new))
            kept: list[Any] = []
            moved: dict[str, list[Any]] = {}
            for alias in updated_node.names:
                full = f"{base}.{alias.name.value}"
                new, problem = _target(full)
                if problem:
                    migration.problems.append((self._line(original_node), full, problem))
                if new is None:
                    kept.append(alias)
                    continue
                migration.rewritten += 1
                module, _, name = new.rpartition(".")
                asname = alias.asname
                if asname is None and name != alias.name.value:
                    asname = cst.AsName(name=cst.Name(alias.name.value))
                moved.setdefault(module, []).append(alias.with_changes(name=cst.Name(name), asname=asname))
            if not moved:
                return updated_node
            lines = []
            if kept:
                lines.append(updated_node.with_changes(names=_comma(kept)))
            for module, aliases in moved.items():
                lines.append(updated_node.with_changes(module=self._dotted(module), names=_comma(aliases)))
            if len(lines) == 1:
                return lines[0]
            return cst.FlattenSentinel(lines)

        def visit_Attribute(self, node: Any) -> bool:
            # The longest dotted name counts as one: no look at torch.ao inside torch.ao.quantization.
            return _target(get_full_name_for_node(node) or "") == (None, None)

        def leave_Attribute(self, original_node: Any, updated_node: Any) -> Any:
            if self.inside_import:
                return updated_node
            full = get_full_name_for_node(original_node) or ""
            new, problem = _target(full)
            if problem:
                migration.problems.append((self._line(original_node), full, problem))
            if new is None:
                return updated_node
            migration.rewritten += 1
            self.needs_import = True
            return self._dotted(new)

    def _comma(aliases: list[Any]) -> list[Any]:
        last = len(aliases) - 1
        comma = cst.Comma(whitespace_after=cst.SimpleWhitespace(" "))
        return [a.with_changes(comma=cst.MaybeSentinel.DEFAULT if i == last else comma) for i, a in enumerate(aliases)]

    rewrite = Rewrite()
    module = wrapper.visit(rewrite)
    code = module.code
    if rewrite.needs_import and not any(
        line.startswith("import zeropoint") and " as " not in line for line in code.splitlines()
    ):
        code = _with_import(code)
    migration.source = code
    return migration


def _with_import(code: str) -> str:
    """``import zeropoint`` before the first import that is not from __future__."""
    lines = code.splitlines(keepends=True)
    for at, line in enumerate(lines):
        if line.startswith(("import ", "from ")) and not line.startswith("from __future__"):
            return "".join([*lines[:at], "import zeropoint\n", *lines[at:]])
    return "import zeropoint\n" + code


def migrate_tree(path: str | Path, write: bool = False) -> dict[Path, Migration]:
    """Rewrites a file or every ``.py`` file below a folder; only with ``write`` the files themselves change.

    Raises:
        QuantizationError: no such path.
    """
    path = Path(path)
    if not path.exists():
        raise QuantizationError(f"migrate: no such file or folder: {path}")
    files = [path] if path.is_file() else sorted(path.rglob("*.py"))
    found: dict[Path, Migration] = {}
    for file in files:
        source = file.read_text()
        if "torch" not in source:
            continue
        migration = migrate_source(source, str(file))
        if migration.rewritten or migration.problems:
            found[file] = migration
            if write and migration.source != source:
                file.write_text(migration.source)
    return found
