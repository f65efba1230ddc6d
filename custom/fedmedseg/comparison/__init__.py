"""Methods compared on equal terms: what `fedmedseg compare` runs, measures and writes."""
