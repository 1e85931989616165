"""From records and the published tables to tables and figures. Nothing here trains or is typed by hand."""
