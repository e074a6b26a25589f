"""YAML files of settings: small, without aliases, and no name twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from iefvad.utils.errors import UserError
from iefvad.utils.files import read_regular

LARGEST = 1 << 20
"""Maximum size of a file of settings in bytes."""


class DuplicateError(yaml.constructor.ConstructorError):
    """A name occurs twice."""


class AliasError(yaml.composer.ComposerError):
    """An alias (`*name`), by which a small file can stand for gigabytes."""


class Loader(yaml.SafeLoader):
    """A safe loader that refuses aliases, and a name that occurs twice instead of taking the last one."""

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Refuse an alias, and read any other node."""
        if self.check_event(yaml.AliasEvent):
            event = self.peek_event()  # type: ignore[no-untyped-call]
            raise AliasError(None, None, "aliases (*name) are not taken: write the value out", event.start_mark)
        node: yaml.Node | None = super().compose_node(parent, index)
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuse a name that occurs twice, and read the others."""
        keys: set[Any] = set()
        for key_node, _ in node.value:
            key = str(self.construct_object(key_node, deep=True))
            if key in keys:
                raise DuplicateError(None, None, f"the name {key} occurs twice", key_node.start_mark)
            keys.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: str | Path) -> Any:
    """Read a YAML file.

    Raises:
        FileNotFoundError: it is missing.
        UserError: it cannot be read, is too large, is not YAML, has aliases, or names something twice.
    """
    try:
        return yaml.load(read_regular(path, LARGEST).decode("utf-8"), Loader=Loader)  # a safe loader
    except FileNotFoundError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {getattr(error, 'strerror', None) or 'it is not UTF-8'}.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark, what = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        what = what or ("it is nested too deeply" if isinstance(error, RecursionError) else str(error))
        raise UserError(f"{path} cannot be read as YAML{where}: {what or 'it is damaged'}.") from error
