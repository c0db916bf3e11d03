"""Parts of the page that tools/report.py writes."""
