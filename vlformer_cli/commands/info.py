"""`vlformer info`."""

from __future__ import annotations

from vlformer_cli.commands.common import Json, print_json


def info(as_json: Json = False) -> None:
    """Versions, devices, threads, where data and weights lie: what a bug report needs."""
    import platform
    import sys

    import torch

    from vlformer_cli import __version__
    from vlformer_cli.data.build import data_root
    from vlformer_cli.engine.checkpoint import EMBEDDED
    from vlformer_cli.engine.device import pick_device, usable_cores
    from vlformer_cli.engine.manifest import git_revision, package_versions
    from vlformer_cli.engine.precision import describe_machine

    root = data_root()
    document = {
        "vlformer": __version__,
        "git": git_revision(),
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": package_versions(),
        "devices": ["cpu", *(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))],
        "precision": describe_machine(pick_device("auto")),
        "cores": usable_cores(),
        "torch_threads": torch.get_num_threads(),
        "data_root": str(root.resolve()),
        "data_sets": sorted(path.parent.name for path in root.glob("*/manifest.json")),
        "embedded_weights": str(EMBEDDED) if EMBEDDED.is_file() else None,
    }
    if as_json:
        print_json(document)
        return
    for name, value in document.items():
        shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, dict) else value
        print(f"{name}: {', '.join(map(str, shown)) if isinstance(shown, list) else shown}")
