"""Reading a YAML file strictly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from nnunet_difftumor.errors import ConfigurationError

_NAMED_BY_TEXT = ("tag:yaml.org,2002:merge", "tag:yaml.org,2002:value")


def read_yaml(path: Path, kind: str) -> Any:
    """Read what a file, which errors call `kind`, holds.

    Raises:
        ConfigurationError: If it cannot be read, or gives a key twice.
    """
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeyLoader)
    except OSError as error:
        raise ConfigurationError(f"The {kind} {path} cannot be read: {error}. Correct the path.") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"The {kind} {path} is no valid YAML: {error}.") from error


class _UniqueKeyLoader(yaml.SafeLoader):
    """Refuses a key that is given twice instead of taking the last; keys that are merged in (<<) may be overridden."""

    def compose_mapping_node(self, anchor: Any) -> Any:
        node: Any = super().compose_mapping_node(anchor)  # later, what is merged in cannot be told from what is written
        keys = [key.value if key.tag in _NAMED_BY_TEXT else self.construct_object(key, True) for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"the key {key!r} is given twice", node.start_mark)
        return node
