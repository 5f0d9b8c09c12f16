"""What a run or an evaluation shows: tables, curves, pages."""
