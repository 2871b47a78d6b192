"""Files for serving from files of models: `python -m deel.lip.export`."""
