"""Small Python files in a checkpoint folder by which `AutoModel` finds this package.

transformers has no plug-ins. If this package was not imported, it refuses a checkpoint whose model type it does not
know, and `AutoProcessor` even returns only the tokenizer, without an error. With these files, and the `auto_map` that
names them, the error message says what to do, and `trust_remote_code=True` imports this package.
"""

from pathlib import Path

from vlm_par_hf.utils import atomic_write_text


__all__ = ["write_remote_code"]

MODULES = {"AutoConfig": "configuration", "AutoModel": "modeling", "AutoProcessor": "processing"}


def write_remote_code(folder: str | Path, family: str, **classes: str) -> dict[str, str]:
    """Writes one file per class, which imports it from this package.

    Args:
        folder: of the checkpoint; created if missing.
        family: the end of the file names, such as `"vlm_par"`.
        classes: the public class of this package for each Auto class (`AutoModel="VlmParModel"`).

    Returns:
        The `auto_map` for the configuration files.
    """
    auto_map = {}
    for auto_class, class_name in classes.items():
        module = f"{MODULES[auto_class]}_{family}"
        where = "`pip install .` in a clone of its repository"
        why = f"Needs vlm_par_hf ({where}); after `import vlm_par_hf`, no trust_remote_code."
        text = f'"""{why}"""\n\nfrom vlm_par_hf import {class_name}\n\n\n__all__ = ["{class_name}"]\n'
        atomic_write_text(Path(folder) / f"{module}.py", text)
        auto_map[auto_class] = f"{module}.{class_name}"
    return auto_map
