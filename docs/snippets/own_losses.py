"""The losses of the tutorial "Write your own loss", without its training."""

import ast
from pathlib import Path

_source = Path(__file__).parents[1] / "tutorials_src" / "plot_2_own_loss.py"
_kinds = (ast.Import, ast.ImportFrom, ast.ClassDef)
_body = [node for node in ast.parse(_source.read_text()).body if isinstance(node, _kinds)]
exec(compile(ast.Module(_body, type_ignores=[]), _source, "exec"))
