"""`python -m vlm_par_hf.data.synthetic.rendered`: render a data set into parquet files."""

from .dataset import main


if __name__ == "__main__":
    main()
