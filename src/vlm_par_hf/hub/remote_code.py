"""Small files that a checkpoint folder carries so that `AutoModel` finds this package.

transformers has no plug-ins: a folder of a model type that it does not know is refused, or worse, `AutoProcessor`
returns the bare tokenizer, unless this package was imported before. With these files and the `auto_map` that names
them, the refusal says what to do, and `trust_remote_code=True` imports this package.
"""

from pathlib import Path

from vlm_par_hf.utils import atomic_write_text


__all__ = ["write_remote_code"]

MODULES = {"AutoConfig": "configuration", "AutoModel": "modeling", "AutoProcessor": "processing"}


def write_remote_code(folder: str | Path, family: str, **classes: str) -> dict[str, str]:
    """Writes one file per class, which imports it from this package.

    Args:
        folder: of the checkpoint; made when missing.
        family: `"vlm_par"`; ends the names of the files.
        classes: the public class of this package for each Auto class (`AutoModel="VlmParModel"`).

    Returns:
        The `auto_map` for the configuration files.
    """
    auto_map = {}
    for auto_class, class_name in classes.items():
        module = f"{MODULES[auto_class]}_{family}"
        why = "Needs `pip install vlm-par-hf`. After `import vlm_par_hf`, loading needs no trust_remote_code."
        text = f'"""{why}"""\n\nfrom vlm_par_hf import {class_name}\n\n\n__all__ = ["{class_name}"]\n'
        atomic_write_text(Path(folder) / f"{module}.py", text)
        auto_map[auto_class] = f"{module}.{class_name}"
    return auto_map
