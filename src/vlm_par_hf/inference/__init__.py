"""From pictures to answers: the one prediction loop and the pipeline."""
