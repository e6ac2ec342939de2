"""The files that every fit leaves beside those of its method."""

RECORD = "fit.json"
SCHEMA = 2
HISTORY = "history.csv"
HISTORY_COLUMNS = ("step", "loss", "train_accuracy", "learning_rate", "seconds")
