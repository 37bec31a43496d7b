"""A reader per data set: from the files of its authors to records. Neither torch nor decoding."""
