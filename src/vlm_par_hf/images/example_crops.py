"""Photographs that ship with the package, to try things on."""

from pathlib import Path

from vlm_par_hf.errors import ParValueError


__all__ = ["EXAMPLES", "example_crop"]

EXAMPLES = ("backpack", "bags", "skirt")


def example_crop(name: str = "backpack") -> str:
    """The path of a street camera's crop of one person, seen from behind.

    They are crops of PA-100K (Liu et al., 2017; CC-BY 4.0). No weights that ship with the package have seen them.

    Args:
        name: `"backpack"`, `"bags"` or `"skirt"`.

    Raises:
        ValueError: there is no crop of that name.
    """
    if name not in EXAMPLES:
        raise ParValueError(f"name is {name!r}; expected one of {list(EXAMPLES)}")
    return str(Path(__file__).parent / "examples" / f"{name}.jpg")
