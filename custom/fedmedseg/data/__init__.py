"""Site files, data lists, volumes, phantoms and importers of public data sets."""
