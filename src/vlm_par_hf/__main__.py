"""`python -m vlm_par_hf` is the command `vlm-par`."""

import sys

from vlm_par_hf.cli.main import main


if __name__ == "__main__":
    sys.exit(main())
