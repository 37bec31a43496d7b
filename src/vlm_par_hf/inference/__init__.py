"""From pictures to answers: the prediction loop that everything shares, and the pipeline."""
